"""Test-time local converter (Chu et al., ECCV 2022, arXiv 2112.04491): attention over local windows.

A network trained on patches sums its attention statistics over a patch; over a photograph they differ. With TLC, each
pixel's result is the mean of the results of the windows that cover it, and each window has its own statistics.

That mean is linear in the attention matrices, and the statistics are sums over pixels. So cut the image along every
window edge: the same windows cover all pixels of one such *cell*. The statistics of a window are the sums over its
cells, and the mean of the matrices of the windows over a cell gives its result. Each pixel is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any

import torch
from torch import Tensor

# Pixels at full resolution: 1.5 × 256, a patch size from the middle of the paper's training.
DEFAULT_WINDOW = 384


def windows(length: int, window: int) -> list[tuple[int, int]]:
    """Start and end of the windows along an axis: of equal size, evenly spread, the last one ends at `length`."""
    size = min(length, window)
    count = (length - 1) // size + 1
    step = size if count == 1 else ceil((length - size) / (count - 1) - 1e-8)
    starts = [*range(0, length - size, step), length - size]
    return [(start, start + size) for start in starts]


def window_indices(length: int, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """`windows` as tensors, for an export: a length that is traced is a tensor itself.

    Returns the pixels of each window, (windows, size), and the places among them, counted window after window, where
    each pixel is in the first and in the last window that covers it, both (length,). No pixel is in more than two.
    """
    end: Any = torch.as_tensor(length)  # `torch.arange` takes tensors, but its type hints do not say so
    size = end.clamp(max=window)
    last_start, steps = end - size, (end - 1) // size
    step = ((last_start + steps - 1) // steps.clamp(min=1)).clamp(min=1)
    starts = torch.cat([torch.arange(0, last_start, step), last_start[None]])
    pixels = torch.arange(end)
    first = (starts + size <= pixels[:, None]).sum(1)
    last = (starts <= pixels[:, None]).sum(1) - 1
    first, last = (index * size + pixels - starts[index] for index in (first, last))
    return starts[:, None] + torch.arange(size), first, last


@dataclass(frozen=True)
class Cells:
    """The plane cut into `rows` × `columns` of rectangles, numbered row by row; windows likewise.

    `over_rows`, (rows of windows, rows of cells), is 1 where a row of windows covers a row of cells; `over_columns`
    likewise. A window covers a cell if both are 1.
    """

    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]
    over_rows: Tensor
    over_columns: Tensor

    @classmethod
    def of(cls, height: int, width: int, window: int | None, device: torch.device | None = None) -> Cells:
        """The cells of windows of that size. None, for plain attention: one cell and one window."""
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
        """(cells, …) → (windows, …): the sum over each window's cells."""
        if len(self) == 1:
            return cells
        R, K = (cover.to(cells) for cover in (self.over_rows, self.over_columns))
        return _along_both(R, K, cells.unflatten(0, (len(self.rows), len(self.columns))))

    def mean_of_windows(self, windows: Tensor) -> Tensor:
        """(windows, …) → (cells, …): the mean over the windows that cover each cell."""
        if len(self) == 1:
            return windows
        R, K = (cover.to(windows) for cover in (self.over_rows, self.over_columns))
        return _along_both((R / R.sum(0)).T, (K / K.sum(0)).T, windows.unflatten(0, (len(R), len(K))))


def _along_both(rows: Tensor, columns: Tensor, grid: Tensor) -> Tensor:
    """(a, r), (b, c), (r, c, …) → (a·b, …), one axis after the other: at once would need the product of both matrices,
    with windows × cells numbers."""
    return torch.einsum('bc,ac...->ab...', columns, torch.einsum('ar,rc...->ac...', rows, grid)).flatten(0, 1)
