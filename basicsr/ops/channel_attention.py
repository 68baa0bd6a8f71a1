"""Attention between channels, from sums over pixels.

With q and k of one head as c × N matrices (c channels, N pixels), normalised over pixels,

    normalize(q) · normalize(k)ᵀ = q·kᵀ / (‖q‖ ‖k‖ᵀ),    W·(A·v) = (W·A)·v

so attention needs no normalised copy of q or k, and no result of A·v: sums over the pixels of a region give the
attention matrix, and one matrix product applies it together with the output projection. The region is the image in
training, a strip of it in the strip engine, and a cell between window borders in TLC; sums of disjoint regions add up.
"""

from __future__ import annotations

from math import ceil
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from basicsr.ops import cpu_kernels
from basicsr.ops.dispatch import HALF, has_own_gradient, no_autocast

NORM_EPS = 1e-12  # lower bound of the norms of q and k, as in torch.nn.functional.normalize

# torch.bmm of half precision with sums and results in single precision, since PyTorch 2.8.
_MIXED_PRODUCTS = torch.version.cuda is not None and 'dtype' in torch.ops.aten.bmm.overloads()

# Parallel parts of a sum over pixels on a GPU: two for each multiprocessor of a large one.
_PARTS = 264


class AttentionStatistics(NamedTuple):
    """Sums over the pixels of a region, for each of B images or regions. Never below single precision."""

    gram_Bhcc: Tensor  # q·kᵀ of each head
    square_BK: Tensor  # ‖q‖² of all channels, then ‖k‖²: K = 2C

    @classmethod
    def zeros(cls, regions: int, channels: int, num_heads: int, like: Tensor) -> AttentionStatistics:
        """Statistics of empty regions, to add to. `like` gives device and type (single precision at least)."""
        c, dtype = channels // num_heads, torch.promote_types(like.dtype, torch.float32)
        gram_Bhcc = like.new_zeros(regions, num_heads, c, c, dtype=dtype)
        return cls(gram_Bhcc, like.new_zeros(regions, 2 * channels, dtype=dtype))

    def __add__(self, other: AttentionStatistics) -> AttentionStatistics:  # type: ignore[override]
        return AttentionStatistics(*(a + b for a, b in zip(self, other, strict=True)))

    def cosine_similarity(self) -> Tensor:
        """normalize(q) · normalize(k)ᵀ of each head, (B, h, c, c)."""
        # Clamp before the root: the root's slope at zero is infinite, and multiplied by the clamp's zero it would
        # turn the gradient of a black patch into NaN.
        norm_BK = self.square_BK.clamp_min(NORM_EPS**2).sqrt()
        q_norm, k_norm = rearrange(norm_BK, 'b (qk h c) -> qk b h c', qk=2, h=self.gram_Bhcc.shape[1])
        return self.gram_Bhcc / q_norm.unsqueeze(-1) / k_norm.unsqueeze(-2)

    def add_pixels(self, region: int, qk_nwK: Tensor) -> None:
        """Add pixels (n, w, 2C) to one region, in place; without gradients."""
        gram_hcc, square_K = self.gram_Bhcc[region], self.square_BK[region]
        num_heads = len(gram_hcc)
        if _multiplies_all(qk_nwK):
            gram_Bhcc, square_BK = products_of_all_channels(qk_nwK.reshape(1, -1, qk_nwK.shape[-1]), num_heads)
            gram_hcc += gram_Bhcc[0]
            square_K += square_BK[0]
            return
        qk_NK = qk_nwK.to(gram_hcc.dtype).flatten(0, 1)
        halves = (half.chunk(num_heads, 1) for half in qk_NK.chunk(2, 1))
        for gram_cc, q_Nc, k_Nc in zip(gram_hcc, *halves, strict=True):
            gram_cc.addmm_(q_Nc.t(), k_Nc)
        if cpu_kernels.run_on(qk_nwK.device, qk_NK.dtype, qk_NK.shape[1]):
            cpu_kernels.add_squares(square_K, qk_NK.view(qk_nwK.shape))
            return
        # In two steps: a sum over the long axis of a tall matrix runs on one thread.
        square_K += qk_NK.square().view(qk_nwK.shape).sum(1).sum(0)


def attention_statistics(qk_BKHW: Tensor, num_heads: int) -> AttentionStatistics:
    """Statistics of queries and keys, (B, 2C, H, W); differentiable. Computed outside autocast: a sum over
    millions of pixels overflows fp16 and loses digits in bf16."""
    with no_autocast(qk_BKHW.device):
        # torch.compile cannot derive the gradient of torch.bmm with two types.
        if has_own_gradient() or _multiplies_all(qk_BKHW):
            return AttentionStatistics(*_ChannelProducts.apply(qk_BKHW, num_heads))
        return AttentionStatistics(*_channel_products(qk_BKHW, num_heads))


def merge_projection(project_out: nn.Conv2d, attn_Bhcc: Tensor) -> Tensor:
    """W · A: the output projection times the block diagonal of the heads' attention matrices, (B, C, C)."""
    with no_autocast(attn_Bhcc.device):
        weight_ohc = rearrange(project_out.weight, 'o (h c) 1 1 -> o h c', h=attn_Bhcc.shape[1])
        matrix_Bohd = torch.einsum('ohc,bhcd->bohd', weight_ohc.to(attn_Bhcc.dtype), attn_Bhcc)
        return rearrange(matrix_Bohd, 'b o h d -> b o (h d)')


