"""Layer norm, 1×1 and depthwise convolutions, and the gated feed-forward network, with their gradients.

On a CUDA device Triton kernels (`basicsr/ops/kernels.py`) replace what PyTorch does slowly; elsewhere PyTorch's own
operations run, with gradients written out where autograd would keep or copy large tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from basicsr.ops import dispatch
from basicsr.ops.dispatch import HALF, has_own_gradient, no_autocast, uses_triton

LAYER_NORM_EPS = 1e-5

# Pad channels to a multiple of this; kernels are several times slower otherwise, on CPUs (vectors) and on GPUs
# (tensor cores) alike.
ALIGNED_CHANNELS = 16


def like_layout(y_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """y, channels-last if x is: on CUDA, pixel shuffles return channels-first tensors for any input."""
    if x_BCHW.is_contiguous(memory_format=torch.channels_last):
        return y_BCHW.contiguous(memory_format=torch.channels_last)
    return y_BCHW


def _pixels_last(x_BCHW: Tensor) -> Tensor:
    """(B, H, W, C), contiguous: a view of channels-last features."""
    return x_BCHW.permute(0, 2, 3, 1).contiguous()


# -------------------------------------------------------------- layer norm


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Layer norm over the last axis; without a bias, x is only divided by its standard deviation. The result has the
    type of x; sums are in single precision at least, under autocast too."""
    if uses_triton(x):
        return _LayerNorm.apply(x.contiguous(), weight, bias)
    with no_autocast(x.device):
        if bias is not None:
            return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), LAYER_NORM_EPS)
        # Not F.layer_norm(x) = (x - mean) / σ plus mean / σ: that cancels digits.
        x_full = x.float() if x.dtype in HALF else x
        variance = x_full.var(dim=-1, unbiased=False, keepdim=True)
        return (x_full * torch.rsqrt(variance + LAYER_NORM_EPS) * weight).to(x.dtype)


class _LayerNorm(torch.autograd.Function):
    """Saves only its input for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return dispatch.kernels.layer_norm(x, weight, bias, LAYER_NORM_EPS)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return dispatch.kernels.layer_norm_backward(x, weight, ctx.has_bias, LAYER_NORM_EPS, grad.contiguous())


# -------------------------------------------------------------- convolutions


def channel_slice(layer: nn.Conv2d, channels: slice) -> tuple[Tensor, Tensor | None]:
    """Weight and bias for some of a convolution's output channels."""
    return layer.weight[channels], None if layer.bias is None else layer.bias[channels]


