"""The exact result for a whole image in bounded working memory.

A transformer block needs of the image no more than sums over its pixels (the attention statistics) and one row
above and below (the 3×3 depthwise convolutions). So each half of a block runs on horizontal strips: sum the
statistics over all strips, finish the small attention matrix, apply it strip by strip. This is not tiling: no
seam, no other statistics. Only the activations between blocks stay at full size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.archs.restormer_arch import MDTA, Restormer, TransformerBlock

# Numbers in the largest temporary of a strip. A CPU is fastest where they stay near its caches; an accelerator
# wants more work at once.
STRIP_NUMEL_CPU = 2_000_000
STRIP_NUMEL = 128_000_000


def extra_inputs(net: nn.Module) -> tuple[Callable[[TransformerBlock, Tensor], Tensor], ...]:
    """What to call a network with, after the image, so that it runs in strips; nothing for networks that do
    not know them."""
    return (run_block,) if isinstance(net, Restormer) else ()


def run_block(block: TransformerBlock, x_BCHW: Tensor, strip_numel: int | None = None) -> Tensor:
    """`block(x)`, up to rounding, in strips of as many rows as keep every temporary below `strip_numel`."""
    strip_numel = strip_numel or (STRIP_NUMEL_CPU if x_BCHW.device.type == 'cpu' else STRIP_NUMEL)
    B, C, H, W = x_BCHW.shape
    channels = max(3 * C, block.ffn.project_in.out_channels)
    rows = max(1, strip_numel // (B * channels * W))
    if rows >= H:
        return block(x_BCHW)
    attn = block.attn
    query_key = _convolutions(attn, slice(0, 2 * C))
    value = _convolutions(attn, slice(2 * C, 3 * C))
    statistics = None
    for strip_BCHW, _, inside in _strips(x_BCHW, rows):
        q, k = query_key(block.norm1(strip_BCHW))[:, :, inside].chunk(2, dim=1)
        part = attn.statistics(q, k)
        statistics = part if statistics is None else statistics + part
    assert statistics is not None
    matrix_BCC = attn.output_matrix(attn.attention(statistics))

    y_BCHW = torch.empty_like(x_BCHW)
    for strip_BCHW, place, inside in _strips(x_BCHW, rows):
        v = value(block.norm1(strip_BCHW))[:, :, inside]
        torch.add(x_BCHW[:, :, place], attn.apply_attention(matrix_BCC, v), out=y_BCHW[:, :, place])
    z_BCHW = torch.empty_like(x_BCHW)
    for strip_BCHW, place, inside in _strips(y_BCHW, rows):
        torch.add(
            y_BCHW[:, :, place], block.ffn(block.norm2(strip_BCHW))[:, :, inside], out=z_BCHW[:, :, place]
        )
    return z_BCHW


def _strips(x_BCHW: Tensor, rows: int) -> Iterator[tuple[Tensor, slice, slice]]:
    """Strips with one more row on each side where the image goes on; which rows of the image each is for; and
    where those are in it. Beyond the image the convolutions' own zeros are right; beyond a strip they are not,
    and only the extra rows see them."""
    H = x_BCHW.shape[2]
    for top in range(0, H, rows):
        bottom = min(top + rows, H)
        first, last = max(top - 1, 0), min(bottom + 1, H)
        yield x_BCHW[:, :, first:last], slice(top, bottom), slice(top - first, bottom - first)


def _convolutions(attn: MDTA, channels: slice) -> Callable[[Tensor], Tensor]:
    """Some of the channels of `qkv` and `qkv_dwconv`: q and k are needed in one pass, v in the other."""

    def part(convolution: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
        bias = convolution.bias
        return convolution.weight[channels], None if bias is None else bias[channels]

    (point, point_bias), (depth, depth_bias) = part(attn.qkv), part(attn.qkv_dwconv)

    def convolve(x_BCHW: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x_BCHW, point, point_bias), depth, depth_bias, padding=1, groups=len(depth))

    return convolve
