"""Zip archives from the internet: neither their names nor their bytes are trusted."""

from __future__ import annotations

import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from basicsr.utils.errors import ArchiveError, WrongArchiveError
from basicsr.utils.files import check_room

SYSTEM_FOLDER = '__MACOSX'  # macOS adds it, with images of the same names

# zipfile raises these on damaged bytes, a password (RuntimeError) or an unknown compression (NotImplementedError).
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


def unpack_folders(archive: Path, names: Sequence[str], destination: Path, parent: str | None = None) -> Path:
    """Unpacks the folders `names` below `destination`, and returns the folder that holds them: they stand side by side
    somewhere in the archive, or, with `parent`, in a folder of that name. Every byte is checked against the archive's
    checksums, and is on the disk at the end.

    Raises WrongArchiveError on damage or without such folders, ArchiveError on links and on paths that leave the
    archive, and OSError where it cannot write.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = _members(file, archive)
            place = _side_by_side([path for _, path in members], names, parent, archive)
            chosen = [
                info for info, path in members if any(path.is_relative_to(place / name) for name in names)
            ]
            check_room(destination, sum(info.file_size for info in chosen))
            for info in tqdm(chosen, desc=archive.name, unit='file'):
                with open(file.extract(info, destination), 'r+b') as unpacked:  # noqa: PTH123
                    os.fsync(unpacked.fileno())
            return destination / place
    except DAMAGES as error:
        raise WrongArchiveError(f'{archive}: cannot be unpacked: {" ".join(str(error).split())}') from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise WrongArchiveError(f'{archive}: cannot be unpacked: {error}') from None  # of bz2


def _members(file: zipfile.ZipFile, archive: Path) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The files in the archive and their paths. Raises ArchiveError on a link or a path that leaves the archive."""
    members = []
    for info in file.infolist():
        info.filename = info.filename.replace('\\', '/')
        path = PurePosixPath(info.filename)
        wrong = ''
        if path.is_absolute() or '..' in path.parts or re.match('[A-Za-z]:', info.filename):
            wrong = 'a path that leads out of the folder'
        elif stat.S_ISLNK(info.external_attr >> 16):
            wrong = 'a link'
        if wrong:
            raise ArchiveError(
                f'{archive}: found {info.orig_filename!r} in it, {wrong}; allowed: files and folders; nothing '
                'was unpacked'
            )
        if path.parts and not info.is_dir() and path.parts[0] != SYSTEM_FOLDER:
            members.append((info, path))
    return members


def _side_by_side(
    paths: Sequence[PurePosixPath], names: Sequence[str], parent: str | None, archive: Path
) -> PurePosixPath:
    """The one place of the folders. Raises WrongArchiveError."""
    places: dict[PurePosixPath, set[str]] = {}
    for path in paths:
        depth = next((depth for depth, part in enumerate(path.parts[:-1]) if part in names), None)
        if depth is not None:
            places.setdefault(PurePosixPath(*path.parts[:depth]), set()).add(path.parts[depth])
    chosen = [
        place
        for place, found in places.items()
        if found == set(names) and (parent is None or place.name.casefold() == parent.casefold())
    ]
    if len(chosen) != 1:
        tops = sorted({path.parts[0] for path in paths})
        found = f'{len(chosen)} places' if chosen else f'no place (but {", ".join(tops[:8]) or "nothing"})'
        inside = f' in {parent}' if parent else ''
        raise WrongArchiveError(
            f'{archive}: found {found} with folders {" and ".join(names)}{inside} in it; allowed: one; nothing was '
            'unpacked'
        )
    return chosen[0]
