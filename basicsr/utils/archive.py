"""Zip archives from the internet: neither their names nor their bytes are trusted."""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
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


def list_files(archive: Path) -> list[PurePosixPath]:
    """The files of an archive. Raises as `unpack`."""
    with _opened(archive) as (_, members):
        return [*members]


def unpack(archive: Path, wanted: Collection[PurePosixPath], destination: Path) -> None:
    """Unpacks some files of an archive below `destination`. Every byte is checked against the archive's checksums, and
    is on the disk at the end.

    Raises WrongArchiveError on damage, ArchiveError on links and on paths that leave the archive, and OSError where it
    cannot write.
    """
    with _opened(archive) as (file, members):
        chosen = [members[path] for path in wanted]
        check_room(destination, sum(info.file_size for info in chosen))
        for info in tqdm(chosen, desc=archive.name, unit='file'):
            with open(file.extract(info, destination), 'r+b') as unpacked:  # noqa: PTH123
                os.fsync(unpacked.fileno())


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[tuple[zipfile.ZipFile, dict[PurePosixPath, zipfile.ZipInfo]]]:
    try:
        with zipfile.ZipFile(archive) as file:
            yield file, _members(file, archive)
    except DAMAGES as error:
        raise WrongArchiveError(f'{archive}: cannot be unpacked: {" ".join(str(error).split())}') from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise WrongArchiveError(f'{archive}: cannot be unpacked: {error}') from None  # of bz2


def _members(file: zipfile.ZipFile, archive: Path) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The files in the archive by their paths. Raises ArchiveError on a link or a path that leaves the archive."""
    members = {}
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
            members[path] = info
    return members
