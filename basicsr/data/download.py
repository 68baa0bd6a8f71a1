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
from typing import NamedTuple
from urllib.error import URLError

import torch

from basicsr.data.sources import FolderSource
from basicsr.utils.archive import unpack_folders
from basicsr.utils.cli import report
from basicsr.utils.errors import DataError, DownloadError, InUseError, UsageError, UserError, WrongArchiveError
from basicsr.utils.files import ROOT, absolute, check_room, lock_file, made_folder, scratch_folder, sync_folder
from basicsr.utils.remote import Archive, DataSet, RemoteFile
from basicsr.utils.text import listed

try:
    import gdown
    from gdown.exceptions import FileURLRetrievalError
except ImportError:
    gdown = None

WITHOUT_GDOWN = "the package gdown is needed, which is not installed, or too old: pip install 'gdown>=6.4'"
TIMEOUT = 60  # seconds without a byte


def parser(folder: str, archives: Sequence[Archive]) -> argparse.ArgumentParser:
    """`folder`: of the task, below the repository root."""
    p = argparse.ArgumentParser(description='Get the data sets and the published weights, and check them.')
    choices = choices_of(archives)
    p.add_argument(
        '--data',
        nargs='+',
        required=True,
        choices=choices,
        metavar='WHAT',
        help=f'one or more of {", ".join(choices)}; test: all test sets; weights: the published ones, for '
        'non-commercial use only',
    )
    p.add_argument(
        '--output',
        type=Path,
        metavar='FOLDER',
        help=f'another folder; default: {folder}/Datasets of the repository, or {folder}/pretrained_models '
        'for the weights, where option files and demo.py look',
    )
    p.add_argument('--force', action='store_true', help='replace existing files that are wrong')
    p.add_argument('--keep_archives', action='store_true', help='keep the zip archives after unpacking')
    return p


def choices_of(archives: Sequence[Archive]) -> list[str]:
    """weights, the groups of sets (train, test), and the name of each test set."""
    sets = [one for archive in archives for one in archive.sets]
    return [
        'weights',
        *dict.fromkeys(one.group for one in sets),
        *(one.name for one in sets if one.group == 'test'),
    ]


def main(args: argparse.Namespace, folder: str, weights: RemoteFile, archives: Sequence[Archive]) -> int:
    output = absolute(args.output) if args.output else None
    datasets = output or ROOT / folder / 'Datasets'
    jobs: list[Callable[[], None]] = []
    if 'weights' in args.data:
        jobs.append(partial(get_weights, weights, output or ROOT / folder / 'pretrained_models', args.force))
    names = {one.name.casefold() for archive in archives for one in archive.sets}
    for archive in archives:
        sets = [
            one
            for one in archive.sets
            if one.group in args.data or (one.group == 'test' and one.name in args.data)
        ]
        if sets:
            download = Download(archive, sets, datasets, names, args.force, args.keep_archives)
            if not (all(map(download.is_complete, sets)) or os.path.lexists(download.path)):
                check_gdown()
            jobs.append(download.get)
    failed = False
    for job in jobs:
        try:
            job()
        except (UserError, OSError) as error:  # the other jobs do not depend on it
            report(str(error))
            failed = True
    return 1 if failed else 0


# --- weights ------------------------------------------------------------------------------------------------


def get_weights(remote: RemoteFile, folder: Path, force: bool) -> None:
    """Downloads weights into a folder that has none of that name. Raises DownloadError."""
    path = folder / remote.name
    if path.exists():
        if is_at(path, remote):
            print(f'{path} exists already, and is complete', flush=True)
            return
        if not force:
            raise DownloadError(
                f'{path}: found another file than the published weights, by its size or checksum; allowed: these, '
                'or none; --force replaces it'
            )
    fetch(remote, path)
    print(f'{path} is complete; its licence allows non-commercial use only', flush=True)


def is_at(path: Path, remote: RemoteFile) -> bool:
    """Whether a file is the remote one, by size and checksum. Raises DownloadError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open('rb') as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            return file.tell() == remote.size and digest.hexdigest() == remote.sha256
    except OSError as error:
        raise DownloadError(f'{path}: cannot be read: {error.strerror}') from None


def fetch(remote: RemoteFile, path: Path) -> None:
    """Downloads a file by HTTP to `path`, which is made or replaced once the checksum is right. Raises
    DownloadError."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_room(path.parent, remote.size)
        torch.hub.download_url_to_file(remote.url, str(path), remote.sha256)
        sync_folder(path.parent)
    except (
        URLError,
        ConnectionError,
        TimeoutError,
        HTTPException,
        RuntimeError,
    ) as error:  # the last: the checksum
        raise DownloadError(f'{remote.url}: the download failed: {error}; nothing of it was kept') from None
    except OSError as error:
        raise DownloadError(f'{path}: cannot be written: {error.strerror or error}') from None
    finally:
        socket.setdefaulttimeout(before)


# --- data sets ----------------------------------------------------------------------------------------------


