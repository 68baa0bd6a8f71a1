"""The download_data.py of a task: its published weights and its data sets, checked.

Valid files are kept; invalid ones are replaced only with --force. A file or a set gets its final name when it is
complete.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import os
import socket
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.client import HTTPException
from pathlib import Path

import torch

from basicsr.archs.from_weights import build_network, network_options
from basicsr.archs.restormer_arch import Restormer
from basicsr.data.layout import contents, find_set, match, problem_of
from basicsr.tasks import ARCHIVES, published_files
from basicsr.utils.archive import list_files, unpack
from basicsr.utils.checkpoint import load_weights
from basicsr.utils.cli import file_or_folder, report
from basicsr.utils.errors import (
    CheckpointError,
    DataError,
    DownloadError,
    InUseError,
    UsageError,
    UserError,
    WrongArchiveError,
)
from basicsr.utils.files import ROOT, absolute, lock_file, made_folder, scratch_folder, sync_folder
from basicsr.utils.remote import Archive, DataSet, RemoteFile
from basicsr.utils.text import listed, show

try:
    import gdown
    from gdown.exceptions import FileURLRetrievalError
except ImportError:
    gdown = None

TIMEOUT = 60  # seconds without a byte


def parser(folder: str) -> argparse.ArgumentParser:
    """`folder`: of the task, below the repository root."""
    choices = choices_of(folder)
    table = '\n'.join(f'  {group:9} {" ".join(names)}'.rstrip() for group, names in choices.items())
    p = argparse.ArgumentParser(
        description='Get the data sets and the published weights, and check them.',
        epilog=f'WHAT is one of these names; the first of a line stands for the others of its line:\n{table}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        '--data',
        nargs='+',
        required=True,
        choices=[*dict.fromkeys(name for group, names in choices.items() for name in (group, *names))],
        metavar='WHAT',
        help='data sets or weights: see below',
    )
    p.add_argument(
        '--output',
        type=file_or_folder,
        metavar='FOLDER',
        help=f'another folder; default: {folder}/Datasets of the repository, or {folder}/pretrained_models '
        'for the weights, where option files and demo.py look',
    )
    p.add_argument('--force', action='store_true', help='replace invalid files')
    p.add_argument('--keep_archives', action='store_true', help='keep the zip archives after unpacking')
    return p


def choices_of(folder: str) -> dict[str, list[str]]:
    """The words that stand for several files or sets, and the words for each of these."""
    weights, sets = published_files(folder), [one for archive in ARCHIVES[folder] for one in archive.sets]
    choices = {'weights': [remote.stem for remote in weights] if len(weights) > 1 else []}
    for group in ('train', 'val', 'test'):
        if names := [name_of(one, sets) for one in sets if one.group == group]:
            choices[group] = names
    return choices


def name_of(one: DataSet, sets: Sequence[DataSet]) -> str:
    """The word for a set: its name, which stands for the test set if there are several of this name."""
    is_clear = one.group == 'test' or [each.name for each in sets].count(one.name) == 1
    return one.name if is_clear else one.key


def main(args: argparse.Namespace, folder: str) -> int:
    output = absolute(args.output) if args.output else None
    jobs: list[Callable[[], None]] = []
    for remote, network in published_files(folder).items():
        if 'weights' in args.data or remote.stem in args.data:
            place = output or ROOT / folder / 'pretrained_models'
            jobs.append(partial(get_weights, remote, network, place, args.force))
    sets = [one for archive in ARCHIVES[folder] for one in archive.sets]
    names = {one.name.casefold() for one in sets}
    for archive in ARCHIVES[folder]:
        wanted = [one for one in archive.sets if {one.group, name_of(one, sets)} & {*args.data}]
        if wanted:
            download = Download(archive, output or ROOT / folder / 'Datasets', names, args.force)
            jobs.append(partial(download.get, wanted, args.keep_archives))
    status = 0
    for job in jobs:
        try:
            job()
        except UsageError:  # without gdown, no other set can be downloaded either
            raise
        except (UserError, OSError) as error:  # the other jobs do not depend on it
            report(str(error))
            status = 1
    return status


# --- weights ------------------------------------------------------------------------------------------------


def get_weights(remote: RemoteFile, network: Mapping[str, object], folder: Path, force: bool) -> None:
    """Downloads weights into a folder, unless it has them. Raises DownloadError."""
    path = folder / remote.name
    if path.exists():
        digest, problem = check_weights(path, remote, network)
        if not problem:
            print(f'{path} exists already, and is complete{_unverified(remote, digest)}', flush=True)
            return
        if not force:
            raise DownloadError(f'{path}: {problem}; move it, or replace it with --force')
    folder.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with scratch_folder(folder) as scratch:
            new = scratch / remote.name
            torch.hub.download_url_to_file(remote.url, str(new))
            digest, problem = check_weights(new, remote, network)
            if not problem:
                new.replace(path)
    except (OSError, HTTPException) as error:
        problem = str(error) or type(error).__name__
    finally:
        socket.setdefaulttimeout(before)
    if problem:
        raise DownloadError(f'{remote.url}: the download failed: {problem}; nothing was kept')
    print(
        f'{path} is complete{_unverified(remote, digest)}; its terms: https://github.com/swz30/Restormer',
        flush=True,
    )


def _unverified(remote: RemoteFile, digest: str) -> str:
    return '' if remote.sha256 else f', but not verified: its SHA-256 is {digest}; none is published'


def check_weights(path: Path, remote: RemoteFile, network: Mapping[str, object]) -> tuple[str, str]:
    """The SHA-256 of a file, and a description of its mistake, or ''. If no SHA-256 is published, the file must have
    the published size and all weights of the published network."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if remote.sha256:
        return digest, '' if digest == remote.sha256 else 'its SHA-256 is not that of the published weights'
    if remote.size and path.stat().st_size != remote.size:
        return digest, f'found {path.stat().st_size:,} bytes; allowed: {remote.size:,}'
    try:
        weights = load_weights(path)
        options = network_options(weights)
        build_network(weights)
    except CheckpointError as error:
        return digest, str(error).replace(str(path), remote.name)
    parameters = inspect.signature(Restormer).parameters.values()
    published = {each.name: each.default for each in parameters} | dict(network)
    others = [
        f'{name} {show(options.get(name))} instead of {show(value)}'
        for name, value in published.items()
        if show(options.get(name)) != show(value)
    ]
    return digest, f'it is of another network: {", ".join(others)}' if others else ''


