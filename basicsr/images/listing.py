"""The image files of a folder, and the names of their results."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from natsort import natsorted

from basicsr.images.reader import IMAGE_SUFFIXES, KINDS
from basicsr.utils.errors import ImageFileError
from basicsr.utils.text import listed

Pairing = Literal['name', 'order']

LISTED = 8  # kinds of files in a message
LONGEST_NAME = 255  # bytes of a file name
_NEEDS_PLUGIN = tuple(suffix for suffix in ('.heic', '.heif') if suffix not in IMAGE_SUFFIXES)


def list_images(file_or_folder: str | os.PathLike[str]) -> list[Path]:
    """The file itself, whatever its name, or a folder's images in natural order (2 before 10), without hidden files
    and subfolders. Raises ImageFileError if there are none."""
    path = Path(file_or_folder)
    try:
        if not path.is_dir():
            if not path.exists():
                raise ImageFileError(f'{path}: no such file or folder')
            return [path]
        files = [file for file in path.iterdir() if not file.name.startswith('.')]
        found = sorted(file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and not _is_folder(file))
    except OSError as error:
        raise ImageFileError(f'{path}: cannot be read: {error.strerror or error}') from error
    if not found:
        others = left_alone(path)
        raise ImageFileError(f'{path}: contains no images{others and f" (but {others})"}; allowed: {KINDS}')
    return natsorted(found, key=lambda file: file.name)


def pairing_of(*names: Collection[str]) -> Pairing:
    """How to match the images of several folders: by natural order if most names are not in all folders, as in DPDD's
    original files, whose camera numbers both views in one series."""
    common = set(names[0]).intersection(*names)
    return 'name' if 2 * len(common) >= min(map(len, names)) else 'order'


def right_views(left: list[Path], right: list[Path]) -> tuple[dict[Path, Path], Pairing]:
    """The right view of each left one, and how they are matched; names count without suffix. Raises ImageFileError."""
    by_name = {path.stem: path for path in right}
    pairing = pairing_of([path.stem for path in left], by_name)
    if pairing == 'order' and len(left) == len(right):
        return dict(zip(left, right, strict=True)), pairing
    unpaired = [path for path in left if path.stem not in by_name]
    if not unpaired and len(left) == len(right) == len(by_name):
        return {path: by_name[path.stem] for path in left}, pairing
    others = [path for path in right if path.stem not in {each.stem for each in left}]
    names = listed([path.name for path in (*unpaired, *others)]) or 'names that occur twice'
    raise ImageFileError(
        f'found {len(left)} left and {len(right)} right views, not in pairs: {names}; allowed: two images of one name '
        'for each pair, or as many left as right ones'
    )


def left_alone(path: Path, results: Path | None = None) -> str:
    """Counts the visible files and folders that `list_images` leaves out, by kind: '40 .mov files, 2 folders'. '' if
    there are none or `path` is not a folder. The folder that contains `results` does not count."""
    if not path.is_dir():
        return ''
    kinds: Counter[str] = Counter()
    for file in path.iterdir():
        if file.name.startswith('.'):
            continue
        suffix = file.suffix.lower()
        if _is_folder(file):
            kinds['folder'] += results is None or not results.resolve().is_relative_to(file.resolve())
        elif suffix not in IMAGE_SUFFIXES:
            kinds[f'{suffix} file'.lstrip()] += 1
    kinds = +kinds
    common = kinds.most_common(LISTED)
    parts = [f'{number} {kind}{"s" * (number > 1)}' for kind, number in sorted(common)]
    if more := kinds.total() - sum(number for _, number in common):
        parts.append(f'{more} more')
    hint = any(f'{suffix} file' in kinds for suffix in _NEEDS_PLUGIN)
    return ', '.join(parts) + ('; HEIC needs `pip install pillow-heif`' if hint else '')


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # unknown; reading the file will report the error
        return False


def output_names(paths: Iterable[Path]) -> dict[Path, str]:
    """A PNG file name for each path: `<stem>.png`, or `<stem>.<ext>.png` if stems collide, with a number if those
    collide, too; shortened to the longest allowed name. No two names are the same file, even if the file system
    ignores letter case."""
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
    """Equal for names that a file system may treat as the same."""
    return unicodedata.normalize('NFC', name.casefold())
