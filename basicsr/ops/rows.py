"""Layer norm and convolutions of strips of an image: rows of pixels, without gradients and outside autocast.

Each class converts its parameters once, for the kernels that compute with them: those in C on a CPU
(`basicsr/ops/cpu_kernels.py`), Triton's on a CUDA device, or else PyTorch's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from basicsr.ops import cpu_kernels, dispatch
from basicsr.ops.dispatch import uses_triton
from basicsr.ops.layers import LAYER_NORM_EPS
from basicsr.utils.memory import Workspace


def _converted(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous. Every NaN becomes PyTorch's own: the kernels in C could round others to zero."""
    return parameter.to(dtype).masked_fill(parameter.isnan(), torch.nan).contiguous()


class LayerNormRows:
    """`layer_norm` of (…, C), contiguous, with features of one type."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.in_c = cpu_kernels.run_on(weight.device, dtype, len(weight))
        own = torch.float32 if self.in_c else dtype
        self.weight, self.bias = _converted(weight, own), None if bias is None else _converted(bias, own)

    def __call__(self, x: Tensor, workspace: Workspace) -> Tensor:
        if self.in_c:
            y = workspace.get('normalized', x.dtype, *x.shape)
            cpu_kernels.layer_norm(x, self.weight, self.bias, LAYER_NORM_EPS, y)
            return y
        if uses_triton(x):
            return dispatch.kernels.layer_norm(x.contiguous(), self.weight, self.bias, LAYER_NORM_EPS)
        if self.bias is not None:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, LAYER_NORM_EPS)
        full = x.to(torch.promote_types(x.dtype, torch.float32))
        *_, reciprocal = torch.native_layer_norm(full, self.weight.shape, None, None, LAYER_NORM_EPS)
        return (full * reciprocal).mul_(self.weight).to(x.dtype)


class DepthwiseRows:
    """Rows 1 to n - 2 of `depthwise`, or of `gated_depthwise`, of n contiguous rows (n, W, K): the first and the last
    row are context.

    `sums`: the result is for sums over pixels. The kernels in C then return it in float32, before it is rounded.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        gated: bool = False,
        sums: bool = False,
    ) -> None:
        self.gated, self.sums = gated, sums
        self.channels = len(weight)
        self.in_c = cpu_kernels.run_on(weight.device, dtype, self.channels // (1 + gated))
        own = torch.float32 if self.in_c else dtype
        weight = weight.flatten(1).t() if self.in_c else weight  # (9, K)
        self.weight, self.bias = _converted(weight, own), None if bias is None else _converted(bias, own)

    def __call__(self, x_nWK: Tensor, workspace: Workspace) -> Tensor:
        if self.in_c:
            n, W, K = x_nWK.shape
            dtype = torch.float32 if self.sums else x_nWK.dtype
            y_nWK = workspace.get('convolved', dtype, n - 2, W, K // (1 + self.gated))
            compute = cpu_kernels.gated_depthwise if self.gated else cpu_kernels.depthwise
            compute(x_nWK, self.weight, self.bias, y_nWK)
            return y_nWK
        if uses_triton(x_nWK):
            convolve = dispatch.kernels.gated_depthwise if self.gated else dispatch.kernels.depthwise
            return convolve(x_nWK[None, 1:-1], self.weight, self.bias, halo=True)[0]
        # Add the batch axis before permuting: PyTorch then recognises channels-last and does not copy.
        x_BKnW = x_nWK[None].permute(0, 3, 1, 2)
        y_BKnW = F.conv2d(x_BKnW, self.weight, self.bias, padding=(0, 1), groups=self.channels)
        y_nWK = y_BKnW.permute(0, 2, 3, 1)[0].contiguous()
        if not self.gated:
            return y_nWK
        gate_nWK, value_nWK = y_nWK.chunk(2, -1)
        # Copy the gate first: on a CPU, GELU of every other run of channels takes 1.5 times as long.
        return torch.ops.aten.gelu_(gate_nWK.clone(memory_format=torch.contiguous_format)).mul_(value_nWK)


def convolution_to_few(x_nWC: Tensor, weight: Tensor) -> Tensor:
    """A 3×3 convolution with few output channels, weight (K, C, 3, 3): (n, W, C) → (n + 2, W, K). The input counts as
    zero outside its n rows, and the result includes the row above and the row below. In single precision cuDNN takes
    ten times as long."""
    n, W, C = x_nWC.shape
    # Scatter each pixel's nine products to their places: the filter is flipped.
    taps_KC = weight.flip(2, 3).permute(0, 2, 3, 1).reshape(-1, C)
    products_KN = taps_KC @ x_nWC.reshape(-1, C).t()
    y_KnW = F.fold(products_KN[None], (n + 2, W + 2), 3)[0]
    return y_KnW[..., 1:-1].permute(1, 2, 0)
