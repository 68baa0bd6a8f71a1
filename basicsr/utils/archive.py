"""Zip archives from elsewhere, whose names and bytes are not trusted."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from basicsr.utils.errors import ArchiveError, WrongArchiveError
from basicsr.utils.files import check_room

NOT_OURS = '__MACOSX'  # a folder of small files that one system adds

# What the library raises on wrong bytes, on a wanted password (RuntimeError), and on a compression that it has not.
DAMAGES = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,
)

Members = list[tuple[zipfile.ZipInfo, PurePosixPath]]


def unpack_folders(archive: Path, names: Sequence[str], destination: Path) -> PurePosixPath:
    """Writes the folders `names` to `destination`, an empty folder, from wherever they stand side by side in the
    archive: from the folder returned. Every byte is checked against the archive's checksums, and is on the disk at
    the end.

    Raises ArchiveError, WrongArchiveError if bytes are wrong or the folders are not there, and OSError where it cannot
    write.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = _members(file, archive)
            place, chosen = _side_by_side(members, names, archive)
            check_room(destination, sum(info.file_size for info, _ in chosen))
            for info, path in tqdm(chosen, desc=archive.name, unit='file'):
                _write(file, info, destination / path)
            return place
    except DAMAGES as error:
        raise WrongArchiveError(f'{archive}: cannot be unpacked: {" ".join(str(error).split())}') from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise WrongArchiveError(f'{archive}: cannot be unpacked: {error}') from None  # of bz2


def _members(file: zipfile.ZipFile, archive: Path) -> Members:
    """The files in the archive, and where they are in it. Raises ArchiveError if one of any kind is not inside."""
    members = []
    for info in file.infolist():
        name = info.filename.replace('\\', '/')
        path = PurePosixPath(name)
        if path.is_absolute() or '..' in path.parts or re.match('[A-Za-z]:', name):
            raise ArchiveError(
                f'{archive}: found {info.filename!r} in it, which leads out of the folder; allowed: paths below it; '
                'nothing was unpacked'
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ArchiveError(
                f'{archive}: found the link {info.filename!r} in it; allowed: files and folders; nothing was unpacked'
            )
        if path.parts and not name.endswith('/') and path.parts[0] != NOT_OURS:
            members.append((info, path))
    return members


def _side_by_side(members: Members, names: Sequence[str], archive: Path) -> tuple[PurePosixPath, Members]:
    """Where folders of these names are, and the files below them, with their paths from there."""
    places: dict[PurePosixPath, Members] = {}
    for info, path in members:
        for depth, part in enumerate(path.parts[:-1]):
            if part in names:
                below = PurePosixPath(*path.parts[depth:])
                places.setdefault(PurePosixPath(*path.parts[:depth]), []).append((info, below))
                break
    chosen = [
        (place, files) for place, files in places.items() if {path.parts[0] for _, path in files} == set(names)
    ]
    if len(chosen) != 1:
        tops = sorted({path.parts[0] for _, path in members})
        found = f'{len(chosen)} places' if chosen else f'no place (but {", ".join(tops[:8]) or "nothing"})'
        raise WrongArchiveError(
            f'{archive}: found {found} with folders {" and ".join(names)} in it; allowed: one; nothing was unpacked'
        )
    return chosen[0]


def _write(file: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        target = path.open('xb')
    except FileExistsError:
        raise zipfile.BadZipFile(f'{info.filename!r} is in it twice') from None
    with target, file.open(info) as source:
        shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
        os.fsync(target.fileno())
