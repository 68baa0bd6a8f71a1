"""The layers of a Restormer on horizontal strips of channels-last features, for inference.

Names: H, W rows and columns, C channels, n rows of a strip, K channels of a temporary, N pixels, M cells of TLC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.archs.restormer_arch import GDFN, MDTA, LayerNorm
from basicsr.inference.tlc import Cells
from basicsr.inference.workers import Workers
from basicsr.ops import (
    AttentionStatistics,
    DepthwiseRows,
    LayerNormRows,
    channel_slice,
    convolution_to_few,
    merge_projection,
    padded_halves,
    padded_inputs,
)
from basicsr.utils.memory import Workspace

_FEW_CHANNELS = 4  # output channels of a 3×3 convolution

Parameters = tuple[Tensor, Tensor | None]  # weight and bias


def _convert(parameters: Parameters, dtype: torch.dtype) -> Parameters:
    weight, bias = parameters
    return weight.to(dtype), None if bias is None else bias.to(dtype)


class Strip(NamedTuple):
    """Rows top … bottom - 1, all in one row of cells."""

    top: int
    bottom: int
    cell_row: int


# The strips for temporaries of so many channels: a list for each part of the image, from the top.
Cut = Callable[[int], list[list[Strip]]]


class Beside(NamedTuple):
    """Copies of the rows above and below a part of the image, which others may overwrite; None beyond the edges."""

    above: Tensor | None
    below: Tensor | None

    @classmethod
    def all(cls, x_HWC: Tensor, parts: list[list[Strip]]) -> list[Beside]:
        edges = [strips[0].top for strips in parts[1:]]
        above = [None, *(x_HWC[edge - 1 : edge].clone() for edge in edges)]
        below = [*(x_HWC[edge : edge + 1].clone() for edge in edges), None]
        return list(map(cls, above, below))


class Point:
    """A 1×1 convolution of rows of pixels: (N, C) → (N, K)."""

    def __init__(self, parameters: Parameters, dtype: torch.dtype) -> None:
        weight, self.bias_K = _convert(parameters, dtype)
        self.weight_CK = weight.flatten(1).t()
        if weight.device.type == 'cpu':
            self.weight_CK = self.weight_CK.contiguous()  # multiplies faster there

    def into(self, x_NC: Tensor, y_NK: Tensor) -> None:
        if self.bias_K is None:
            torch.mm(x_NC, self.weight_CK, out=y_NK)
        else:
            torch.addmm(self.bias_K, x_NC, self.weight_CK, out=y_NK)

    def add_to(self, y_NK: Tensor, x_NC: Tensor) -> None:
        y_NK.addmm_(x_NC, self.weight_CK)
        if self.bias_K is not None:
            y_NK += self.bias_K


class Dense:
    """A 3×3 convolution. `shuffled` reorders the channels of a pixel shuffle from (c, i, j) to (i, j, c), so that a
    pixel of the larger image is contiguous."""

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype, shuffled: bool = False) -> None:
        weight, self.bias = _convert((convolution.weight, convolution.bias), dtype)
        if shuffled:
            weight = weight.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)
        self.weight = weight.contiguous(memory_format=torch.channels_last)

    def __call__(self, x_HWC: Tensor, top: int, bottom: int) -> Tensor:
        """Rows top … bottom - 1 of the result, (n, W, K)."""
        return self.rows(x_HWC[max(top - 1, 0) : bottom + 1], top == 0, bottom == len(x_HWC))

    def rows(self, x_nWC: Tensor, at_top: bool, at_bottom: bool) -> Tensor:
        """The result for rows with one more above and below, except where the image ends."""
        if x_nWC.is_cuda and len(self.weight) <= _FEW_CHANNELS and self.bias is None:
            y_nWK = convolution_to_few(x_nWC.to(self.weight.dtype), self.weight)
            first, last = 2 - at_top, len(y_nWK) - (2 - at_bottom)
            return y_nWK[first:last]
        x_BCnW = x_nWC[None].to(self.weight.dtype).permute(0, 3, 1, 2)
        if at_top or at_bottom:
            x_BCnW = F.pad(x_BCnW, (0, 0, int(at_top), int(at_bottom)))
        x_BCnW = x_BCnW.contiguous(memory_format=torch.channels_last)
        y_BKnW = F.conv2d(x_BCnW, self.weight, self.bias, padding=(0, 1))
        return y_BKnW.permute(0, 2, 3, 1)[0].contiguous()  # copies only if a backend returns channels-first


class Separable:
    """Layer norm, 1×1 convolution and 3×3 depthwise convolution (gated or not), strip by strip. `sums`: for sums over
    pixels, see DepthwiseRows."""

    def __init__(
        self,
        norm: LayerNorm,
        point: Parameters,
        depth: Parameters,
        dtype: torch.dtype,
        gated: bool = False,
        sums: bool = False,
    ) -> None:
        self.norm = LayerNormRows(norm.body.weight, norm.body.bias, dtype)
        self.point = Point(point, dtype)
        self.depthwise = DepthwiseRows(*depth, dtype, gated, sums)
        self.channels = self.depthwise.channels

    def strips(
        self, x_HWC: Tensor, strips: list[Strip], beside: Beside, workspace: Workspace
    ) -> Iterator[tuple[Strip, Tensor]]:
        """Yields each strip with its result (n, W, K), or (n, W, K / 2) if gated, from the top. By then its rows of x
        are no longer needed: the caller may overwrite them.

        A strip needs the 1×1 convolution of one more row above and below. The two rows that the next strip shares are
        kept, not recomputed. `beside` are the rows of x above the first strip and below the last one.
        """
        W, K = x_HWC.shape[1], self.channels
        start, stop = strips[0].top, strips[-1].bottom
        rows = max(bottom - top for top, bottom, _ in strips)
        # Row i holds the image's row first + i. Strips follow each other down this memory; when it is full, they
        # continue at its beginning.
        hidden_nWK = workspace.get('hidden', x_HWC.dtype, rows + 2, W, K)
        first = ready = start - 1  # ready: the next row of the image to go through the 1×1 convolution
        for strip in strips:
            top, bottom, _ = strip
            if bottom + 1 - first > len(hidden_nWK):
                for row in (0, 1):  # one by one: in an image of few rows they overlap
                    hidden_nWK[row] = hidden_nWK[top - 1 + row - first]
                first = top - 1
            if ready <= bottom:
                x_nWC = x_HWC[max(ready, start) : min(bottom + 1, stop)]
                above = beside.above if ready < start else x_nWC[:0]
                below = beside.below if bottom == stop else x_nWC[:0]
                self._mix(above, x_nWC, below, hidden_nWK[ready - first : bottom + 1 - first], workspace)
                ready = bottom + 1
            yield strip, self.depthwise(hidden_nWK[top - 1 - first : bottom + 1 - first], workspace)

    def _mix(
        self, above: Tensor | None, x_nWC: Tensor, below: Tensor | None, y_nWK: Tensor, workspace: Workspace
    ) -> None:
        """Layer norm and 1×1 convolution of some rows. None for a row beyond the image's edge, whose result is zero."""
        if above is None:
            y_nWK[0] = 0
            y_nWK = y_nWK[1:]
        if below is None:
            y_nWK[-1] = 0
            y_nWK = y_nWK[:-1]
        given = [rows for rows in (above, x_nWC, below) if rows is not None and len(rows)]
        if given:
            x_nWC = given[0] if len(given) == 1 else torch.cat(given)
            self.point.into(self.norm(x_nWC, workspace).flatten(0, 1), y_nWK.flatten(0, 1))