class Download(NamedTuple):
    """Gets the sets `wanted` of an archive. `names`: of all sets of the task, in lower case."""

    archive: Archive
    wanted: list[DataSet]
    datasets: Path
    names: set[str]
    force: bool
    keep: bool

    @property
    def path(self) -> Path:
        return self.datasets / self.archive.name

    def place(self, one: DataSet) -> Path:
        return self.datasets / one.place

    def is_complete(self, one: DataSet) -> bool:
        try:
            check_pairs(self.place(one), one, '')
        except DataError:
            return False
        return True

    def get(self) -> None:
        """Raises ArchiveError, DataError or DownloadError; the sets that are not complete are then as before."""
        missing = []
        for one in self.wanted:
            if self.is_complete(one):
                kept = f'; {self.path} is not needed for it any more' if self.path.exists() else ''
                print(f'{self.place(one)} exists already: {one.pairs:,} pairs{kept}', flush=True)
            elif not self.force and any(is_occupied(self.place(one) / kind) for kind in one.kinds):
                raise DataError(
                    f'{self.place(one)}: found {" and ".join(one.kinds)} with other files than the {one.pairs:,} '
                    'pairs; allowed: these, or nothing; --force replaces them'
                )
            else:
                missing.append(one)
        if not missing:
            return
        try:
            with made_folder(self.datasets), lock_file(self.datasets / f'.{self.archive.name}.lock'):
                missing = [
                    one for one in missing if not self.is_complete(one)
                ]  # another process may have been first
                self._fetch_and_unpack(missing)
        except InUseError as error:
            raise DataError(f'{self.path}: {error}') from None
        for one in missing:
            print(f'{self.place(one)} is complete: {one.pairs:,} pairs', flush=True)

    def _fetch_and_unpack(self, missing: list[DataSet]) -> None:
        new = not os.path.lexists(self.path)
        if new:
            fetch_zip_from_drive(self.archive.drive_id, self.path)
        try:
            for one in missing:
                self._unpack(one)
        except WrongArchiveError as error:
            if new or not self.force:
                raise WrongArchiveError(f'{error}; --force downloads it anew') from None
            check_gdown(str(error))
            fetch_zip_from_drive(self.archive.drive_id, self.path)
            for one in missing:
                self._unpack(one)
        if not self.keep:
            self.path.unlink()

    def _unpack(self, one: DataSet) -> None:
        place = self.place(one)
        near = place if place.is_dir() else place.parent  # on the same disk
        try:
            with made_folder(near), scratch_folder(near, near / f'.{one.name}.unpacked') as scratch:
                new = unpack_folders(
                    self.path, one.kinds, scratch, one.name if len(self.archive.sets) > 1 else None
                )
                inside = new.relative_to(scratch).name
                if inside.casefold() in self.names - {one.name.casefold()}:
                    # RealBlur's two sets have as many pairs, with the same names
                    raise WrongArchiveError(f'{self.path}: found the set {inside} in it; allowed: {one.name}')
                try:
                    check_pairs(new, one, str(self.path))
                except DataError as error:
                    raise WrongArchiveError(str(error)) from None
                if near != place:
                    new.rename(place)
                else:
                    for kind in one.kinds:
                        if os.path.lexists(place / kind):
                            (place / kind).rename(scratch / f'old {kind}')  # removed with it
                        (new / kind).rename(place / kind)
                sync_folder(near)
        except OSError as error:
            raise DataError(f'{place}: cannot be written: {error.strerror or error}') from None


def check_pairs(place: Path, one: DataSet, where: str) -> None:
    """Raises DataError, about `where`, unless the folders have the right number of images, with the same names. (The
    archives have no published checksum.)"""
    names = [set(FolderSource(place / kind).names) for kind in one.kinds]
    if lonely := sorted({name for each in names for name in each ^ names[0]}):
        raise DataError(
            f'{where}: found {len(lonely)} image{"s" * (len(lonely) > 1)} without a partner of the same name: '
            f'{listed(lonely)}'
        )
    if len(names[0]) != one.pairs:
        raise DataError(f'{where}: found {len(names[0]):,} pairs; allowed: {one.pairs:,}')


def is_occupied(folder: Path) -> bool:
    """Whether a folder has something in it, or its name is that of a file."""
    return any(folder.iterdir()) if folder.is_dir() else os.path.lexists(folder)


# --- Google Drive -------------------------------------------------------------------------------------------


def check_gdown(problem: str = '') -> None:
    """Raises UsageError unless a gdown is installed that notices silence and truncated downloads."""
    if gdown is None or 'timeout' not in inspect.signature(gdown.download).parameters:
        raise UsageError(f'{problem}{"; " * bool(problem)}to download data sets, {WITHOUT_GDOWN}')


def fetch_zip_from_drive(file_id: str, path: Path) -> None:
    """Downloads a zip archive from Google Drive; resumes what an earlier call has left. `path` is made or replaced
    when the archive is complete. Raises DownloadError, or OSError where it cannot write."""
    part = path.with_name(
        f'{path.name}.part'
    )  # gdown appends to <part>…part, and renames it to this at the end
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
    sync_folder(path.parent)
