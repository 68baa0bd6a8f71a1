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
from basicsr.ops import (
    AttentionStatistics,
    channel_slice,
    convolution_to_few,
    depthwise_rows,
    gated_depthwise_rows,
    layer_norm_rows,
    merge_projection,
    padded_halves,
    padded_inputs,
)

_FEW_CHANNELS = 4  # output channels of a 3×3 convolution

_STRIPS_HELD = 4  # strips that the memory of a 1×1 convolution's result can hold

Parameters = tuple[Tensor, Tensor | None]  # weight and bias


def _convert(parameters: Parameters, dtype: torch.dtype) -> Parameters:
    weight, bias = parameters
    return weight.to(dtype), None if bias is None else bias.to(dtype)


class Strip(NamedTuple):
    """Rows top … bottom - 1, all in one row of cells."""

    top: int
    bottom: int
    cell_row: int


Cut = Callable[[int], list[Strip]]  # the strips for temporaries of so many channels


class Workspace:
    """Memory for one large temporary, used again and again."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.memory = torch.empty(0, dtype=dtype, device=device)

    def get(self, *shape: int) -> Tensor:
        """Uninitialised; valid until the next call."""
        numel = torch.Size(shape).numel()
        if self.memory.numel() < numel:
            self.memory = self.memory.new_empty(0)  # free the old memory first
            self.memory = self.memory.new_empty(numel)
        return self.memory[:numel].view(shape)


class Point:
    """A 1×1 convolution of rows of pixels: (N, C) → (N, K)."""

    def __init__(self, parameters: Parameters, dtype: torch.dtype) -> None:
        weight, self.bias_K = _convert(parameters, dtype)
        self.weight_CK = weight.flatten(1).t()

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
    """Layer norm, 1×1 convolution and 3×3 depthwise convolution (`convolve`: gated or not), strip by strip."""

    def __init__(
        self,
        norm: LayerNorm,
        point: Parameters,
        depth: Parameters,
        dtype: torch.dtype,
        convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor] = depthwise_rows,
    ) -> None:
        self.norm = _convert((norm.body.weight, norm.body.bias), dtype)
        self.point = Point(point, dtype)
        self.depth = _convert(depth, dtype)
        self.convolve = convolve
        self.channels = len(self.depth[0])

    def strips(
        self, x_HWC: Tensor, strips: list[Strip], workspace: Workspace
    ) -> Iterator[tuple[Strip, Tensor]]:
        """Yields each strip with its result (n, W, K), or (n, W, K / 2) if gated, from the top. By then its rows of x
        are no longer needed: the caller may overwrite them.

        A strip needs the 1×1 convolution of one more row above and below. The two rows that the next strip shares are
        kept, not recomputed.
        """
        H, W, C = x_HWC.shape
        K = self.channels
        rows = max(bottom - top for top, bottom, _ in strips)
        # Row i holds the image's row first + i. Strips follow each other down this memory; when it is full, they
        # continue at its beginning.
        hidden_nWK = workspace.get(min(_STRIPS_HELD * rows, H) + 2, W, K)
        first = -1
        hidden_nWK[0] = 0  # zero padding above the image
        ready = 0  # rows of the image that have gone through the 1×1 convolution
        for strip in strips:
            top, bottom, _ = strip
            if bottom + 1 - first > len(hidden_nWK):
                for row in (0, 1):  # one by one: in an image of few rows they overlap
                    hidden_nWK[row] = hidden_nWK[top - 1 + row - first]
                first = top - 1
            end = min(bottom + 1, H)
            if ready < end:
                target_nWK = hidden_nWK[ready - first : end - first]
                normed_nWC = layer_norm_rows(x_HWC[ready:end], *self.norm)
                self.point.into(normed_nWC.view(-1, C), target_nWK.view(-1, K))
                ready = end
            if bottom == H:
                hidden_nWK[H - first] = 0
            seen_nWK = hidden_nWK[top - 1 - first : bottom + 1 - first]
            yield strip, self.convolve(seen_nWK, *self.depth)


class Attention:
    """x + MDTA(LN(x))"""

    def __init__(self, norm: LayerNorm, attn: MDTA, dtype: torch.dtype) -> None:
        C = attn.qkv.in_channels
        self.attn = attn
        self.bias = None if attn.project_out.bias is None else attn.project_out.bias.to(dtype)
        # The first pass needs queries and keys, the second one values.
        self.query_key, self.value = (
            Separable(norm, channel_slice(attn.qkv, part), channel_slice(attn.qkv_dwconv, part), dtype)
            for part in (slice(2 * C), slice(2 * C, 3 * C))
        )
        self.channels = 2 * C  # of its largest temporary
        self.cell_numel = C * C // attn.num_heads  # of a cell's Gram or attention matrices

    def run(self, x_HWC: Tensor, cells: Cells, cut: Cut, workspace: Workspace) -> None:
        """In place."""
        C = x_HWC.shape[-1]
        attention_Mhcc = self._attention(x_HWC, cells, cut, workspace)
        columns = len(cells.columns)
        row = -1
        for strip, v_nWC in self.value.strips(x_HWC, cut(self.value.channels), workspace):
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

    def _attention(self, x_HWC: Tensor, cells: Cells, cut: Cut, workspace: Workspace) -> Tensor:
        """For each cell, the mean attention matrices of the windows that cover it, (M, h, c, c)."""
        sums = AttentionStatistics.zeros(len(cells), x_HWC.shape[-1], self.attn.num_heads, like=x_HWC)
        for strip, qk_nWK in self.query_key.strips(x_HWC, cut(self.query_key.channels), workspace):
            for column, (left, right) in enumerate(cells.columns):
                sums.add_pixels(strip.cell_row * len(cells.columns) + column, qk_nWK[:, left:right])
        of_windows = AttentionStatistics(*map(cells.over_windows, sums))
        return cells.mean_of_windows(self.attn.attention(of_windows).to(sums.gram_Bhcc.dtype))


class FeedForward:
    """x + GDFN(LN(x))"""

    def __init__(self, norm: LayerNorm, ffn: GDFN, dtype: torch.dtype) -> None:
        point, depth = padded_halves(ffn.project_in), padded_halves(ffn.dwconv)
        self.separable = Separable(norm, point, depth, dtype, gated_depthwise_rows)
        self.project_out = Point((padded_inputs(ffn.project_out), ffn.project_out.bias), dtype)
        self.channels = self.separable.channels  # of its largest temporary

    def run(self, x_HWC: Tensor, cells: Cells, cut: Cut, workspace: Workspace) -> None:
        """In place."""
        strips = cut(self.separable.channels)
        for (top, bottom, _), gated_nWK in self.separable.strips(x_HWC, strips, workspace):
            self.project_out.add_to(x_HWC[top:bottom].view(-1, x_HWC.shape[-1]), gated_nWK.flatten(0, 1))
