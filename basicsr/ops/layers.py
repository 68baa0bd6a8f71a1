"""Layer norm, 1×1 and depthwise convolutions, the GDFN's gate, and sums of products of channels, with their gradients.

On a CUDA device Triton's kernels (`basicsr/ops/kernels.py`) do what PyTorch's do slowly; elsewhere PyTorch's own
operations run, with gradients written out where autograd would keep or copy large tensors.
"""

from __future__ import annotations

import functools
import importlib
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from basicsr.ops.autocast import no_autocast
from basicsr.utils.logger import get_logger

LAYER_NORM_EPS = 1e-5
HALF = (torch.float16, torch.bfloat16)

# Pad channels to a multiple of this; kernels are several times slower otherwise, on processors (vectors) and on GPUs
# (tensor cores) alike.
ALIGNED_CHANNELS = 16

# torch.bmm of half precision with sums and results in single precision, since PyTorch 2.8.
_MIXED_PRODUCTS = torch.version.cuda is not None and 'dtype' in torch.ops.aten.bmm.overloads()

# Parallel parts of a sum over pixels on a GPU: two for each multiprocessor of a large one.
_PARTS = 264


def records_gradients() -> bool:
    """False during ONNX tracing, even if grad mode is on."""
    return torch.is_grad_enabled() and not torch.jit.is_tracing()


def _by_hand() -> bool:
    """Whether to use the gradients written out here. A compiler derives its own, and without gradients the plain
    operations will do."""
    return records_gradients() and not torch.compiler.is_compiling()


# -------------------------------------------------------------- Triton's kernels

# basicsr.ops.kernels, imported when a device first asks for it: most machines have no Triton.
kernels: Any = None


@functools.cache
def _runs_on(device: torch.device) -> bool:
    """Whether Triton's kernels run there. Tries the one that asks the most of Triton: compiling it takes a C compiler,
    which some systems lack."""
    global kernels
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        kernels = importlib.import_module('basicsr.ops.kernels')
        with torch.cuda.device(device):
            kernels.gated_depthwise(
                torch.ones(1, 1, 1, 32, device=device), torch.ones(32, 1, 3, 3, device=device), None
            )
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # of any kind: the operating system's, the C compiler's, Triton's
        get_logger().warning(
            "Triton's kernels do not run on %s (%s): using PyTorch's, which are slower. A C compiler may be missing.",
            device,
            (str(error).splitlines() or [type(error).__name__])[0],
        )
        return False
    return True


@torch.compiler.assume_constant_result
def _known_to_run_on(device: torch.device) -> bool:
    return _runs_on(device)  # torch.compile asks once, and does not look inside


def uses_triton(x: Tensor) -> bool:
    """Whether Triton's kernels compute with x."""
    if not x.is_cuda or x.dtype == torch.float64 or torch.jit.is_tracing():
        return False
    return _known_to_run_on(x.device)


