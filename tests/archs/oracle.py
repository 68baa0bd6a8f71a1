"""Restormer straight from the paper: plain, slow, and sharing nothing with the package but tensor names.

It works on a dictionary of tensors instead of modules, and follows the equations one by one: normalised
copies of q and k, the attention matrix times v, and then the output projection.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange


def layer_norm(params, prefix, x, with_bias):
    x = rearrange(x, 'b c h w -> b h w c')
    mean = x.mean(-1, keepdim=True)
    sigma = torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-5)
    weight = params[f'{prefix}.body.weight']
    y = (x - mean) / sigma * weight + params[f'{prefix}.body.bias'] if with_bias else x / sigma * weight
    return rearrange(y, 'b h w c -> b c h w')


def convolution(params, prefix, x, groups=1):
    weight = params[f'{prefix}.weight']
    return F.conv2d(x, weight, params.get(f'{prefix}.bias'), padding=weight.shape[-1] // 2, groups=groups)


def attend(temperature, qkv):
    heads = temperature.shape[0]
    height = qkv.shape[-2]
    q, k, v = (rearrange(t, 'b (head c) h w -> b head c (h w)', head=heads) for t in qkv.chunk(3, dim=1))
    q, k = F.normalize(q, dim=-1, eps=1e-12), F.normalize(k, dim=-1, eps=1e-12)
    attention = (q @ k.transpose(-2, -1) * temperature).softmax(dim=-1)
    return rearrange(attention @ v, 'b head c (h w) -> b (head c) h w', h=height)


def window_starts(n, window):
    k = min(n, window)
    count = (n - 1) // k + 1
    step = k if count == 1 else math.ceil((n - k) / (count - 1) - 1e-8)
    starts = []
    while len(starts) * step + k < n:
        starts.append(len(starts) * step)
    return [*starts, n - k]


def attend_in_windows(temperature, qkv, window):
    """TLC by its definition: every window by itself, then the mean of those over each pixel."""
    channels, height, width = qkv.shape[1] // 3, *qkv.shape[-2:]
    total, count = qkv.new_zeros(len(qkv), channels, height, width), qkv.new_zeros(height, width)
    for y in window_starts(height, window):
        for x in window_starts(width, window):
            place = (..., slice(y, y + min(window, height)), slice(x, x + min(window, width)))
            total[place] += attend(temperature, qkv[place])
            count[place] += 1
    return total / count


def mdta(params, prefix, x, window):
    temperature = params[f'{prefix}.temperature']
    qkv = convolution(params, f'{prefix}.qkv', x)
    qkv = convolution(params, f'{prefix}.qkv_dwconv', qkv, groups=qkv.shape[1])
    out = attend(temperature, qkv) if window is None else attend_in_windows(temperature, qkv, window)
    return convolution(params, f'{prefix}.project_out', out)


def gdfn(params, prefix, x):
    hidden = convolution(params, f'{prefix}.project_in', x)
    gate, value = convolution(params, f'{prefix}.dwconv', hidden, groups=hidden.shape[1]).chunk(2, dim=1)
    return convolution(params, f'{prefix}.project_out', F.gelu(gate) * value)


def block(params, x, with_bias, window):
    """`params`: of this block alone."""
    x = x + mdta(params, 'attn', layer_norm(params, 'norm1', x, with_bias), window)
    return x + gdfn(params, 'ffn', layer_norm(params, 'norm2', x, with_bias))


def down(params, prefix, x):
    x = convolution(params, f'{prefix}.body.0', x)
    return rearrange(x, 'b c (h i) (w j) -> b (c i j) h w', i=2, j=2)


def up(params, prefix, x):
    x = convolution(params, f'{prefix}.body.0', x)
    return rearrange(x, 'b (c i j) h w -> b c (h i) (w j)', i=2, j=2)


def restormer(
    params,
    image,
    num_blocks,
    num_refinement_blocks,
    LayerNorm_type='WithBias',
    dual_pixel_task=False,
    window=None,
    block=block,
):
    """`window`: of TLC, at full resolution; None: attention over the whole image. `block`: that above, or compiled."""
    blocks = {}
    for name, tensor in params.items():
        stage, index, *rest = name.split('.', 2)
        if index.isdigit():
            blocks.setdefault((stage, int(index)), {})[rest[0]] = tensor

    def stack(name, count, x):
        here = window and window * x.shape[-1] // image.shape[-1]
        for index in range(count):
            x = block(blocks[name, index], x, LayerNorm_type == 'WithBias', here)
        return x

    embedded = convolution(params, 'patch_embed.proj', image)
    level1 = stack('encoder_level1', num_blocks[0], embedded)
    level2 = stack('encoder_level2', num_blocks[1], down(params, 'down1_2', level1))
    level3 = stack('encoder_level3', num_blocks[2], down(params, 'down2_3', level2))
    x = stack('latent', num_blocks[3], down(params, 'down3_4', level3))
    x = convolution(params, 'reduce_chan_level3', torch.cat([up(params, 'up4_3', x), level3], 1))
    x = stack('decoder_level3', num_blocks[2], x)
    x = convolution(params, 'reduce_chan_level2', torch.cat([up(params, 'up3_2', x), level2], 1))
    x = stack('decoder_level2', num_blocks[1], x)
    x = stack('decoder_level1', num_blocks[0], torch.cat([up(params, 'up2_1', x), level1], 1))
    x = stack('refinement', num_refinement_blocks, x)
    if dual_pixel_task:
        return convolution(params, 'output', x + convolution(params, 'skip_conv', embedded))
    return convolution(params, 'output', x) + image
