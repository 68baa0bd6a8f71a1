"""The layers of a Restormer on horizontal strips of channels-last features, for inference.

Names: H, W rows and columns, C channels, n rows of a strip, K channels of a temporary, N pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.archs.restormer_arch import GDFN, MDTA, AttentionStatistics, BiasFree_LayerNorm, LayerNorm
from basicsr.inference.tlc import Cells
from basicsr.ops import (
    LAYER_NORM_EPS,
    add_products,
    convolution_to_few,
    depthwise_rows,
    gated_depthwise_rows,
    layer_norm,
    padded_halves,
    padded_inputs,
    uses_triton,
)

_FEW_CHANNELS = 4  # results of a 3×3 convolution

_STRIPS_HELD = 4  # in the memory of a 1×1 convolution's result


class Strip(NamedTuple):
    """Rows top … bottom - 1, which lie in one row of cells."""

    top: int
    bottom: int
    cell_row: int


Cut = Callable[[int], list[Strip]]  # the strips for temporaries of so many channels


class Workspace:
    """Memory for one large temporary, handed out again and again."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.memory = torch.empty(0, dtype=dtype, device=device)

    def get(self, *shape: int) -> Tensor:
        """Not initialised; good until the next call."""
        numel = torch.Size(shape).numel()
        if self.memory.numel() < numel:
            self.memory = self.memory.new_empty(0)  # before the larger one is made
            self.memory = self.memory.new_empty(numel)
        return self.memory[:numel].view(shape)


class Norm:
    """A layer norm over the last axis."""

    def __init__(self, norm: LayerNorm, dtype: torch.dtype) -> None:
        self.weight = norm.body.weight.to(dtype)
        self.bias = None if isinstance(norm.body, BiasFree_LayerNorm) else norm.body.bias.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if uses_triton(x):
            return layer_norm(x, self.weight, self.bias)
        # Not `layer_norm`, which leaves autocast: the engine has done so, and once for each strip costs time.
        if self.bias is not None:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, LAYER_NORM_EPS)
        full = x.to(torch.promote_types(x.dtype, torch.float32))
        *_, reciprocal = torch.native_layer_norm(full, self.weight.shape, None, None, LAYER_NORM_EPS)
        return (full * reciprocal).mul_(self.weight).to(x.dtype)


class Point:
    """A 1×1 convolution of rows of pixels: (N, C) → (N, K)."""

    def __init__(self, weight_KC: Tensor, bias_K: Tensor | None, dtype: torch.dtype) -> None:
        self.weight_CK = weight_KC.to(dtype).t()
        self.bias_K = None if bias_K is None else bias_K.to(dtype)

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
    """A 3×3 convolution. `shuffled` puts the channels of a pixel shuffle, (c, i, j), in the order (i, j, c),
    so that a pixel of the larger image is one run of memory."""

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype, shuffled: bool = False) -> None:
        weight, bias = convolution.weight, convolution.bias
        if shuffled:
            weight = weight.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)
        self.weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.bias = None if bias is None else bias.to(dtype)

    def __call__(self, x_HWC: Tensor, top: int, bottom: int) -> Tensor:
        """Rows top … bottom - 1 of the result, (n, W, K)."""
        return self.rows(x_HWC[max(top - 1, 0) : bottom + 1], top == 0, bottom == len(x_HWC))

    def rows(self, x_nWC: Tensor, at_top: bool, at_bottom: bool) -> Tensor:
        """Of rows with one more above and below, unless the image ends there."""
        if x_nWC.is_cuda and len(self.weight) <= _FEW_CHANNELS and self.bias is None:
            y_nWK = convolution_to_few(x_nWC.to(self.weight.dtype), self.weight)
            first, last = 2 - at_top, len(y_nWK) - (2 - at_bottom)
            return y_nWK[first:last]
        x_BCnW = x_nWC[None].to(self.weight.dtype).permute(0, 3, 1, 2)
        if at_top or at_bottom:
            x_BCnW = F.pad(x_BCnW, (0, 0, int(at_top), int(at_bottom)))
        x_BCnW = x_BCnW.contiguous(memory_format=torch.channels_last)
        y_BKnW = F.conv2d(x_BCnW, self.weight, self.bias, padding=(0, 1))
        return y_BKnW.permute(0, 2, 3, 1)[0].contiguous()  # as it is, unless a backend likes channels first


