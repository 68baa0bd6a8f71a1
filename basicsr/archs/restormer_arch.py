"""Restormer: Efficient Transformer for High-Resolution Image Restoration (Zamir et al., CVPR 2022,
arXiv 2111.09881), written from the paper.

The modules follow the paper; `basicsr.ops` computes their parts in the fastest way for the device. The same network,
equation by equation and without any of that, is `basicsr/archs/restormer_reference.py`.

Names carry shapes where that helps: B images, C channels, H × W pixels, h attention heads, c = C / h channels a head.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from basicsr.ops import (
    AttentionStatistics,
    attend_and_project,
    attention_statistics,
    channel_slice,
    depthwise,
    layer_norm,
    like_layout,
    padded_feed_forward,
    pointwise,
    records_gradients,
    uses_triton,
)
from basicsr.utils.registry import ARCH_REGISTRY

LayerNormType = Literal['WithBias', 'BiasFree']


class WithBias_LayerNorm(nn.Module):
    """Layer normalisation over the last axis, with weight and bias."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias)


class BiasFree_LayerNorm(nn.Module):
    """Division by the standard deviation over the last axis. The mean is not subtracted, only the variance is taken
    around it: this is not an RMS norm."""

    bias = None

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    """Layer normalisation of (B, C, H, W) over C."""

    def __init__(self, dim: int, LayerNorm_type: LayerNormType) -> None:
        super().__init__()
        self.body = BiasFree_LayerNorm(dim) if LayerNorm_type == 'BiasFree' else WithBias_LayerNorm(dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return rearrange(self.body(rearrange(x_BCHW, 'b c h w -> b h w c')), 'b h w c -> b c h w')


class MDTA(nn.Module):
    """Multi-Dconv head transposed attention (paper §3.1): attention between channels, over all pixels.

    With q, k and v of one head as c × N matrices, for N pixels:

        q, k, v = qkv_dwconv(qkv(x))
        A = softmax(normalize(q) · normalize(k)ᵀ · temperature)    (c × c; rows sum to 1)
        out = project_out(A · v)

    q and k enter A only through sums over pixels (`AttentionStatistics`). Restormer sums over the image, the strip
    engine over its strips, and TLC over local windows; all three continue with `attention`.
    """

    def __init__(self, dim: int, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Conv2d(dim, dim * 3, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(dim * 3, dim * 3, 3, padding=1, groups=dim * 3, bias=bias)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        qk_BKHW, v_BCHW = self.query_key_value(x_BCHW)
        statistics = attention_statistics(qk_BKHW, self.num_heads)
        attn_Bhcc = self.attention(statistics)
        return attend_and_project(attn_Bhcc, v_BCHW, self.project_out)

    def query_key_value(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Queries with keys, (B, 2C, H, W), and values, (B, C, H, W). Two convolutions instead of one split, so
        backward need not concatenate their gradients."""
        C = x_BCHW.shape[1]
        qk_BKHW, v_BCHW = (
            depthwise(pointwise(x_BCHW, *channel_slice(self.qkv, part)), *channel_slice(self.qkv_dwconv, part))
            for part in (slice(2 * C), slice(2 * C, 3 * C))
        )
        return qk_BKHW, v_BCHW

    def attention(self, statistics: AttentionStatistics) -> Tensor:
        """The attention matrices of a region, (B, h, c, c)."""
        cosine_Bhcc = statistics.cosine_similarity()  # normalize(q) · normalize(k)ᵀ
        return (cosine_Bhcc * self.temperature).softmax(dim=-1)


class GDFN(nn.Module):
    """Gated-Dconv feed-forward network (paper §3.2): two 1×1 and 3×3 depthwise convolutions; GELU of the one result
    gates the other."""

    def __init__(self, dim: int, ffn_expansion_factor: float, bias: bool) -> None:
        super().__init__()
        hidden = int(dim * ffn_expansion_factor)
        self.project_in = nn.Conv2d(dim, hidden * 2, 1, bias=bias)
        self.dwconv = nn.Conv2d(hidden * 2, hidden * 2, 3, padding=1, groups=hidden * 2, bias=bias)
        self.project_out = nn.Conv2d(hidden, dim, 1, bias=bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if records_gradients() or uses_triton(x_BCHW):  # the same, faster
            return padded_feed_forward(x_BCHW, self.project_in, self.dwconv, self.project_out)
        gate, value = self.dwconv(self.project_in(x_BCHW)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class TransformerBlock(nn.Module):
    """x + MDTA(LN(x)), then x + GDFN(LN(x)); (B, C, H, W) in and out."""

    def __init__(
        self, dim: int, num_heads: int, ffn_expansion_factor: float, bias: bool, LayerNorm_type: LayerNormType
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, LayerNorm_type)
        self.attn = MDTA(dim, num_heads, bias)
        self.norm2 = LayerNorm(dim, LayerNorm_type)
        self.ffn = GDFN(dim, ffn_expansion_factor, bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW + self.attn(self.norm1(x_BCHW))
        return x_BCHW + self.ffn(self.norm2(x_BCHW))


class OverlapPatchEmbed(nn.Module):
    """3×3 convolution from the image to the features."""

    def __init__(self, in_c: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_c, embed_dim, 3, padding=1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.proj(x_BCHW)


class Downsample(nn.Module):
    """(B, C, H, W) → (B, 2C, H/2, W/2)."""

    def __init__(self, n_feat: int) -> None:
        super().__init__()
        convolution = nn.Conv2d(n_feat, n_feat // 2, 3, padding=1, bias=False)
        self.body = nn.Sequential(convolution, nn.PixelUnshuffle(2))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return like_layout(self.body(x_BCHW), x_BCHW)


class Upsample(nn.Module):
    """(B, C, H, W) → (B, C/2, 2H, 2W)."""

    def __init__(self, n_feat: int) -> None:
        super().__init__()
        convolution = nn.Conv2d(n_feat, n_feat * 2, 3, padding=1, bias=False)
        self.body = nn.Sequential(convolution, nn.PixelShuffle(2))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return like_layout(self.body(x_BCHW), x_BCHW)


@ARCH_REGISTRY.register()
class Restormer(nn.Module):
    """The network.

    Args:
        inp_channels: channels of the input image (6 for dual-pixel defocus deblurring: left and right view).
        out_channels: channels of the output image.
        dim: channels at full resolution; level l has dim·2^l. Must be even.
        num_blocks: transformer blocks at the four levels, encoder and decoder alike; the last level is the latent one.
        num_refinement_blocks: blocks at full resolution after the decoder.
        heads: attention heads at the four levels; each divides its level's channels.
        ffn_expansion_factor: hidden channels of the GDFN, relative to its input.
        bias: biases in the convolutions of the blocks, in the reductions after skip connections, and in the output.
        LayerNorm_type: 'WithBias' or 'BiasFree'.
        dual_pixel_task: add the first features before the output convolution, instead of the image (which has other
            channels) after it.

    Input (B, inp_channels, H, W), values in [0, 1], H and W multiples of 8; output (B, out_channels, H, W),
    not clamped. Raises ValueError on arguments or sizes that do not fit.
    """

    multiple = 8  # H and W are halved three times

    checkpointing = False
    """Activation checkpointing (Chen et al., arXiv 1604.06174): store each block's input, recompute the rest in
    backward. A fraction of the memory for one more forward pass. May change between steps."""

    def __init__(
        self,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: list[int] = (4, 6, 6, 8),  # type: ignore[assignment]
        num_refinement_blocks: int = 4,
        heads: list[int] = (1, 2, 4, 8),  # type: ignore[assignment]
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: LayerNormType = 'WithBias',
        dual_pixel_task: bool = False,
    ) -> None:
        super().__init__()
        if num_refinement_blocks < 0:
            raise ValueError(f'num_refinement_blocks: found {num_refinement_blocks}; allowed: 0 or more')
        if dim < 2 or dim % 2:
            raise ValueError(f'dim: found {dim}; allowed: an even number of channels')
        for name, values, lowest in (('num_blocks', num_blocks, 0), ('heads', heads, 1)):
            if len(values) != 4 or min(values) < lowest:
                raise ValueError(f'{name}: found {list(values)}; allowed: four numbers, one for each level')
        for index, num_heads in enumerate(heads):
            if (dim << index) % num_heads:
                raise ValueError(
                    f'heads: found {num_heads} at level {index + 1}; allowed: a divisor of its {dim << index} channels'
                )
        if LayerNorm_type not in ('WithBias', 'BiasFree'):
            raise ValueError(f"LayerNorm_type: found {LayerNorm_type!r}; allowed: 'WithBias', 'BiasFree'")
        if not dual_pixel_task and inp_channels != out_channels:
            raise ValueError(
                f'out_channels: found {out_channels} for {inp_channels} input channels; allowed: the same number, '
                'as the input is added to the output (unless dual_pixel_task)'
            )

        def level(channels: int, num_heads: int, count: int) -> nn.Sequential:
            arguments = (channels, num_heads, ffn_expansion_factor, bias, LayerNorm_type)
            return nn.Sequential(*(TransformerBlock(*arguments) for _ in range(count)))

        self.patch_embed = OverlapPatchEmbed(inp_channels, dim)
        self.encoder_level1 = level(dim, heads[0], num_blocks[0])
        self.down1_2 = Downsample(dim)
        self.encoder_level2 = level(dim * 2, heads[1], num_blocks[1])
        self.down2_3 = Downsample(dim * 2)
        self.encoder_level3 = level(dim * 4, heads[2], num_blocks[2])
        self.down3_4 = Downsample(dim * 4)
        self.latent = level(dim * 8, heads[3], num_blocks[3])

        self.up4_3 = Upsample(dim * 8)
        self.reduce_chan_level3 = nn.Conv2d(dim * 8, dim * 4, 1, bias=bias)
        self.decoder_level3 = level(dim * 4, heads[2], num_blocks[2])
        self.up3_2 = Upsample(dim * 4)
        self.reduce_chan_level2 = nn.Conv2d(dim * 4, dim * 2, 1, bias=bias)
        self.decoder_level2 = level(dim * 2, heads[1], num_blocks[1])
        self.up2_1 = Upsample(dim * 2)
        # No reduction here: at full resolution the decoder keeps both halves, 2·dim channels.
        self.decoder_level1 = level(dim * 2, heads[0], num_blocks[0])
        self.refinement = level(dim * 2, heads[0], num_refinement_blocks)

        self.dual_pixel_task = dual_pixel_task
        if dual_pixel_task:
            self.skip_conv = nn.Conv2d(dim, dim * 2, 1, bias=bias)
        self.output = nn.Conv2d(dim * 2, out_channels, 3, padding=1, bias=bias)

    def forward(self, inp_img: Tensor) -> Tensor:
        if inp_img.shape[-2] % self.multiple or inp_img.shape[-1] % self.multiple:
            raise ValueError(
                f'input of {tuple(inp_img.shape)}: height and width must be multiples of {self.multiple}'
            )

        embedded = self.patch_embed(inp_img)
        level1 = self._run(self.encoder_level1, embedded)
        level2 = self._run(self.encoder_level2, self.down1_2(level1))
        level3 = self._run(self.encoder_level3, self.down2_3(level2))
        x = self._run(self.latent, self.down3_4(level3))

        x = self._reduce(self.reduce_chan_level3, self.up4_3(x), level3)
        x = self._run(self.decoder_level3, x)
        x = self._reduce(self.reduce_chan_level2, self.up3_2(x), level2)
        x = self._run(self.decoder_level2, x)
        x = torch.cat([self.up2_1(x), level1], 1)
        x = self._run(self.decoder_level1, x)
        x = self._run(self.refinement, x)
        if self.dual_pixel_task:
            return self.output(x + self.skip_conv(embedded))
        return self.output(x) + inp_img

    @staticmethod
    def _reduce(convolution: nn.Conv2d, x_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
        return pointwise(torch.cat([x_BCHW, skip_BCHW], 1), convolution.weight, convolution.bias)

    def _run(self, blocks: nn.Sequential, x_BCHW: Tensor) -> Tensor:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return blocks(x_BCHW)
        for block in blocks:
            # A block draws no random numbers.
            x_BCHW = checkpoint(block, x_BCHW, use_reentrant=False, preserve_rng_state=False)
        return x_BCHW