class _LayerNorm(torch.autograd.Function):
    """Keeps nothing but its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return kernels.layer_norm(x, weight, bias, LAYER_NORM_EPS)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return kernels.layer_norm_backward(x, weight, ctx.has_bias, LAYER_NORM_EPS, grad.contiguous())


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BHWK: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BHWK, weight)
        ctx.has_bias = bias is not None
        return kernels.depthwise(x_BHWK, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad.contiguous()
        x_grad, weight_grad = kernels.depthwise_backward(*ctx.saved_tensors, grad)
        bias_grad = grad.sum((0, 1, 2), dtype=torch.float32).to(weight_grad.dtype) if ctx.has_bias else None
        return x_grad, weight_grad, bias_grad


class _GatedDepthwise(torch.autograd.Function):
    """Keeps its input and not the convolution's result, which backward computes again on its way."""

    @staticmethod
    def forward(ctx: Any, x_BHWK: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BHWK, weight, bias)
        return kernels.gated_depthwise(x_BHWK, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_BHWK, weight, bias = ctx.saved_tensors
        hidden_grad = kernels.gate_backward(x_BHWK, weight, bias, grad.contiguous())
        x_grad, weight_grad = kernels.depthwise_backward(x_BHWK, weight, hidden_grad)
        bias_grad = None if bias is None else hidden_grad.sum((0, 1, 2), dtype=torch.float32).to(bias.dtype)
        return x_grad, weight_grad, bias_grad


def _pixels_last(x_BCHW: Tensor) -> Tensor:
    """(B, H, W, C), contiguous: a view of channels-last features."""
    return x_BCHW.permute(0, 2, 3, 1).contiguous()


# -------------------------------------------------------------- layers


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Layer norm over the last axis; without a bias x is only divided by its standard deviation. The result has the
    type of x, sums are in single precision at least, under autocast too."""
    if uses_triton(x):
        return _LayerNorm.apply(x.contiguous(), weight, bias)
    with no_autocast(x.device):
        if bias is not None:
            return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), LAYER_NORM_EPS)
        # F.layer_norm(x) = (x - mean) / σ is not used: adding mean / σ back would cancel digits.
        x_full = x.float() if x.dtype in HALF else x
        variance = x_full.var(dim=-1, unbiased=False, keepdim=True)
        return (x_full * torch.rsqrt(variance + LAYER_NORM_EPS) * weight).to(x.dtype)


def pointwise(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1×1 convolution; weight (K, C, 1, 1)."""
    if x_BCHW.is_cuda and x_BCHW.dtype in HALF:
        # A matrix product: no search for an algorithm, and a gradient that is faster for some sizes. In single
        # precision a convolution may use TF32 where a matrix product does not.
        y_BHWK = F.linear(x_BCHW.permute(0, 2, 3, 1), weight.flatten(1), bias)
        return y_BHWK.permute(0, 3, 1, 2)
    # As a matrix in between: so the gradient has the weight's strides, as DistributedDataParallel wants it.
    return F.conv2d(x_BCHW, weight.flatten(1)[..., None, None], bias)


def depthwise(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3×3 depthwise convolution of the image with zeros around it; weight (C, 1, 3, 3)."""
    if uses_triton(x_BCHW):
        return _Depthwise.apply(_pixels_last(x_BCHW), weight, bias).permute(0, 3, 1, 2)
    return F.conv2d(x_BCHW, weight, bias, padding=1, groups=len(weight))


def gated_depthwise(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`depthwise`, then GELU of the first half of the channels times the other half: (B, 2·K, H, W) → (B, K, H, W)."""
    if uses_triton(x_BCHW):
        return _GatedDepthwise.apply(_pixels_last(x_BCHW), weight, bias).permute(0, 3, 1, 2)
    hidden_BCHW = F.conv2d(x_BCHW, weight, bias, padding=1, groups=len(weight))
    return (_Gate.apply if _by_hand() else _gate)(hidden_BCHW)


def depthwise_rows(x_nWK: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Rows 1 to n - 2 of `depthwise`: the first and the last of x are context. Without gradients."""
    if uses_triton(x_nWK):
        return kernels.depthwise(x_nWK[None, 1:-1], weight, bias, halo=True)[0]
    # The batch axis first, then the order of axes: so it is seen to be channels-last, and not copied.
    x_BKnW = x_nWK[None].permute(0, 3, 1, 2)
    y_BKnW = F.conv2d(x_BKnW, weight, bias, padding=(0, 1), groups=len(weight))
    return y_BKnW.permute(0, 2, 3, 1)[0].contiguous()


def gated_depthwise_rows(x_nWK: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Rows 1 to n - 2 of `gated_depthwise`: the first and the last of x are context. Without gradients."""
    if uses_triton(x_nWK):
        return kernels.gated_depthwise(x_nWK[None, 1:-1], weight, bias, halo=True)[0]
    gate_nWK, value_nWK = depthwise_rows(x_nWK, weight, bias).chunk(2, -1)
    # A processor takes half as long again over half of the channels as over a copy of them.
    return torch.ops.aten.gelu_(gate_nWK.clone(memory_format=torch.contiguous_format)).mul_(value_nWK)


def convolution_to_few(x_nWC: Tensor, weight: Tensor) -> Tensor:
    """A 3×3 convolution to a few channels, weight (K, C, 3, 3), of rows with zeros around them, one more above and one
    more below than x has: (n, W, C) → (n + 2, W, K). cuDNN's in single precision takes ten times as long."""
    n, W, C = x_nWC.shape
    # Each pixel's nine products, added where they belong: backwards, so the filter is turned round.
    taps_KC = weight.flip(2, 3).permute(0, 2, 3, 1).reshape(-1, C)
    products_KN = taps_KC @ x_nWC.reshape(-1, C).t()
    y_KnW = F.fold(products_KN[None], (n + 2, W + 2), 3)[0]
    return y_KnW[..., 1:-1].permute(1, 2, 0)


def _gate(hidden_BKHW: Tensor) -> Tensor:
    """GELU of the first half of the channels, times the other half."""
    gate, value = hidden_BKHW.chunk(2, dim=1)
    return F.gelu(gate) * value


def _for_gelu(half_BKHW: Tensor) -> Tensor:
    """A processor takes four times as long over half of the channels as over a copy of them."""
    on_cpu = half_BKHW.device.type == 'cpu'
    return half_BKHW.clone(memory_format=torch.channels_last) if on_cpu else half_BKHW


class _Gate(torch.autograd.Function):
    """`_gate`, saving only its input for backward."""

    @staticmethod
    def forward(ctx: Any, hidden_BKHW: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_BKHW)
        gate, value = hidden_BKHW.chunk(2, dim=1)
        gate = _for_gelu(gate)
        on_cpu = gate.device.type == 'cpu'
        return (torch.ops.aten.gelu_(gate) if on_cpu else F.gelu(gate)).mul_(value)  # of a copy, in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (hidden_BKHW,) = ctx.saved_tensors
        gate, value = hidden_BKHW.chunk(2, dim=1)
        hidden_grad = torch.empty_like(hidden_BKHW)
        gate_grad, value_grad = hidden_grad.chunk(2, dim=1)
        gate = _for_gelu(gate)
        torch.mul(F.gelu(gate), grad, out=value_grad)
        grad = grad * value
        gate_grad.copy_(torch.ops.aten.gelu_backward.grad_input(grad, gate, grad_input=grad))
        return hidden_grad


def channel_products(qk_BCHW: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Sums over pixels of products of channels: Gram matrices q kᵀ of each head, (B, h, c, c), and squares of all
    channels, (B, 2·C), of queries and keys, (B, 2·C, H, W). In single precision at least."""
    by_hand = _by_hand() or _multiplies_all(qk_BCHW)  # a compiler cannot derive torch.bmm's with two types
    return (_ChannelProducts.apply if by_hand else _channel_products)(qk_BCHW, num_heads)


def _multiplies_all(qk: Tensor) -> bool:
    """Whether to multiply all channels with all, although only those of the same head are needed."""
    return qk.is_cuda and not torch.jit.is_tracing()


def _channel_products(qk_BCHW: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    if _multiplies_all(qk_BCHW):
        products = products_of_pixels(qk_BCHW.permute(0, 2, 3, 1).flatten(1, 2), num_heads)
        return tuple(each.contiguous() for each in products)  # not views, which would keep all products
    full_BCHW = qk_BCHW.float() if qk_BCHW.dtype in HALF else qk_BCHW
    q_BCN, k_BCN = full_BCHW.flatten(2).chunk(2, 1)
    # Head by head: as one batch of B·h the heads would have to be copied apart.
    heads = zip(q_BCN.chunk(num_heads, 1), k_BCN.chunk(num_heads, 1), strict=True)
    # The sum of squares goes over one axis at a time, as over both it runs on few threads.
    return torch.stack([q @ k.transpose(-2, -1) for q, k in heads], 1), full_BCHW.square().sum(3).sum(2)


def products_of_pixels(qk_BNC: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """`channel_products` of (B, N, 2·C), as views of the product of all channels with all: it reads the features once,
    in their own type, and multiplies them exactly on tensor cores."""
    B, N, double = qk_BNC.shape
    # A product with so few results runs on few multiprocessors: add up parts of the pixels.
    parts = _parts(N, max(1, _PARTS // (B * ceil(double / 128) ** 2)))
    qk_PnC = qk_BNC.unflatten(1, (parts, -1)).flatten(0, 1) if parts > 1 else qk_BNC
    if qk_BNC.dtype in HALF and qk_BNC.is_cuda and _MIXED_PRODUCTS:
        product_PCC = torch.bmm(qk_PnC.mT, qk_PnC, out_dtype=torch.float32)
    else:
        full_PnC = qk_PnC.float() if qk_PnC.dtype in HALF else qk_PnC
        product_PCC = full_PnC.mT @ full_PnC
    product_BCC = product_PCC.unflatten(0, (B, parts)).sum(1) if parts > 1 else product_PCC
    return _blocks(product_BCC, num_heads), product_BCC.diagonal(dim1=1, dim2=2)


def add_products(qk_nwC: Tensor, gram_hcc: Tensor, square_C: Tensor) -> None:
    """Adds `channel_products` of one image's region, (n, w, 2·C), to its sums, in place; without gradients."""
    num_heads, double = len(gram_hcc), qk_nwC.shape[-1]
    if _multiplies_all(qk_nwC):
        gram_Bhcc, square_BC = products_of_pixels(qk_nwC.reshape(1, -1, double), num_heads)
        gram_hcc += gram_Bhcc[0]
        square_C += square_BC[0]
        return
    qk_NC = qk_nwC.to(gram_hcc.dtype).reshape(-1, double)
    halves = (half.chunk(num_heads, 1) for half in qk_NC.chunk(2, 1))
    for gram_cc, q_Nc, k_Nc in zip(gram_hcc, *halves, strict=True):
        gram_cc.addmm_(q_Nc.t(), k_Nc)
    # In two steps: a sum over the long axis of a tall matrix runs on one thread.
    square_C += qk_NC.square().view(qk_nwC.shape).sum(1).sum(0)


def _parts(N: int, most: int) -> int:
    """The largest divisor of N that is a power of 2 and not above `most`."""
    return min(N & -N, 1 << (most.bit_length() - 1))


def _blocks(product_BCC: Tensor, num_heads: int) -> Tensor:
    """The blocks of each head's queries by keys, (B, h, c, c), a view of the products of all 2·C channels."""
    C = product_BCC.shape[1] // 2
    heads_Bhchc = product_BCC[:, :C, C:].unflatten(1, (num_heads, -1)).unflatten(3, (num_heads, -1))
    return heads_Bhchc.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


class _ChannelProducts(torch.autograd.Function):
    """`_channel_products`, whose gradient is written into one tensor, in the features' own precision. Autograd by
    itself would make one of each half and of each use, in single precision, and then add them up."""

    @staticmethod
    def forward(ctx: Any, qk_BCHW: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(qk_BCHW)
        ctx.num_heads = num_heads
        return _channel_products(qk_BCHW, num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gram_grad_Bhcc: Tensor, square_grad_BC: Tensor) -> tuple[Tensor, None]:
        (qk_BCHW,) = ctx.saved_tensors
        qk_BNC = qk_BCHW.permute(0, 2, 3, 1).flatten(1, 2)
        if _multiplies_all(qk_BNC):
            # One product with the symmetric matrix of all channels' gradients.
            matrix_BCC = gram_grad_Bhcc.new_zeros(*square_grad_BC.shape, square_grad_BC.shape[1])
            matrix_BCC.diagonal(dim1=1, dim2=2).copy_(square_grad_BC)
            _blocks(matrix_BCC, ctx.num_heads).copy_(gram_grad_Bhcc)
            grad_BNC = qk_BNC @ (matrix_BCC + matrix_BCC.mT).to(qk_BNC.dtype)
            return grad_BNC.unflatten(1, qk_BCHW.shape[2:]).permute(0, 3, 1, 2), None
        gram_grad_Bhcc = gram_grad_Bhcc.to(qk_BNC.dtype)
        grad_BNC = qk_BNC * (2 * square_grad_BC).to(qk_BNC.dtype).unsqueeze(1)
        # Heads of the queries, and then of the keys.
        parts, grads = (tensor.chunk(2 * ctx.num_heads, 2) for tensor in (qk_BNC, grad_BNC))
        for head in range(ctx.num_heads):
            key = head + ctx.num_heads
            grads[head].baddbmm_(parts[key], gram_grad_Bhcc[:, head].mT)
            grads[key].baddbmm_(parts[head], gram_grad_Bhcc[:, head])
        return grad_BNC.unflatten(1, qk_BCHW.shape[2:]).permute(0, 3, 1, 2), None


def like_layout(y_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """y, channels-last if x is: on CUDA, pixel shuffles give channels first whatever they get."""
    if x_BCHW.is_contiguous(memory_format=torch.channels_last):
        return y_BCHW.contiguous(memory_format=torch.channels_last)
    return y_BCHW


# -------------------------------------------------------------- aligned channels


def padded_halves(layer: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a convolution whose results are two halves, gate and value: zeros are appended to both,
    to a multiple of `ALIGNED_CHANNELS`."""
    missing = -(len(layer.weight) // 2) % ALIGNED_CHANNELS

    def padded(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not missing:
            return tensor
        rows = tensor.view(
            2, len(tensor) // 2, -1
        )  # of matrices: a gradient then has the strides of its weight
        return F.pad(rows, (0, 0, 0, missing)).view(-1, *tensor.shape[1:])

    return padded(layer.weight), padded(layer.bias)


def padded_inputs(layer: nn.Conv2d) -> Tensor:
    """The weight of a 1×1 convolution, with zeros for inputs up to a multiple of `ALIGNED_CHANNELS`."""
    missing = -layer.weight.shape[1] % ALIGNED_CHANNELS
    return F.pad(layer.weight.flatten(1), (0, missing))[..., None, None] if missing else layer.weight