def pointwise(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1×1 convolution; weight (K, C, 1, 1)."""
    if x_BCHW.is_cuda and x_BCHW.dtype in HALF:
        # A matrix product: no search for an algorithm, and a faster gradient for some sizes. In single precision a
        # convolution may use TF32 where a matrix product does not.
        y_BHWK = F.linear(x_BCHW.permute(0, 2, 3, 1), weight.flatten(1), bias)
        return y_BHWK.permute(0, 3, 1, 2)
    # Through a matrix, so that the gradient has the weight's strides, as DistributedDataParallel expects.
    return F.conv2d(x_BCHW, weight.flatten(1)[..., None, None], bias)


def depthwise(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3×3 depthwise convolution with zero padding; weight (C, 1, 3, 3)."""
    if uses_triton(x_BCHW):
        return _Depthwise.apply(_pixels_last(x_BCHW), weight, bias).permute(0, 3, 1, 2)
    return F.conv2d(x_BCHW, weight, bias, padding=1, groups=len(weight))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BHWK: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BHWK, weight)
        ctx.has_bias = bias is not None
        return dispatch.kernels.depthwise(x_BHWK, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad.contiguous()
        x_grad, weight_grad = dispatch.kernels.depthwise_backward(*ctx.saved_tensors, grad)
        bias_grad = grad.sum((0, 1, 2), dtype=torch.float32).to(weight_grad.dtype) if ctx.has_bias else None
        return x_grad, weight_grad, bias_grad


# -------------------------------------------------------------- the gated feed-forward network


def padded_feed_forward(
    x_BCHW: Tensor, project_in: nn.Conv2d, dwconv: nn.Conv2d, project_out: nn.Conv2d
) -> Tensor:
    """The GDFN, with zero channels appended to gate and value: gradients for an odd number of channels take several
    times as long."""
    hidden_BKHW = pointwise(x_BCHW, *padded_halves(project_in))
    gated_BKHW = gated_depthwise(hidden_BKHW, *padded_halves(dwconv))
    return pointwise(gated_BKHW, padded_inputs(project_out), project_out.bias)


def padded_halves(layer: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a convolution to gate and value, each padded with zeros to a multiple of
    `ALIGNED_CHANNELS`."""
    missing = -(len(layer.weight) // 2) % ALIGNED_CHANNELS

    def padded(tensor: Tensor) -> Tensor:
        if not missing:
            return tensor
        # Pad matrices: a gradient then has the strides of its weight.
        rows = tensor.view(2, len(tensor) // 2, -1)
        return F.pad(rows, (0, 0, 0, missing)).view(-1, *tensor.shape[1:])

    return padded(layer.weight), None if layer.bias is None else padded(layer.bias)


def padded_inputs(layer: nn.Conv2d) -> Tensor:
    """The weight of a 1×1 convolution, padded with zero inputs to a multiple of `ALIGNED_CHANNELS`."""
    missing = -layer.weight.shape[1] % ALIGNED_CHANNELS
    return F.pad(layer.weight.flatten(1), (0, missing))[..., None, None] if missing else layer.weight


def gated_depthwise(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`depthwise`, then GELU of the first half of the channels times the other half: (B, 2K, H, W) → (B, K, H, W)."""
    if uses_triton(x_BCHW):
        return _GatedDepthwise.apply(_pixels_last(x_BCHW), weight, bias).permute(0, 3, 1, 2)
    hidden_BCHW = F.conv2d(x_BCHW, weight, bias, padding=1, groups=len(weight))
    if has_own_gradient():
        return _GatedGelu.apply(hidden_BCHW)
    gate, value = hidden_BCHW.chunk(2, dim=1)
    return F.gelu(gate) * value


class _GatedGelu(torch.autograd.Function):
    """gelu(gate) · value, saving only its input for backward."""

    @staticmethod
    def forward(ctx: Any, hidden_BKHW: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_BKHW)
        gate, value = hidden_BKHW.chunk(2, dim=1)
        gate = _for_gelu(gate)
        on_cpu = gate.device.type == 'cpu'
        return (torch.ops.aten.gelu_(gate) if on_cpu else F.gelu(gate)).mul_(value)  # the copy, in place

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


def _for_gelu(half_BKHW: Tensor) -> Tensor:
    """A contiguous copy on a CPU, where GELU of every other run of channels takes four times as long."""
    on_cpu = half_BKHW.device.type == 'cpu'
    return half_BKHW.clone(memory_format=torch.channels_last) if on_cpu else half_BKHW


class _GatedDepthwise(torch.autograd.Function):
    """Saves its input and not the convolution's result, which backward computes again."""

    @staticmethod
    def forward(ctx: Any, x_BHWK: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BHWK, weight, bias)
        return dispatch.kernels.gated_depthwise(x_BHWK, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_BHWK, weight, bias = ctx.saved_tensors
        hidden_grad = dispatch.kernels.gate_backward(x_BHWK, weight, bias, grad.contiguous())
        x_grad, weight_grad = dispatch.kernels.depthwise_backward(x_BHWK, weight, hidden_grad)
        bias_grad = None if bias is None else hidden_grad.sum((0, 1, 2), dtype=torch.float32).to(bias.dtype)
        return x_grad, weight_grad, bias_grad
