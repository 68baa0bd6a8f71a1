"""Images that belong together, in files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from basicsr.data.layout import files_of
from basicsr.images.reader import decode_image
from basicsr.utils.errors import DataError
from basicsr.utils.text import listed


class ImageFiles:
    """`files`: (name, kind → file) of images of the same size. Raises DataError if a name is repeated."""

    def __init__(self, files: Iterable[tuple[str, Mapping[str, Path]]]) -> None:
        items = [*files]
        self.names = [name for name, _ in items]
        self.files = [each for _, each in items]
        _check_names((name, next(iter(each.values()))) for name, each in items)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> dict[str, np.ndarray]:
        """The images by kind, (H, W, 3) uint8 or uint16. Raises DataError that names those that cannot be read, or are
        not of the first one's size."""
        images: dict[str, np.ndarray] = {}
        problems = []
        for kind, path in self.files[index].items():
            try:
                images[kind] = decode_image(path.read_bytes(), str(path), channels=3).pixels
            except DataError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f'{path}: cannot be read: {error.strerror}')
        if problems:
            raise DataError('; '.join(problems))
        (first, allowed), *others = ((self.files[index][kind], _size(image)) for kind, image in images.items())
        for path, found in others:
            if found != allowed:
                raise DataError(f'{path}: found {found}; allowed: the size of its partner {first}, {allowed}')
        return images


def partners(
    folder: Path, parts: Mapping[str, str], by_order: bool = False
) -> tuple[ImageFiles, Literal['name', 'natural order']]:
    """Puts the images of several parts of a `DataSet` together, and returns how: by name, if the texts for `*` are the
    same in all parts.

    Args:
        parts: kind → part. The first part gives the images their names.
        by_order: if most names differ, pair equal numbers of images in natural order (2 before 10).

    Raises DataError if there are none, if some have no partner, or if two have the same name.
    """
    found = {kind: files_of(folder, part) for kind, part in parts.items()}
    if not any(found.values()):
        raise DataError(f'{folder}: found no images {" and ".join(parts.values())}; allowed: 1 or more of each')
    for files in found.values():
        _check_names(files)
    by_texts = [dict(files) for files in found.values()]
    common = set.intersection(*map(set, by_texts))
    if not by_order or 2 * len(common) >= min(map(len, by_texts)):
        lonely = [path for files in found.values() for texts, path in files if texts not in common]
        if lonely:
            have = 's have' if len(lonely) > 1 else ' has'
            raise DataError(
                f'{folder}: {len(lonely)} image{have} no partner of the same name: {listed(map(str, lonely))}'
            )
        groups = [[paths[texts] for paths in by_texts] for texts in by_texts[0]]
        return _grouped(parts, groups), 'name'
    if len({*map(len, by_texts)}) > 1:
        numbers = ' and '.join(f'{len(files):,} ({parts[kind]})' for kind, files in found.items())
        raise DataError(f'{folder}: found {numbers} images; allowed: the same names in all, or the same number')
    groups = [[*paths] for paths in zip(*(paths.values() for paths in by_texts), strict=True)]
    return _grouped(parts, groups), 'natural order'


def _grouped(kinds: Iterable[str], groups: Iterable[Sequence[Path]]) -> ImageFiles:
    return ImageFiles((group[0].stem, dict(zip(kinds, group, strict=True))) for group in groups)


def _check_names(files: Iterable[tuple[object, Path]]) -> None:
    """`files`: (name, file). Raises DataError if a name is repeated."""
    by_name = defaultdict(list)
    for name, path in files:
        by_name[name].append(str(path))
    if repeated := [' and '.join(paths) for paths in by_name.values() if len(paths) > 1]:
        raise DataError(f'found files of the same name: {listed(repeated)}; allowed: one of each')


def _size(image: np.ndarray) -> str:
    return f'{image.shape[1]}x{image.shape[0]}'