def attend_and_project(attn_Bhcc: Tensor, v_BCHW: Tensor, project_out: nn.Conv2d) -> Tensor:
    """project_out(A · v), computed as (W · A) · v."""
    matrix_BCC = merge_projection(project_out, attn_Bhcc)
    v_BNC = rearrange(v_BCHW, 'b c h w -> b (h w) c')
    out_BNC = v_BNC @ matrix_BCC.to(v_BNC.dtype).transpose(-2, -1)
    if project_out.bias is not None:
        out_BNC = out_BNC + project_out.bias.to(out_BNC.dtype)
    return rearrange(out_BNC, 'b (h w) c -> b c h w', h=v_BCHW.shape[2])


# -------------------------------------------------------------- sums of products


def _multiplies_all(qk: Tensor) -> bool:
    """Whether to multiply all channels with all, although only those of the same head are needed: faster on CUDA."""
    return qk.is_cuda and not torch.jit.is_tracing()


def _channel_products(qk_BKHW: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    if _multiplies_all(qk_BKHW):
        gram_Bhcc, square_BK = products_of_all_channels(qk_BKHW.permute(0, 2, 3, 1).flatten(1, 2), num_heads)
        return gram_Bhcc.contiguous(), square_BK.contiguous()  # not views, which would keep all products
    full_BKHW = qk_BKHW.float() if qk_BKHW.dtype in HALF else qk_BKHW
    q_BCN, k_BCN = full_BKHW.flatten(2).chunk(2, 1)
    # Head by head: one batch of B·h products would need copies of the heads.
    heads = zip(q_BCN.chunk(num_heads, 1), k_BCN.chunk(num_heads, 1), strict=True)
    # Sum the squares over one axis at a time: over both at once, the sum runs on few threads.
    return torch.stack([q @ k.transpose(-2, -1) for q, k in heads], 1), full_BKHW.square().sum(3).sum(2)


def products_of_all_channels(qk_BNK: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Gram matrices (B, h, c, c) and squared norms (B, 2C) of (B, N, 2C), as views of one product (B, 2C, 2C), which
    reads the features once, in their own type, and multiplies them exactly on tensor cores."""
    B, N, K = qk_BNK.shape
    # A product with so few results runs on few multiprocessors: add up parts of the pixels.
    parts = _parts(N, max(1, _PARTS // (B * ceil(K / 128) ** 2)))
    qk_PnK = qk_BNK.unflatten(1, (parts, -1)).flatten(0, 1) if parts > 1 else qk_BNK
    if qk_BNK.dtype in HALF and qk_BNK.is_cuda and _MIXED_PRODUCTS:
        product_PKK = torch.bmm(qk_PnK.mT, qk_PnK, out_dtype=torch.float32)
    else:
        full_PnK = qk_PnK.float() if qk_PnK.dtype in HALF else qk_PnK
        product_PKK = full_PnK.mT @ full_PnK
    product_BKK = product_PKK.unflatten(0, (B, parts)).sum(1) if parts > 1 else product_PKK
    return _head_blocks(product_BKK, num_heads), product_BKK.diagonal(dim1=1, dim2=2)


def _parts(N: int, most: int) -> int:
    """The largest divisor of N that is a power of 2 and at most `most`."""
    return min(N & -N, 1 << (most.bit_length() - 1))


def _head_blocks(product_BKK: Tensor, num_heads: int) -> Tensor:
    """The blocks q·kᵀ of each head, (B, h, c, c), as a view of the products of all 2C channels."""
    C = product_BKK.shape[1] // 2
    blocks_Bhchc = product_BKK[:, :C, C:].unflatten(1, (num_heads, -1)).unflatten(3, (num_heads, -1))
    return blocks_Bhchc.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


class _ChannelProducts(torch.autograd.Function):
    """`_channel_products`, whose gradient is written into one tensor, in the features' own precision. Autograd would
    make one for each half and each use, in single precision, and add them up."""

    @staticmethod
    def forward(ctx: Any, qk_BKHW: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(qk_BKHW)
        ctx.num_heads = num_heads
        return _channel_products(qk_BKHW, num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gram_grad_Bhcc: Tensor, square_grad_BK: Tensor) -> tuple[Tensor, None]:
        (qk_BKHW,) = ctx.saved_tensors
        qk_BNK = qk_BKHW.permute(0, 2, 3, 1).flatten(1, 2)
        if _multiplies_all(qk_BNK):
            # One product with the symmetric matrix of all channels' gradients.
            matrix_BKK = gram_grad_Bhcc.new_zeros(*square_grad_BK.shape, square_grad_BK.shape[1])
            matrix_BKK.diagonal(dim1=1, dim2=2).copy_(square_grad_BK)
            _head_blocks(matrix_BKK, ctx.num_heads).copy_(gram_grad_Bhcc)
            grad_BNK = qk_BNK @ (matrix_BKK + matrix_BKK.mT).to(qk_BNK.dtype)
        else:
            gram_grad_Bhcc = gram_grad_Bhcc.to(qk_BNK.dtype)
            grad_BNK = qk_BNK * (2 * square_grad_BK).to(qk_BNK.dtype).unsqueeze(1)
            # Heads of the queries, then of the keys.
            features, grads = (tensor.chunk(2 * ctx.num_heads, 2) for tensor in (qk_BNK, grad_BNK))
            for query in range(ctx.num_heads):
                key = query + ctx.num_heads
                grads[query].baddbmm_(features[key], gram_grad_Bhcc[:, query].mT)
                grads[key].baddbmm_(features[query], gram_grad_Bhcc[:, query])
        return grad_BNK.unflatten(1, qk_BKHW.shape[2:]).permute(0, 3, 1, 2), None