# --- data sets ----------------------------------------------------------------------------------------------


class Download:
    """Downloads sets of an archive into a folder. `names`: of all sets of the task, in lower case."""

    def __init__(self, archive: Archive, datasets: Path, names: set[str], force: bool) -> None:
        self.archive, self.datasets, self.names, self.force = archive, datasets, names, force
        self.path = datasets / archive.name

    def get(self, wanted: Sequence[DataSet], keep_archive: bool) -> None:
        """Gets the sets that are not complete. After a UserError or OSError, the remaining ones are as before."""
        missing = []
        for one in wanted:
            place = self.datasets / one.place
            problem = problem_of(place, one)
            if not problem:
                kept = f'; {self.path} is not needed for it any more' if self.path.exists() else ''
                print(f'{place} exists already: {contents(place, one)}{kept}', flush=True)
            elif not self.force and any(map(_is_occupied, places_of(place, one))):
                raise DataError(f'{place}: {problem}; move the existing files, or replace them with --force')
            else:
                missing.append(one)
        if not missing:
            return
        self.datasets.mkdir(parents=True, exist_ok=True)
        try:
            with lock_file(self.datasets / f'.{self.archive.name}.lock'):
                self.fetch_and_unpack(missing)
                if not keep_archive:
                    self.path.unlink()
        except InUseError as error:
            raise DataError(f'{self.path}: {error}') from None

    def fetch_and_unpack(self, missing: Sequence[DataSet]) -> None:
        """Uses an archive that exists, such as one downloaded in a browser."""
        new = not self.path.exists()
        if new:
            fetch_from_drive(self.archive.drive_id, self.path)
        try:
            for one in missing:
                self.unpack(one)
        except WrongArchiveError as error:
            if new or not self.force:
                raise WrongArchiveError(f'{error}; --force downloads it anew') from None
            fetch_from_drive(self.archive.drive_id, self.path)
            for one in missing:
                self.unpack(one)

    def unpack(self, one: DataSet) -> None:
        place = self.datasets / one.place
        real = place.resolve()  # it may be a link to another disk
        finals = places_of(real, one)
        base = finals[0].parent
        name = '.unpacked' if base == real else f'.{real.name}.unpacked'
        try:
            with made_folder(base), scratch_folder(base, base / name) as scratch:
                new = self.extract(one, scratch / 'new')
                if problem := problem_of(new, one):
                    raise WrongArchiveError(f'{self.path}: {problem}')
                for source, final in zip(places_of(new, one), finals, strict=True):
                    if os.path.lexists(final):
                        final.rename(scratch / f'old {final.name}')
                    source.rename(final)
                for optional in one.optional:
                    if (new / optional).exists() and not (real / optional).exists():
                        (new / optional).rename(real / optional)
                sync_folder(base)
        except OSError as error:
            raise DataError(f'{place}: cannot be written: {error.strerror or error}') from None
        print(f'{place} is complete: {contents(place, one)}', flush=True)

    def extract(self, one: DataSet, destination: Path) -> Path:
        """Unpacks the files of a set, and returns their folder. Raises ArchiveError, OSError."""
        paths = list_files(self.path)
        try:
            found = find_set(paths, one, named=len(self.archive.sets) > 1)
        except ValueError as error:
            raise WrongArchiveError(f'{self.path}: {error}') from None
        others = self.names - {one.name.casefold()}
        if found.name.casefold() in others:  # RealBlur's two sets have pairs of the same names
            raise WrongArchiveError(f'{self.path}: found the set {found.name} in it; allowed: {one.name}')
        inside = [(path, path.relative_to(found)) for path in paths if path.is_relative_to(found)]
        wanted = [
            path
            for path, inner in inside
            if str(inner) in one.optional or any(match(part, inner) is not None for part in one.parts)
        ]
        excess = [path for path in wanted if path.name in one.excess]
        if excess:
            print(f'{self.path}: left out {listed(map(str, excess))}, which has no partner', flush=True)
        destination.mkdir()
        unpack(self.path, [path for path in wanted if path not in excess], destination)
        return destination / found


