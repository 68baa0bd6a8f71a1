"""The image files of a folder, and the names of their results."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from natsort import natsorted

from basicsr.images.decode import IMAGE_SUFFIXES
from basicsr.images.reader import _KINDS
from basicsr.utils.errors import ImageFileError

LISTED = 8  # kinds of files in a message


LONGEST_NAME = 255  # bytes, of a file


def list_images(file_or_folder: str | os.PathLike[str]) -> list[Path]:
    """The file itself, of whatever name, or the folder's images in natural order (2 before 10), without hidden
    ones and those of folders in it. Raises ImageFileError if there are none."""
    path = Path(file_or_folder)
    try:
        if not path.is_dir():
            if not path.exists():
                raise ImageFileError(f'{path}: there is no such file or folder')
            return [path]
        found = [
            file
            for file in sorted(path.iterdir())
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith('.') and not _is_folder(file)
        ]
    except OSError as error:
        raise ImageFileError(f'{path} cannot be read: {error.strerror or error}') from error
    if not found:
        others = left_alone(path)
        raise ImageFileError(f'{path} has no images in it{others and f" (but {others})"}; allowed: {_KINDS}')
    return natsorted(found, key=lambda file: file.name)


def left_alone(path: Path, results: Path | None = None) -> str:
    """What `list_images` leaves out of a folder and is not hidden, by kind: '40 .heic files, 2 folders'; '' if there
    is nothing, or `path` is no folder. Where the folder `results` is does not count."""
    if not path.is_dir():
        return ''
    kinds: Counter[str] = Counter()
    for file in path.iterdir():
        if file.name.startswith('.'):
            continue
        if _is_folder(file):
            if results is not None and results.resolve().is_relative_to(file.resolve()):
                continue
            kinds['folder'] += 1
        elif file.suffix.lower() not in IMAGE_SUFFIXES:
            kinds[f'{file.suffix.lower()} file'.lstrip()] += 1
    common = kinds.most_common(LISTED)
    said = [f'{number} {kind}{"s" * (number > 1)}' for kind, number in sorted(common)]
    more = kinds.total() - sum(number for _, number in common)
    return ', '.join([*said, f'{more} more'] if more else said)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # nobody can tell; reading it will say why
        return False


def output_names(paths: Iterable[Path]) -> dict[Path, str]:
    """A PNG file name for each path: `<stem>.png`, or `<stem>.<ext>.png` where stems collide, or, where even
    those do, a number more; cut where that is too long for a file. No two are the same file, on a file system that
    ignores letter case either."""
    paths = list(dict.fromkeys(paths))
    stems = Counter(_folded(path.stem) for path in paths)
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        end = '' if stems[_folded(path.stem)] == 1 else path.suffix
        name, number = _named(path.stem, f'{end}.png'), 1
        while _folded(name) in taken:
            number += 1
            name = _named(path.stem, f'{end}-{number}.png')
        taken.add(_folded(name))
        names[path] = name
    return names


def _named(stem: str, end: str) -> str:
    while len(os.fsencode(stem + end)) > LONGEST_NAME:
        stem = stem[:-1]
    return stem + end


def _folded(name: str) -> str:
    """The same for two names that some file system takes for one."""
    return unicodedata.normalize('NFC', name.casefold())
