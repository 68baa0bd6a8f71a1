"""Triton kernels for CUDA: layer norm, 3×3 depthwise convolution, and the latter with the GDFN's gate.

For few channels, PyTorch's layer norm reaches a tenth of a GPU's bandwidth, and cuDNN's depthwise gradients a quarter;
one kernel for convolution and gate also saves the convolution's result, the largest tensor of a block.

Features are channels-last and contiguous, (B, H, W, K), in float32, bfloat16 or float16; weights may be of another of
these types. All arithmetic is in float32. A program of a depthwise kernel walks down `ROWS` rows of `BW` columns and
`BK` channels and reads every row once for each of the three columns of the filter, instead of nine times.
"""

# The functions with `@triton.jit` are in Triton's language, which has no types for mypy.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows, columns, channels and warps of a program of a depthwise kernel: few channels for each thread, which holds nine
# weights of each.
ROWS = 16
FORWARD = {'BW': 8, 'BK': 64, 'num_warps': 4}
GATED = {'BW': 4, 'BK': 64, 'num_warps': 4}
BACKWARD = {'BW': 4, 'BK': 32, 'num_warps': 2}

Result = TypeVar('Result')


def _where_x_is(function: Callable[..., Result]) -> Callable[..., Result]:
    """Launch on the device of the first argument; Triton takes the current device. (torch.compile takes care of it in
    compiled code.)"""

    @functools.wraps(function)
    def launch(x: Tensor, *args: object, **how: object) -> Result:
        if torch.compiler.is_compiling():
            return function(x, *args, **how)
        with torch.cuda.device_of(x):
            return function(x, *args, **how)

    return launch


@triton.jit
def _normalised(x, mask, C, eps: tl.constexpr):
    """Deviations from the mean of each row, and the reciprocal of the standard deviation."""
    mean = tl.sum(x, 1) / C
    deviation = tl.where(mask, x - mean[:, None], 0.0)
    return deviation, (1.0 / tl.sqrt(tl.sum(deviation * deviation, 1) / C + eps))[:, None]


