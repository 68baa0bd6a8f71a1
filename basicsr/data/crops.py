"""The crops that large frames are cut into for training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Window(NamedTuple):
    """Rows top … top + height - 1 and columns left … left + width - 1 of an image."""

    top: int
    left: int
    height: int
    width: int


def crop_windows(height: int, width: int, size: int, stride: int) -> list[Window]:
    """Squares of `size` pixels every `stride` pixels, and at the last row and column, row by row. Sides shorter than
    `size` are used in full. Raises ValueError on a size or stride below 1.

    >>> [tuple(window) for window in crop_windows(400, 600, size=512, stride=256)]
    [(0, 0, 400, 512), (0, 88, 400, 512)]
    """
    if size < 1 or stride < 1:
        raise ValueError(f'crop size and stride: found {size} and {stride}; allowed: 1 or more')
    return [
        Window(top, left, min(height, size), min(width, size))
        for top in _starts(height, size, stride)
        for left in _starts(width, size, stride)
    ]


def numbered(name: str, windows: Iterable[Window]) -> Iterator[tuple[str, Window]]:
    """Windows of an image with the names they have as files: `<name>-<n>`, n from 1."""
    for number, window in enumerate(windows, 1):
        yield f'{name}-{number}', window


def centre_window(height: int, width: int, size: int) -> Window:
    """The square of `size` pixels in the middle, rounded towards the top left. Sides shorter than `size` are used in
    full."""
    sides = min(height, size), min(width, size)
    return Window((height - sides[0]) // 2, (width - sides[1]) // 2, *sides)


def _starts(length: int, size: int, stride: int) -> list[int]:
    last = max(length - size, 0)
    return [*range(0, last, stride), last]
