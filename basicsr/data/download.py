"""The download_data.py of a task: its published weights and its data sets, checked.

Existing files that are right are kept; others are replaced with --force only. A file or a set gets its final name when
it is complete.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import os
import socket
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from http.client import HTTPException
from pathlib import Path

import torch

from basicsr.data.sources import FolderSource
from basicsr.utils.archive import unpack_folders
from basicsr.utils.cli import file_or_folder, report
from basicsr.utils.errors import DataError, DownloadError, InUseError, UsageError, UserError, WrongArchiveError
from basicsr.utils.files import ROOT, absolute, lock_file, made_folder, scratch_folder, sync_folder
from basicsr.utils.remote import Archive, DataSet, RemoteFile

try:
    import gdown
    from gdown.exceptions import FileURLRetrievalError
except ImportError:
    gdown = None

TIMEOUT = 60  # seconds without a byte


def parser(folder: str, weights: Sequence[RemoteFile], archives: Sequence[Archive]) -> argparse.ArgumentParser:
    """`folder`: of the task, below the repository root."""
    p = argparse.ArgumentParser(description='Get the data sets and the published weights, and check them.')
    choices = choices_of(weights, archives)
    p.add_argument(
        '--data',
        nargs='+',
        required=True,
        choices=choices,
        metavar='WHAT',
        help=f'one or more of {", ".join(choices)}; test: all test sets; weights: the published ones',
    )
    p.add_argument(
        '--output',
        type=file_or_folder,
        metavar='FOLDER',
        help=f'another folder; default: {folder}/Datasets of the repository, or {folder}/pretrained_models '
        'for the weights, where option files and demo.py look',
    )
    p.add_argument('--force', action='store_true', help='replace existing files that are wrong')
    p.add_argument('--keep_archives', action='store_true', help='keep the zip archives after unpacking')
    return p


def choices_of(weights: Sequence[RemoteFile], archives: Sequence[Archive]) -> list[str]:
    """weights, the name of each file of weights if there are several, the groups of sets (train, test), and the name of
    each test set."""
    sets = [one for archive in archives for one in archive.sets]
    groups = dict.fromkeys(one.group for one in sets)
    files = [one.stem for one in weights] if len(weights) > 1 else []
    return ['weights', *files, *groups, *(one.name for one in sets if one.group == 'test')]


def main(
    args: argparse.Namespace, folder: str, weights: Sequence[RemoteFile], archives: Sequence[Archive]
) -> int:
    output = absolute(args.output) if args.output else None
    jobs: list[Callable[[], None]] = []
    for remote in weights:
        if 'weights' in args.data or remote.stem in args.data:
            place = output or ROOT / folder / 'pretrained_models'
            jobs.append(partial(get_weights, remote, place, args.force))
    names = {one.name.casefold() for archive in archives for one in archive.sets}
    for archive in archives:
        wanted = [
            one
            for one in archive.sets
            if one.group in args.data or (one.group == 'test' and one.name in args.data)
        ]
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


def get_weights(remote: RemoteFile, folder: Path, force: bool) -> None:
    """Downloads weights into a folder, unless it has them. Raises DownloadError."""
    path = folder / remote.name
    if path.exists():
        if hashlib.sha256(path.read_bytes()).hexdigest() == remote.sha256:
            print(f'{path} exists already, and is complete', flush=True)
            return
        if not force:
            raise DownloadError(
                f'{path}: its SHA-256 is not that of the published weights; move it, or replace it with --force'
            )
    folder.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        # Into a temporary file, which is renamed if the checksum is right.
        torch.hub.download_url_to_file(remote.url, str(path), remote.sha256)
    except (OSError, HTTPException, RuntimeError) as error:  # the last: another checksum
        raise DownloadError(f'{remote.url}: the download failed: {error}; nothing of it was kept') from None
    finally:
        socket.setdefaulttimeout(before)
    print(f'{path} is complete; its terms: https://github.com/swz30/Restormer', flush=True)


# --- data sets ----------------------------------------------------------------------------------------------


class Download:
    """Gets sets of an archive into a folder. `names`: of all sets of the task, in lower case."""

    def __init__(self, archive: Archive, datasets: Path, names: set[str], force: bool) -> None:
        self.archive, self.datasets, self.names, self.force = archive, datasets, names, force
        self.path = datasets / archive.name

    def get(self, wanted: Sequence[DataSet], keep_archive: bool) -> None:
        """Raises a UserError or OSError; the sets that are not complete are then as before."""
        missing = []
        for one in wanted:
            place = self.datasets / one.place
            if not problem_of(place, one):
                kept = f'; {self.path} is not needed for it any more' if self.path.exists() else ''
                print(f'{place} exists already: {one.pairs:,} pairs{kept}', flush=True)
            elif not self.force and any(_is_occupied(place / kind) for kind in one.kinds):
                raise DataError(
                    f'{place}: {" and ".join(one.kinds)} are not the {one.pairs:,} pairs of this set; move them, or '
                    'replace them with --force'
                )
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
        """An archive that exists is used, so that it can be downloaded in a browser."""
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
        try:
            # Within the set's folder, which may be a link to another disk.
            with made_folder(place), scratch_folder(place, place / '.unpacked') as scratch:
                several = len(self.archive.sets) > 1
                new = unpack_folders(self.path, one.kinds, scratch, one.name if several else None)
                others = self.names - {one.name.casefold()}
                if new.name.casefold() in others:  # RealBlur's two sets have pairs of the same names
                    raise WrongArchiveError(f'{self.path}: found the set {new.name} in it; allowed: {one.name}')
                if problem := problem_of(new, one):
                    raise WrongArchiveError(f'{self.path}: {problem}')
                for kind in one.kinds:
                    if os.path.lexists(place / kind):
                        (place / kind).rename(scratch / f'old {kind}')
                    (new / kind).rename(place / kind)
                sync_folder(place)
        except OSError as error:
            raise DataError(f'{place}: cannot be written: {error.strerror or error}') from None
        print(f'{place} is complete: {one.pairs:,} pairs', flush=True)


def _is_occupied(folder: Path) -> bool:
    """Whether a folder has something in it, or its name is that of a file."""
    return any(folder.iterdir()) if folder.is_dir() else os.path.lexists(folder)


def problem_of(place: Path, one: DataSet) -> str:
    """Describes what is wrong with the folders of a set; '' if each has one image for each pair, with the same names.
    (The archives have no published checksum.)"""
    try:
        names = [set(FolderSource(place / kind).names) for kind in one.kinds]
    except DataError as error:
        return str(error)
    if all(len(each) == one.pairs and each == names[0] for each in names):
        return ''
    found = ' and '.join(f'{len(each):,} ({kind})' for each, kind in zip(names, one.kinds, strict=True))
    return f'found {found} images; allowed: {one.pairs:,}, with the same names in each folder'


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
        raise DownloadError(
            f'{path}: found no zip archive in the answer of Google Drive; nothing of it was kept'
        )
    part.replace(path)
