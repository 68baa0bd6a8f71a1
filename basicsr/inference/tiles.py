"""Overlapping tiles, restored one by one and blended.

The result differs from the whole image's, since each tile has its own attention statistics. For devices whose memory
is too small for the image even in strips.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DEFAULT_OVERLAP = 32  # pixels; half the side for small tiles


def checked_overlap(tile: int, overlap: int | None, multiple: int) -> int:
    """The overlap, or the default for None. Raises ValueError on a tile or overlap that does not work."""
    if tile < multiple or tile % multiple:
        raise ValueError(f'tile: found {tile}; allowed: a positive multiple of {multiple}')
    if overlap is None:
        return min(DEFAULT_OVERLAP, tile // 2)
    if not 0 <= overlap < tile:
        raise ValueError(f'tile_overlap: found {overlap}; allowed: 0 to {tile - 1}, less than the tile')
    return overlap


def restore_tiles(restore: Callable[[Tensor], Tensor], x_BCHW: Tensor, tile: int, overlap: int) -> Tensor:
    """Overlap-add: weight each tile's result by a window that rises linearly over the overlap and is never zero, and
    divide the sum by the sum of the weights. Computes in single precision at least."""
    ys, xs = (_starts(length, tile, overlap) for length in x_BCHW.shape[-2:])
    total = weights = window = None
    for y in ys:
        for x in xs:
            place = (..., slice(y, y + tile), slice(x, x + tile))
            restored = restore(x_BCHW[place])
            if total is None or weights is None or window is None:
                B, _, H, W = x_BCHW.shape
                dtype = torch.promote_types(restored.dtype, torch.float32)
                total = restored.new_zeros(B, restored.shape[1], H, W, dtype=dtype)
                weights = restored.new_zeros(H, W, dtype=dtype)
                rows, columns = (_ramp(length, overlap, weights) for length in restored.shape[-2:])
                window = rows[:, None] * columns  # all tiles have the same size
            total[place] += restored * window
            weights[place] += window
    assert total is not None and weights is not None
    return total.div_(weights)


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Tiles as far apart as the overlap allows; the last one ends with the image."""
    last = max(length - tile, 0)
    return [*range(0, last, tile - overlap), last]


def _ramp(length: int, overlap: int, weights: Tensor) -> Tensor:
    """The window along one axis of a tile, with the type and the device of the weights."""
    distance = torch.arange(1, length + 1, device=weights.device)
    return (torch.minimum(distance, distance.flip(0)).clamp(max=overlap + 1) / (overlap + 1)).to(weights)
