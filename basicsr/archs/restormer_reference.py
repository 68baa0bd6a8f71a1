"""Restormer (arXiv 2111.09881) equation by equation: plain, slow, and sharing only tensor names with the package.

It computes with a dictionary of tensors instead of modules. Tests compare with it, and the benchmark measures against
it. Images and features are (B, C, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Params = Mapping[str, Tensor]
Block = Callable[[Params, Tensor, 'int | None'], Tensor]


def convolution(params: Params, name: str, x: Tensor, groups: int = 1) -> Tensor:
    """With zero padding, so that the size stays."""
    weight = params[f'{name}.weight']
    return F.conv2d(x, weight, params.get(f'{name}.bias'), padding=weight.shape[-1] // 2, groups=groups)


def layer_norm(params: Params, name: str, x: Tensor) -> Tensor:
    """(x - μ) / σ · weight + bias over channels; x / σ · weight if there is no bias."""
    x = rearrange(x, 'b c h w -> b h w c')
    weight, bias = params[f'{name}.body.weight'], params.get(f'{name}.body.bias')
    mean = x.mean(-1, keepdim=True)
    sigma = torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-5)
    y = x / sigma * weight if bias is None else (x - mean) / sigma * weight + bias
    return rearrange(y, 'b h w c -> b c h w')


def attend(temperature: Tensor, qkv: Tensor) -> Tensor:
    """softmax(normalize(q) · normalize(k)ᵀ · temperature) · v of each head, (B, 3C, H, W) → (B, C, H, W)."""
    heads, height = len(temperature), qkv.shape[-2]
    q, k, v = (rearrange(t, 'b (head c) h w -> b head c (h w)', head=heads) for t in qkv.chunk(3, dim=1))
    q, k = F.normalize(q, dim=-1, eps=1e-12), F.normalize(k, dim=-1, eps=1e-12)
    attention = (q @ k.transpose(-2, -1) * temperature).softmax(dim=-1)
    return rearrange(attention @ v, 'b head c (h w) -> b (head c) h w', h=height)


def window_starts(length: int, window: int) -> list[int]:
    """Windows of TLC along an axis: as few as cover it, evenly spread."""
    size = min(length, window)
    count = (length - 1) // size + 1
    step = size if count == 1 else math.ceil((length - size) / (count - 1) - 1e-8)
    starts: list[int] = []
    while len(starts) * step + size < length:
        starts.append(len(starts) * step)
    return [*starts, length - size]


def attend_in_windows(temperature: Tensor, qkv: Tensor, window: int) -> Tensor:
    """TLC (arXiv 2112.04491): attend in each window, then average over the windows that cover a pixel."""
    B, channels, height, width = qkv.shape
    total, count = qkv.new_zeros(B, channels // 3, height, width), qkv.new_zeros(height, width)
    for y in window_starts(height, window):
        for x in window_starts(width, window):
            place = (..., slice(y, y + min(window, height)), slice(x, x + min(window, width)))
            total[place] += attend(temperature, qkv[place])
            count[place] += 1
    return total / count


def mdta(params: Params, name: str, x: Tensor, window: int | None) -> Tensor:
    """project_out(attend(qkv_dwconv(qkv(x))))"""
    temperature = params[f'{name}.temperature']
    qkv = convolution(params, f'{name}.qkv', x)
    qkv = convolution(params, f'{name}.qkv_dwconv', qkv, groups=qkv.shape[1])
    out = attend(temperature, qkv) if window is None else attend_in_windows(temperature, qkv, window)
    return convolution(params, f'{name}.project_out', out)


def gdfn(params: Params, name: str, x: Tensor) -> Tensor:
    """project_out(gelu(gate) · value), where gate and value are the halves of dwconv(project_in(x))."""
    hidden = convolution(params, f'{name}.project_in', x)
    gate, value = convolution(params, f'{name}.dwconv', hidden, groups=hidden.shape[1]).chunk(2, dim=1)
    return convolution(params, f'{name}.project_out', F.gelu(gate) * value)


def block(params: Params, x: Tensor, window: int | None) -> Tensor:
    """x + MDTA(LN(x)), then x + GDFN(LN(x)). `params` are this block's."""
    x = x + mdta(params, 'attn', layer_norm(params, 'norm1', x), window)
    return x + gdfn(params, 'ffn', layer_norm(params, 'norm2', x))


def down(params: Params, name: str, x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, 2C, H/2, W/2)"""
    return rearrange(convolution(params, f'{name}.body.0', x), 'b c (h i) (w j) -> b (c i j) h w', i=2, j=2)


def up(params: Params, name: str, x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C/2, 2H, 2W)"""
    return rearrange(convolution(params, f'{name}.body.0', x), 'b (c i j) h w -> b c (h i) (w j)', i=2, j=2)


def restormer(params: Params, image: Tensor, window: int | None = None, block: Block = block) -> Tensor:
    """The restored image, not clamped.

    Args:
        params: a Restormer's tensors by name; they say how many blocks there are, which layer norm, and whether the
            task is dual-pixel.
        image: H and W multiples of 8.
        window: side of TLC's windows at full resolution; None for attention over the image.
        block: the function above, or a compiled one.
    """

    def run(stage: str, x: Tensor) -> Tensor:
        blocks: dict[int, dict[str, Tensor]] = {}
        for name, tensor in params.items():
            if name.startswith(f'{stage}.'):
                _, number, rest = name.split('.', 2)
                blocks.setdefault(int(number), {})[rest] = tensor
        here = window and window * x.shape[-1] // image.shape[-1]
        for index in range(len(blocks)):
            x = block(blocks[index], x, here)
        return x

    embedded = convolution(params, 'patch_embed.proj', image)
    level1 = run('encoder_level1', embedded)
    level2 = run('encoder_level2', down(params, 'down1_2', level1))
    level3 = run('encoder_level3', down(params, 'down2_3', level2))
    x = run('latent', down(params, 'down3_4', level3))
    x = convolution(params, 'reduce_chan_level3', torch.cat([up(params, 'up4_3', x), level3], 1))
    x = run('decoder_level3', x)
    x = convolution(params, 'reduce_chan_level2', torch.cat([up(params, 'up3_2', x), level2], 1))
    x = run('decoder_level2', x)
    x = run('decoder_level1', torch.cat([up(params, 'up2_1', x), level1], 1))
    x = run('refinement', x)
    if 'skip_conv.weight' in params:
        return convolution(params, 'output', x + convolution(params, 'skip_conv', embedded))
    return convolution(params, 'output', x) + image
