"""The files of a data set, in a folder or in the list of an archive."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath, PurePosixPath

from natsort import natsorted

from basicsr.images.reader import IMAGE_SUFFIXES
from basicsr.utils.remote import DataSet
from basicsr.utils.text import listed

Texts = tuple[str, ...]  # in place of each `*`


def match(part: str, path: PurePath) -> Texts | None:
    """The text for each `*` of a part of a `DataSet`; None if the path is not one of its files.

    >>> match('*/*_GT', PurePath('scene/7_GT.PNG'))
    ('scene', '7')
    """
    if any(each.startswith('.') for each in path.parts):  # hidden
        return None
    if '.' not in part:
        if not path.name.lower().endswith(IMAGE_SUFFIXES):
            return None
        path = path.with_suffix('')
    found = re.fullmatch(re.escape(part).replace(r'\*', '([^/]*)'), path.as_posix())
    return found.groups() if found else None


def files_of(folder: Path, part: str) -> list[tuple[Texts, Path]]:
    """The files of a part in natural order (2 before 10), with their texts; none if the folder does not exist."""
    paths = natsorted(folder.glob(part if '.' in part else f'{part}.*'), key=str)
    found = ((match(part, path.relative_to(folder)), path) for path in paths if path.is_file())
    return [(texts, path) for texts, path in found if texts is not None]


def problem_of(place: Path, one: DataSet) -> str:
    """Describes the mistake in the files of a set; '' if each part has the right number, with the same names. (The
    archives have no published checksum.)"""
    found = {part: sorted(texts for texts, _ in files_of(place, part)) for part in one.parts}
    several = [texts for part, texts in found.items() if '*' in part]
    count = one.number or max([1, *map(len, several)])
    complete = all(len(texts) == (count if '*' in part else 1) for part, texts in found.items())
    if complete and not (one.same_names and any(texts != several[0] for texts in several)):
        return ''
    numbers = ' and '.join(f'{len(texts):,} ({_words(part)})' for part, texts in found.items())
    allowed = f'{one.number:,}' if one.number else '1 or more' if several else '1'
    each = ' of each' if len(found) > 1 else ''
    names = ', with the same names' if one.same_names and len(several) > 1 else ''
    return f'found {numbers} files; allowed: {allowed}{each}{names}'


def contents(place: Path, one: DataSet) -> str:
    """The number of files of a complete set, in words."""
    numbers = [len(files_of(place, part)) for part in one.parts]
    if len(numbers) == 1:
        return f'{numbers[0]:,} images'
    pairs = len(numbers) == 2 and all('*' in part for part in one.parts)
    return f'{numbers[0]:,} pairs' if pairs else f'{sum(numbers):,} files'


def find_set(paths: Sequence[PurePosixPath], one: DataSet, named: bool) -> PurePosixPath:
    """The folder of an archive that holds all parts of a set. `named`: it must be in a folder of the set's name, which
    otherwise only decides between several. Raises ValueError that names the folders found."""
    places: dict[PurePosixPath, set[str]] = defaultdict(set)
    for path in paths:
        for part in one.parts:
            depth = part.count('/') + 1
            if match(part, PurePosixPath(*path.parts[-depth:])) is not None:
                places[PurePosixPath(*path.parts[:-depth])].add(part)
    chosen = [place for place, parts in places.items() if parts == {*one.parts}]
    if named or len(chosen) > 1:
        own = [place for place in chosen if one.name.casefold() in map(str.casefold, place.parts)]
        chosen = own if named or own else chosen
    if len(chosen) != 1:
        found = f'{len(chosen)} such folders: {listed(map(str, chosen))}' if chosen else _folders(paths)
        inside = f' in a folder {one.name}' if named else ''
        raise ValueError(
            f'found {found}; allowed: one folder with {" and ".join(map(_words, one.parts))}{inside}; nothing was '
            'unpacked'
        )
    return chosen[0]


def _words(part: str) -> str:
    return 'images' if part == '*' else part


def _folders(paths: Iterable[PurePosixPath]) -> str:
    numbers = Counter(f'{path.parent}/*{path.suffix}' for path in paths)
    each = [f'{number:,} {files}' for files, number in natsorted(numbers.items())]
    return listed(each, most=20) or 'no files'