@triton.jit
def _layer_norm(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    N,
    C,
    eps: tl.constexpr,
    BIAS: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
):
    row = (tl.program_id(0) * BN + tl.arange(0, BN)[:, None]).to(tl.int64)
    column = tl.arange(0, BC)[None, :]
    mask = (row < N) & (column < C)
    x = tl.load(x_ptr + row * C + column, mask=mask, other=0.0).to(tl.float32)
    deviation, reciprocal = _normalised(x, mask, C, eps)
    weight = tl.load(weight_ptr + column, mask=column < C, other=0.0).to(tl.float32)
    if BIAS:
        y = deviation * reciprocal * weight
        y += tl.load(bias_ptr + column, mask=column < C, other=0.0).to(tl.float32)
    else:
        y = x * reciprocal * weight
    tl.store(y_ptr + row * C + column, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _layer_norm_backward(
    x_ptr,
    weight_ptr,
    grad_ptr,
    x_grad_ptr,
    weight_grad_ptr,
    bias_grad_ptr,
    N,
    C,
    eps: tl.constexpr,
    BIAS: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
):
    """Each program sums its rows' part of the parameters' gradients, (programs, C)."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BC)[None, :]
    weight = tl.load(weight_ptr + column, mask=column < C, other=0.0).to(tl.float32)
    weight_grad = tl.zeros((BN, BC), tl.float32)
    bias_grad = tl.zeros((BN, BC), tl.float32)
    for block in range(program, tl.cdiv(N, BN), programs):
        row = (block * BN + tl.arange(0, BN)[:, None]).to(tl.int64)
        mask = (row < N) & (column < C)
        x = tl.load(x_ptr + row * C + column, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + row * C + column, mask=mask, other=0.0).to(tl.float32)
        deviation, reciprocal = _normalised(x, mask, C, eps)
        scaled = grad * weight
        if BIAS:
            unit = deviation * reciprocal
            mean = (tl.sum(scaled, 1) / C)[:, None]
            along = (tl.sum(scaled * unit, 1) / C)[:, None]
            x_grad = reciprocal * (scaled - mean - unit * along)
            weight_grad += grad * unit
            bias_grad += grad
        else:
            along = (tl.sum(scaled * x, 1) / C)[:, None]
            x_grad = reciprocal * scaled - deviation * along * reciprocal * reciprocal * reciprocal
            weight_grad += grad * x * reciprocal
        tl.store(x_grad_ptr + row * C + column, x_grad.to(x_grad_ptr.dtype.element_ty), mask=mask)
    channel = tl.arange(0, BC)
    tl.store(weight_grad_ptr + program * C + channel, tl.sum(weight_grad, 0), mask=channel < C)
    if BIAS:
        tl.store(bias_grad_ptr + program * C + channel, tl.sum(bias_grad, 0), mask=channel < C)


@triton.jit
def _taps(weight_ptr, channel, mask):
    """The nine weights of each channel, row by row, of (K, 1, 3, 3)."""
    place = weight_ptr + channel * 9
    return (
        tl.load(place, mask=mask, other=0.0).to(tl.float32)[None, :],
        tl.load(place + 1, mask=mask, other=0.0).to(tl.float32)[None, :],
        tl.load(place + 2, mask=mask, other=0.0).to(tl.float32)[None, :],
        tl.load(place + 3, mask=mask, other=0.0).to(tl.float32)[None, :],
        tl.load(place + 4, mask=mask, other=0.0).to(tl.float32)[None, :],
        tl.load(place + 5, mask=mask, other=0.0).to(tl.float32)[None, :],
        tl.load(place + 6, mask=mask, other=0.0).to(tl.float32)[None, :],
        tl.load(place + 7, mask=mask, other=0.0).to(tl.float32)[None, :],
        tl.load(place + 8, mask=mask, other=0.0).to(tl.float32)[None, :],
    )


@triton.jit
def _row(place, step, left, centre, right):
    """A row of pixels, and the same one pixel to the left and to the right."""
    return (
        tl.load(place - step, mask=left, other=0.0).to(tl.float32),
        tl.load(place, mask=centre, other=0.0).to(tl.float32),
        tl.load(place + step, mask=right, other=0.0).to(tl.float32),
    )


@triton.jit
def _depthwise(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    H,
    W,
    K,
    BIAS: tl.constexpr,
    HALO: tl.constexpr,
    ROWS: tl.constexpr,
    BW: tl.constexpr,
    BK: tl.constexpr,
):
    """HALO: the rows above the first and below the last are in memory; otherwise they are zeros."""
    parts = tl.cdiv(K, BK)
    channel = tl.program_id(0) % parts * BK + tl.arange(0, BK)
    column = tl.program_id(0) // parts * BW + tl.arange(0, BW)
    top = tl.program_id(1) * ROWS
    image = tl.program_id(2).to(tl.int64) * H * W * K
    known = channel < K
    t0, t1, t2, t3, t4, t5, t6, t7, t8 = _taps(weight_ptr, channel, known)
    bias = tl.zeros((1, BK), tl.float32)
    if BIAS:
        bias += tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    place = column[:, None] * K + channel[None, :]
    centre = (column < W)[:, None] & known[None, :]
    left = ((column > 0) & (column <= W))[:, None] & known[None, :]
    right = (column < W - 1)[:, None] & known[None, :]
    one = tl.zeros((BW, BK), tl.float32)  # unfinished sum of the row above the one that is read
    two = tl.zeros((BW, BK), tl.float32)  # unfinished sum of the row that is read
    for index in range(-1, ROWS + 1):
        row = (top + index).to(tl.int64)
        known_row = HALO & (row <= H) | (row >= 0) & (row < H)
        a, b, c = _row(
            x_ptr + image + row * W * K + place, K, left & known_row, centre & known_row, right & known_row
        )
        result = one + a * t6 + b * t7 + c * t8 + bias
        one = two + a * t3 + b * t4 + c * t5
        two = a * t0 + b * t1 + c * t2
        tl.store(
            y_ptr + image + (row - 1) * W * K + place,
            result.to(y_ptr.dtype.element_ty),
            mask=centre & (index > 0) & (row <= H),
        )


@triton.jit
def _gated_depthwise(
    x_ptr,
    weight_ptr,
    bias_ptr,
    grad_ptr,
    y_ptr,
    H,
    W,
    K,
    BIAS: tl.constexpr,
    HALO: tl.constexpr,
    BACKWARD: tl.constexpr,
    ROWS: tl.constexpr,
    BW: tl.constexpr,
    BK: tl.constexpr,
):
    """x has 2K channels, gates then values. y is gelu(gate) · value of their convolutions, (…, K); with BACKWARD, the
    gradient of the convolutions' results, (…, 2K), from the gradient of gelu(gate) · value."""
    parts = tl.cdiv(K, BK)
    channel = tl.program_id(0) % parts * BK + tl.arange(0, BK)
    column = tl.program_id(0) // parts * BW + tl.arange(0, BW)
    top = tl.program_id(1) * ROWS
    pixels = tl.program_id(2).to(tl.int64) * H * W
    known = channel < K
    t0, t1, t2, t3, t4, t5, t6, t7, t8 = _taps(weight_ptr, channel, known)
    u0, u1, u2, u3, u4, u5, u6, u7, u8 = _taps(weight_ptr + K * 9, channel, known)
    gate_bias = tl.zeros((1, BK), tl.float32)
    value_bias = tl.zeros((1, BK), tl.float32)
    if BIAS:
        gate_bias += tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32)[None, :]
        value_bias += tl.load(bias_ptr + K + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    double = column[:, None] * (2 * K) + channel[None, :]
    single = column[:, None] * K + channel[None, :]
    centre = (column < W)[:, None] & known[None, :]
    left = ((column > 0) & (column <= W))[:, None] & known[None, :]
    right = (column < W - 1)[:, None] & known[None, :]
    gate_one = tl.zeros((BW, BK), tl.float32)
    gate_two = tl.zeros((BW, BK), tl.float32)
    value_one = tl.zeros((BW, BK), tl.float32)
    value_two = tl.zeros((BW, BK), tl.float32)
    for index in range(-1, ROWS + 1):
        row = (top + index).to(tl.int64)
        known_row = HALO & (row <= H) | (row >= 0) & (row < H)
        place = x_ptr + (pixels + row * W) * (2 * K) + double
        a, b, c = _row(place, 2 * K, left & known_row, centre & known_row, right & known_row)
        gate = gate_one + a * t6 + b * t7 + c * t8 + gate_bias
        gate_one = gate_two + a * t3 + b * t4 + c * t5
        gate_two = a * t0 + b * t1 + c * t2
        a, b, c = _row(place + K, 2 * K, left & known_row, centre & known_row, right & known_row)
        value = value_one + a * u6 + b * u7 + c * u8 + value_bias
        value_one = value_two + a * u3 + b * u4 + c * u5
        value_two = a * u0 + b * u1 + c * u2
        written = centre & (index > 0) & (row <= H)
        pixel = pixels + (row - 1) * W
        normal = 0.5 * (1.0 + tl.math.erf(gate * 0.7071067811865476))  # the normal distribution's integral
        if BACKWARD:
            grad = tl.load(grad_ptr + pixel * K + single, mask=written, other=0.0).to(tl.float32)
            slope = normal + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
            y = y_ptr + pixel * (2 * K) + double
            tl.store(y, (grad * value * slope).to(y_ptr.dtype.element_ty), mask=written)
            tl.store(y + K, (grad * gate * normal).to(y_ptr.dtype.element_ty), mask=written)
        else:
            y = y_ptr + pixel * K + single
            tl.store(y, (gate * normal * value).to(y_ptr.dtype.element_ty), mask=written)


@triton.jit
def _depthwise_backward(
    x_ptr,
    weight_ptr,
    grad_ptr,
    x_grad_ptr,
    weight_grad_ptr,
    H,
    W,
    K,
    ROWS: tl.constexpr,
    BW: tl.constexpr,
    BK: tl.constexpr,
):
    """The gradient of x, and each program's part of the weights' gradient, (programs, 9, K).

    y[p] = Σ t[i, j] x[p + (i, j)] over offsets i and j from -1 to 1, so that x_grad[q] = Σ t[i, j] grad[q - (i, j)] and
    t_grad[i, j] = Σ x[q] grad[q - (i, j)]: both need the same rows of grad.
    """
    parts = tl.cdiv(K, BK)
    channel = tl.program_id(0) % parts * BK + tl.arange(0, BK)
    strip = tl.program_id(0) // parts
    column = strip * BW + tl.arange(0, BW)
    top = tl.program_id(1) * ROWS
    image = tl.program_id(2).to(tl.int64) * H * W * K
    known = channel < K
    t0, t1, t2, t3, t4, t5, t6, t7, t8 = _taps(weight_ptr, channel, known)
    zeros = tl.zeros((BW, BK), tl.float32)
    g0, g1, g2, g3, g4, g5, g6, g7, g8 = zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros
    one, two = zeros, zeros
    above = tl.zeros(
        (BW, BK), tl.float32
    )  # not the same object as `here`: Triton would see no change in the loop
    here = tl.zeros((BW, BK), tl.float32)
    place = column[:, None] * K + channel[None, :]
    centre = (column < W)[:, None] & known[None, :]
    left = ((column > 0) & (column <= W))[:, None] & known[None, :]
    right = (column < W - 1)[:, None] & known[None, :]
    for index in range(-1, ROWS + 1):
        row = (top + index).to(tl.int64)
        known_row = (row >= 0) & (row < H)
        a, b, c = _row(
            grad_ptr + image + row * W * K + place, K, left & known_row, centre & known_row, right & known_row
        )
        # Only this program's rows of x count here; other programs add the others.
        mine = centre & (index + 1 < ROWS) & (row + 1 < H)
        below = tl.load(x_ptr + image + (row + 1) * W * K + place, mask=mine, other=0.0).to(tl.float32)
        g0 += above * c
        g1 += above * b
        g2 += above * a
        g3 += here * c
        g4 += here * b
        g5 += here * a
        g6 += below * c
        g7 += below * b
        g8 += below * a
        above = here
        here = below
        x_grad = one + c * t0 + b * t1 + a * t2
        one = two + c * t3 + b * t4 + a * t5
        two = c * t6 + b * t7 + a * t8
        tl.store(
            x_grad_ptr + image + (row - 1) * W * K + place,
            x_grad.to(x_grad_ptr.dtype.element_ty),
            mask=centre & (index > 0) & (row <= H),
        )
    program = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.cdiv(W, BW) + strip
    target = weight_grad_ptr + program.to(tl.int64) * 9 * K + channel
    tl.store(target, tl.sum(g0, 0), mask=known)
    tl.store(target + K, tl.sum(g1, 0), mask=known)
    tl.store(target + 2 * K, tl.sum(g2, 0), mask=known)
    tl.store(target + 3 * K, tl.sum(g3, 0), mask=known)
    tl.store(target + 4 * K, tl.sum(g4, 0), mask=known)
    tl.store(target + 5 * K, tl.sum(g5, 0), mask=known)
    tl.store(target + 6 * K, tl.sum(g6, 0), mask=known)
    tl.store(target + 7 * K, tl.sum(g7, 0), mask=known)
    tl.store(target + 8 * K, tl.sum(g8, 0), mask=known)


def _rows_at_once(C: int) -> tuple[int, int]:
    """Rows of a program, and channels rounded up to a power of 2: about 2048 numbers."""
    channels = triton.next_power_of_2(C)
    return max(1, 2048 // channels), channels


@_where_x_is
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(…, C), contiguous. Without a bias, the mean is not subtracted."""
    C = x.shape[-1]
    N = x.numel() // C
    y = torch.empty_like(x)
    BN, BC = _rows_at_once(C)
    _layer_norm[(triton.cdiv(N, BN),)](x, weight, bias, y, N, C, eps, bias is not None, BN, BC)
    return y


@_where_x_is
def layer_norm_backward(
    x: Tensor, weight: Tensor, has_bias: bool, eps: float, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias."""
    C = x.shape[-1]
    N = x.numel() // C
    BN, BC = _rows_at_once(C)
    programs = min(triton.cdiv(N, BN), 1024)
    x_grad = torch.empty_like(x)
    parts = x.new_empty(1 + has_bias, programs, C, dtype=torch.float32)
    _layer_norm_backward[(programs,)](x, weight, grad, x_grad, parts[0], parts[-1], N, C, eps, has_bias, BN, BC)
    weight_grad, *bias_grad = parts.sum(1).to(weight.dtype).unbind()
    return x_grad, weight_grad, bias_grad[0] if has_bias else None


def _grid(B: int, H: int, W: int, K: int, block: dict[str, int]) -> tuple[int, int, int]:
    return triton.cdiv(W, block['BW']) * triton.cdiv(K, block['BK']), triton.cdiv(H, ROWS), B


@_where_x_is
def depthwise(x_BHWK: Tensor, weight: Tensor, bias: Tensor | None, halo: bool = False) -> Tensor:
    """(B, H, W, K), contiguous; weight (K, 1, 3, 3). `halo`: x is part of a larger tensor, whose rows above and below
    are used; otherwise those rows are zeros."""
    B, H, W, K = x_BHWK.shape
    y = torch.empty_like(x_BHWK)
    grid = _grid(B, H, W, K, FORWARD)
    _depthwise[grid](x_BHWK, weight, bias, y, H, W, K, bias is not None, halo, ROWS, **FORWARD)
    return y


@_where_x_is
def depthwise_backward(x_BHWK: Tensor, weight: Tensor, grad_BHWK: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight."""
    B, H, W, K = x_BHWK.shape
    x_grad = torch.empty_like(x_BHWK)
    grid = _grid(B, H, W, K, BACKWARD)
    programs = triton.cdiv(W, BACKWARD['BW']) * grid[1] * B
    parts = x_BHWK.new_empty(programs, 9, K, dtype=torch.float32)
    _depthwise_backward[grid](x_BHWK, weight, grad_BHWK, x_grad, parts, H, W, K, ROWS, **BACKWARD)
    return x_grad, parts.sum(0).t().to(weight.dtype).reshape(weight.shape)


@_where_x_is
def gated_depthwise(x_BHWK: Tensor, weight: Tensor, bias: Tensor | None, halo: bool = False) -> Tensor:
    """(B, H, W, 2K) → (B, H, W, K): GELU of the convolved first half, times the convolved second half."""
    B, H, W, double = x_BHWK.shape
    K = double // 2
    y = x_BHWK.new_empty(B, H, W, K)
    grid = _grid(B, H, W, K, GATED)
    _gated_depthwise[grid](
        x_BHWK, weight, bias, x_BHWK, y, H, W, K, bias is not None, halo, False, ROWS, **GATED
    )
    return y


@_where_x_is
def gate_backward(x_BHWK: Tensor, weight: Tensor, bias: Tensor | None, grad_BHWK: Tensor) -> Tensor:
    """Gradient of the convolution's result, (B, H, W, 2K), from that of `gated_depthwise`, (B, H, W, K)."""
    B, H, W, double = x_BHWK.shape
    K = double // 2
    y = torch.empty_like(x_BHWK)
    grid = _grid(B, H, W, K, GATED)
    _gated_depthwise[grid](
        x_BHWK, weight, bias, grad_BHWK, y, H, W, K, bias is not None, False, True, ROWS, **GATED
    )
    return y