class Separable:
    """A normalisation, a 1×1 convolution and a 3×3 depthwise one, gated or not, by strips."""

    def __init__(
        self,
        norm: Norm,
        point: tuple[Tensor, Tensor | None],
        depth: tuple[Tensor, Tensor | None],
        dtype: torch.dtype,
        convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor] = depthwise_rows,
    ) -> None:
        self.norm, self.convolve = norm, convolve
        self.point = Point(point[0].flatten(1), point[1], dtype)
        self.depth_weight = depth[0].to(dtype)
        self.depth_bias = None if depth[1] is None else depth[1].to(dtype)
        self.channels = len(self.depth_weight)

    def strips(
        self, x_HWC: Tensor, strips: list[Strip], workspace: Workspace
    ) -> Iterator[tuple[Strip, Tensor]]:
        """Yields, strip by strip from the top, the result (n, W, K), or (n, W, K / 2) if gated. When a strip comes
        out, its rows have been read for the last time: they may be written over.

        A strip needs the 1×1 convolution of a row more above and below. The two rows that the next strip needs
        again are kept, not computed again.
        """
        H, W, C = x_HWC.shape
        K = self.channels
        rows = max(bottom - top for top, bottom, _ in strips)
        # Row i holds the image's row first + i. Strips follow each other down this memory until it is full, and
        # go on from its beginning.
        hidden_nWK = workspace.get(min(_STRIPS_HELD * rows, H) + 2, W, K)
        first = -1
        hidden_nWK[0] = 0  # beyond the image the depthwise convolution sees zeros
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
                self.point.into(self.norm(x_HWC[ready:end]).view(-1, C), target_nWK.view(-1, K))
                ready = end
            if bottom == H:
                hidden_nWK[H - first] = 0
            seen_nWK = hidden_nWK[top - 1 - first : bottom + 1 - first]
            yield strip, self.convolve(seen_nWK, self.depth_weight, self.depth_bias)


class Attention:
    """`x + MDTA(LN(x))`."""

    def __init__(self, norm: LayerNorm, attn: MDTA, dtype: torch.dtype) -> None:
        C = attn.qkv.in_channels
        self.attn = attn
        self.bias = None if attn.project_out.bias is None else attn.project_out.bias.to(dtype)

        def part(convolution: nn.Conv2d, channels: slice) -> tuple[Tensor, Tensor | None]:
            bias = convolution.bias
            return convolution.weight[channels], None if bias is None else bias[channels]

        # Queries and keys are needed in one pass, values in the other.
        self.query_key, self.value = (
            Separable(Norm(norm, dtype), part(attn.qkv, place), part(attn.qkv_dwconv, place), dtype)
            for place in (slice(0, 2 * C), slice(2 * C, 3 * C))
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
            if strip.cell_row != row:  # not all at once: there may be hundreds of cells
                row = strip.cell_row
                part_mhcc = attention_Mhcc[row * columns : (row + 1) * columns]
                matrices = self.attn.output_matrix(part_mhcc).to(x_HWC.dtype).mT
            x_nWC = x_HWC[strip.top : strip.bottom]
            if columns == 1:
                x_nWC.view(-1, C).addmm_(v_nWC.view(-1, C), matrices[0])
            elif x_nWC.is_cuda:  # one product for each cell, of the batch of its rows
                for (left, right), matrix in zip(cells.columns, matrices, strict=True):
                    x_nWC[:, left:right].baddbmm_(v_nWC[:, left:right], matrix.expand(len(x_nWC), -1, -1))
            else:
                for (left, right), matrix in zip(cells.columns, matrices, strict=True):
                    out_NC = v_nWC[:, left:right].reshape(-1, C) @ matrix
                    x_nWC[:, left:right] += out_NC.view(len(x_nWC), right - left, C)
            if self.bias is not None:
                x_nWC += self.bias

    def _attention(self, x_HWC: Tensor, cells: Cells, cut: Cut, workspace: Workspace) -> Tensor:
        """For every cell the mean of the attention matrices of the windows over it, (cells, h, c, c)."""
        C = x_HWC.shape[-1]
        h = self.attn.num_heads
        full_dtype = torch.promote_types(x_HWC.dtype, torch.float32)
        gram_Mhcc = x_HWC.new_zeros(len(cells), h, C // h, C // h, dtype=full_dtype)
        square_MK = x_HWC.new_zeros(len(cells), 2 * C, dtype=full_dtype)
        for strip, qk_nWK in self.query_key.strips(x_HWC, cut(self.query_key.channels), workspace):
            for column, (left, right) in enumerate(cells.columns):
                cell = strip.cell_row * len(cells.columns) + column
                add_products(qk_nWK[:, left:right], gram_Mhcc[cell], square_MK[cell])
        q_square_Mhc, k_square_Mhc = (part.unflatten(1, (h, -1)) for part in square_MK.chunk(2, 1))
        sums = (cells.over_windows(part) for part in (gram_Mhcc, q_square_Mhc, k_square_Mhc))
        return cells.mean_of_windows(self.attn.attention(AttentionStatistics(*sums)).to(full_dtype))


class FeedForward:
    """`x + GDFN(LN(x))`."""

    def __init__(self, norm: LayerNorm, ffn: GDFN, dtype: torch.dtype) -> None:
        self.separable = Separable(
            Norm(norm, dtype),
            padded_halves(ffn.project_in),
            padded_halves(ffn.dwconv),
            dtype,
            gated_depthwise_rows,
        )
        self.project_out = Point(padded_inputs(ffn.project_out).flatten(1), ffn.project_out.bias, dtype)
        self.channels = self.separable.channels  # of its largest temporary

    def run(self, x_HWC: Tensor, cells: Cells, cut: Cut, workspace: Workspace) -> None:
        """In place."""
        strips = cut(self.separable.channels)
        for (top, bottom, _), gated_nWK in self.separable.strips(x_HWC, strips, workspace):
            self.project_out.add_to(x_HWC[top:bottom].view(-1, x_HWC.shape[-1]), gated_nWK.flatten(0, 1))
