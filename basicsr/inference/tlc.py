"""Test-time local converter (Chu et al., ECCV 2022, arXiv 2112.04491): attention over local windows.

A network trained on patches gathers its attention statistics from a patch; over a whole photograph they are of
another kind. So every pixel's result is the mean of the results of the windows that cover it, each window with
its own statistics.

That mean is linear in the attention matrices, and the statistics are sums over pixels. Cut the plane at all
edges of windows: inside one of these *cells* every pixel is covered by the same windows. A window's statistics are
the sums of its cells', and one matrix per cell, the mean of the matrices of the windows over it, gives the result.
No pixel is ever worked on twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import torch
from torch import Tensor

DEFAULT_WINDOW = 384  # pixels at full resolution: 1.5 × 256, a patch in the middle of the paper's training


def windows(length: int, window: int) -> list[tuple[int, int]]:
    """Where the windows along an axis begin and end: of equal size, evenly spread, the last ends at `length`."""
    size = min(length, window)
    count = (length - 1) // size + 1
    step = size if count == 1 else ceil((length - size) / (count - 1) - 1e-8)
    starts = [*range(0, length - size, step), length - size]
    return [(start, start + size) for start in starts]


@dataclass(frozen=True)
class Cells:
    """The plane cut into rectangles by `rows` × `columns`, numbered row by row; windows likewise.

    over_rows: (rows of windows, rows of cells), 1 where they cover them; over_columns alike. A window covers a
    cell where both do.
    """

    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]
    over_rows: Tensor
    over_columns: Tensor

    @classmethod
    def of(cls, height: int, width: int, window: int | None, device: torch.device | None = None) -> Cells:
        """Those of windows of that size; one cell, and one window, for None: plain attention."""
        axes = [windows(length, window or length) for length in (height, width)]
        cuts = [sorted({edge for part in axis for edge in part}) for axis in axes]
        rows, columns = (tuple(pairwise(cut)) for cut in cuts)
        over_rows, over_columns = (
            torch.tensor(
                [[a <= c and d <= b for c, d in parts] for a, b in axis], dtype=torch.float32, device=device
            )
            for axis, parts in zip(axes, (rows, columns), strict=True)
        )
        return cls(rows, columns, over_rows, over_columns)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def windows(self) -> int:
        return len(self.over_rows) * len(self.over_columns)

    def over_windows(self, cells: Tensor) -> Tensor:
        """(cells, …) → (windows, …): each window's sum over its cells."""
        if len(self) == 1:
            return cells
        R, K = (cover.to(cells) for cover in (self.over_rows, self.over_columns))
        grid = cells.unflatten(0, (len(self.rows), len(self.columns)))
        return _along_both(R, K, grid)

    def mean_of_windows(self, windows: Tensor) -> Tensor:
        """(windows, …) → (cells, …): each cell's mean over the windows that cover it."""
        if len(self) == 1:
            return windows
        R, K = (cover.to(windows) for cover in (self.over_rows, self.over_columns))
        grid = windows.unflatten(0, (len(R), len(K)))
        return _along_both((R / R.sum(0)).T, (K / K.sum(0)).T, grid)


def _along_both(rows: Tensor, columns: Tensor, grid: Tensor) -> Tensor:
    """(a, r), (b, c), (r, c, …) → (a·b, …). One axis after the other: at once would take the product of both matrices,
    of as many numbers as there are windows times cells."""
    return torch.einsum('bc,ac...->ab...', columns, torch.einsum('ar,rc...->ac...', rows, grid)).flatten(0, 1)