class Attention:
    """x + MDTA(LN(x))"""

    def __init__(self, norm: LayerNorm, attn: MDTA, dtype: torch.dtype) -> None:
        C = attn.qkv.in_channels
        self.attn = attn
        self.bias = None if attn.project_out.bias is None else attn.project_out.bias.to(dtype)
        # The first pass needs queries and keys, the second one values.
        self.query_key, self.value = (
            Separable(
                norm, channel_slice(attn.qkv, part), channel_slice(attn.qkv_dwconv, part), dtype, sums=sums
            )
            for part, sums in ((slice(2 * C), True), (slice(2 * C, 3 * C), False))
        )
        self.channels = 2 * C  # of its largest temporary
        self.cell_numel = C * C // attn.num_heads  # of a cell's Gram or attention matrices

    def run(self, x_HWC: Tensor, cells: Cells, cut: Cut, workers: Workers) -> None:
        """In place."""
        attention_Mhcc = self._attention(x_HWC, cells, cut, workers)

        def apply(strips: list[Strip], beside: Beside, workspace: Workspace) -> None:
            self._apply(x_HWC, attention_Mhcc, cells, strips, beside, workspace)

        parts = cut(self.value.channels)
        workers.map(apply, parts, Beside.all(x_HWC, parts), workers.workspaces)

    def _attention(self, x_HWC: Tensor, cells: Cells, cut: Cut, workers: Workers) -> Tensor:
        """For each cell, the mean attention matrices of the windows that cover it, (M, h, c, c)."""
        C, heads, columns = x_HWC.shape[-1], self.attn.num_heads, len(cells.columns)

        def of_part(strips: list[Strip], beside: Beside, workspace: Workspace) -> AttentionStatistics:
            first, last = strips[0].cell_row, strips[-1].cell_row
            sums = AttentionStatistics.zeros((last - first + 1) * columns, C, heads, like=x_HWC)
            for strip, qk_nWK in self.query_key.strips(x_HWC, strips, beside, workspace):
                for column, (left, right) in enumerate(cells.columns):
                    sums.add_pixels((strip.cell_row - first) * columns + column, qk_nWK[:, left:right])
            return sums

        parts = cut(self.query_key.channels)
        sums, *others = sums_of_parts = workers.map(
            of_part, parts, Beside.all(x_HWC, parts), workers.workspaces
        )
        if others:
            sums = AttentionStatistics.zeros(len(cells), C, heads, like=x_HWC)
            for strips, of_strips in zip(parts, sums_of_parts, strict=True):
                here = slice(strips[0].cell_row * columns, (strips[-1].cell_row + 1) * columns)
                for total, part in zip(sums, of_strips, strict=True):
                    total[here] += part
        of_windows = AttentionStatistics(*map(cells.over_windows, sums))
        return cells.mean_of_windows(self.attn.attention(of_windows).to(sums.gram_Bhcc.dtype))

    def _apply(
        self,
        x_HWC: Tensor,
        attention_Mhcc: Tensor,
        cells: Cells,
        strips: list[Strip],
        beside: Beside,
        workspace: Workspace,
    ) -> None:
        C, columns = x_HWC.shape[-1], len(cells.columns)
        row = -1
        for strip, v_nWC in self.value.strips(x_HWC, strips, beside, workspace):
            if strip.cell_row != row:  # one row of cells at a time: there may be hundreds of cells
                row = strip.cell_row
                row_mhcc = attention_Mhcc[row * columns : (row + 1) * columns]
                matrices = merge_projection(self.attn.project_out, row_mhcc).to(x_HWC.dtype).mT
            x_nWC = x_HWC[strip.top : strip.bottom]
            if columns == 1:
                x_nWC.view(-1, C).addmm_(v_nWC.view(-1, C), matrices[0])
            else:
                for (left, right), matrix_CC in zip(cells.columns, matrices, strict=True):
                    x_nwC, v_nwC = x_nWC[:, left:right], v_nWC[:, left:right]
                    if x_nWC.is_cuda:  # as a batch of rows
                        x_nwC.baddbmm_(v_nwC, matrix_CC.expand(len(x_nwC), -1, -1))
                    else:
                        x_nwC += (v_nwC.reshape(-1, C) @ matrix_CC).view(x_nwC.shape)
            if self.bias is not None:
                x_nWC += self.bias


class FeedForward:
    """x + GDFN(LN(x))"""

    def __init__(self, norm: LayerNorm, ffn: GDFN, dtype: torch.dtype) -> None:
        point, depth = padded_halves(ffn.project_in), padded_halves(ffn.dwconv)
        self.separable = Separable(norm, point, depth, dtype, gated=True)
        self.project_out = Point((padded_inputs(ffn.project_out), ffn.project_out.bias), dtype)
        self.channels = self.separable.channels  # of its largest temporary

    def run(self, x_HWC: Tensor, cells: Cells, cut: Cut, workers: Workers) -> None:
        """In place."""

        def of_part(strips: list[Strip], beside: Beside, workspace: Workspace) -> None:
            for (top, bottom, _), gated_nWK in self.separable.strips(x_HWC, strips, beside, workspace):
                self.project_out.add_to(x_HWC[top:bottom].flatten(0, 1), gated_nWK.flatten(0, 1))

        parts = cut(self.separable.channels)
        workers.map(of_part, parts, Beside.all(x_HWC, parts), workers.workspaces)