def places_of(place: Path, one: DataSet) -> list[Path]:
    """The files and folders to rename when the set is complete: those in its folder, or that folder itself if their
    names are not known."""
    names = [*dict.fromkeys(part.split('/')[0] for part in one.parts)]
    return [place] if any('*' in name for name in names) else [place / name for name in names]


def _is_occupied(place: Path) -> bool:
    """Whether the place is a folder that is not empty, or a file."""
    return any(place.iterdir()) if place.is_dir() else os.path.lexists(place)


def fetch_from_drive(file_id: str, path: Path) -> None:
    """Downloads a file from Google Drive; resumes what an earlier call has left. `path` is made or replaced when the
    file is complete. Raises DownloadError, or UsageError without a gdown that notices silence and truncated downloads.
    """
    if gdown is None or 'timeout' not in inspect.signature(gdown.download).parameters:
        raise UsageError("downloading data sets needs gdown 6.4 or later: pip install 'gdown>=6.4'")
    part = path.with_name(f'{path.name}.part')  # gdown would keep a file that exists
    url = f'https://drive.google.com/uc?id={file_id}'
    try:
        gdown.download(url=url, output=str(part), resume=True, timeout=TIMEOUT)
    except FileURLRetrievalError:
        raise DownloadError(
            f'{path}: Google Drive gives no access to the file, usually because it was downloaded too often today; '
            f'try again tomorrow, or download {url} in a browser to this very name, and repeat the command'
        ) from None
    except Exception as error:  # of several libraries
        text = ' '.join(str(error).split())
        raise DownloadError(
            f'{path}: the download from Google Drive failed: {type(error).__name__}: {text}; repeating the command '
            f'resumes it (if it never succeeds, remove {part.name}*)'
        ) from None
    if not zipfile.is_zipfile(part):
        part.unlink(missing_ok=True)
        raise DownloadError(f'{path}: Google Drive answered without a zip archive; nothing was kept')
    part.replace(path)
