"""The Triton kernels against autograd over PyTorch's operations in double precision: on a GPU, or without one in
Triton's interpreter (see tests/conftest.py)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('triton')
from basicsr.ops import kernels

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def assert_near(result, exact, tolerance=1e-6):
    assert result.shape == exact.shape
    assert (result.double() - exact).norm() <= tolerance * exact.norm()


def plain_norm(x, weight, bias):
    deviation = x - x.mean(-1, keepdim=True)
    sigma = (deviation.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return x / sigma * weight if bias is None else deviation / sigma * weight + bias


@pytest.mark.parametrize('has_bias', [True, False])
@pytest.mark.parametrize('shape', [(2, 5, 7, 48), (3, 130)])
def test_layer_norm_and_gradients(shape, has_bias):
    x, grad = random(*shape) + 0.5, random(*shape, seed=1)
    weight = random(shape[-1], seed=2)
    bias = random(shape[-1], seed=3) if has_bias else None
    exact = [None if each is None else each.double().requires_grad_() for each in (x, weight, bias)]
    result = plain_norm(*exact)
    assert_near(kernels.layer_norm(x, weight, bias, 1e-5), result)
    grads = kernels.layer_norm_backward(x, weight, has_bias, 1e-5, grad)
    wanted = torch.autograd.grad(result, [each for each in exact if each is not None], grad.double())
    for mine, right in zip(grads, wanted, strict=False):
        assert_near(mine, right)
    assert (grads[2] is None) is not has_bias


def convolved(x_BHWK, weight, bias):
    return F.conv2d(x_BHWK.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(weight)).permute(0, 2, 3, 1)


def case(shape, has_bias):
    """x, weight and bias, in single precision, and in double with gradients."""
    K = shape[-1]
    tensors = random(*shape), random(K, 1, 3, 3, seed=1), random(K, seed=2) if has_bias else None
    return tensors, [None if each is None else each.double().requires_grad_() for each in tensors]


# One image smaller than a program in every direction; one that needs several programs in each, of few rows to save
# time.
SHAPES = [((2, 3, 5, 6), kernels.ROWS), ((1, 6, 9, 70), 4)]


@pytest.fixture
def rows(request, monkeypatch):
    monkeypatch.setattr(kernels, 'ROWS', request.param)


@pytest.mark.parametrize('has_bias', [True, False])
@pytest.mark.parametrize(('shape', 'rows'), SHAPES, indirect=['rows'])
def test_depthwise_and_gradients(shape, rows, has_bias):
    tensors, exact = case(shape, has_bias)
    result = convolved(*exact)
    assert_near(kernels.depthwise(*tensors), result)
    grad = random(*shape, seed=3)
    wanted = torch.autograd.grad(result, exact[:2], grad.double())
    for mine, right in zip(kernels.depthwise_backward(*tensors[:2], grad), wanted, strict=True):
        assert_near(mine, right)


@pytest.mark.parametrize('has_bias', [True, False])
@pytest.mark.parametrize(('shape', 'rows'), SHAPES, indirect=['rows'])
def test_gated_depthwise_and_gradient(shape, rows, has_bias):
    tensors, exact = case(shape, has_bias)
    hidden = convolved(*exact)
    gate, value = hidden.chunk(2, -1)
    result = F.gelu(gate) * value
    assert_near(kernels.gated_depthwise(*tensors), result)
    grad = random(*result.shape, seed=3)
    (wanted,) = torch.autograd.grad(result, hidden, grad.double())
    assert_near(kernels.gate_backward(*tensors, grad), wanted)


@pytest.mark.parametrize('name', ['depthwise', 'gated_depthwise'])
def test_halo_rows_come_from_the_image(name, monkeypatch):
    monkeypatch.setattr(kernels, 'ROWS', 4)
    (x, weight, bias), _ = case((1, 16, 9, 20), has_bias=True)
    function = getattr(kernels, name)
    whole = function(x, weight, bias)
    assert torch.equal(function(x[:, 3:13], weight, bias, halo=True), whole[:, 3:13])
    assert not torch.equal(function(x[:, 3:13].contiguous(), weight, bias), whole[:, 3:13])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_features_with_weights_in_single(dtype):
    """As in training: results are rounded, sums and gradients of weights are not."""
    rounding = torch.finfo(dtype).eps
    x, grad = random(1, 9, 7, 24).to(dtype), random(1, 9, 7, 24, seed=1).to(dtype)
    weight, bias = random(24, 1, 3, 3, seed=2), random(24, seed=3)
    exact = [each.double().requires_grad_() for each in (x, weight, bias)]
    result = convolved(*exact)
    wanted = torch.autograd.grad(result, exact[:2], grad.double(), retain_graph=True)
    assert_near(kernels.depthwise(x, weight, bias), result, rounding)
    x_grad, weight_grad = kernels.depthwise_backward(x, weight, grad)
    assert x_grad.dtype == dtype and weight_grad.dtype == torch.float32
    assert_near(x_grad, wanted[0], rounding)
    assert_near(weight_grad, wanted[1])
    gate, value = result.chunk(2, -1)
    assert_near(kernels.gated_depthwise(x, weight, bias), F.gelu(gate) * value, rounding)

    scale, shift = random(24, seed=4), random(24, seed=5)
    exact = [each.double().requires_grad_() for each in (x, scale, shift)]
    result = plain_norm(*exact)
    wanted = torch.autograd.grad(result, exact, grad.double())
    assert_near(kernels.layer_norm(x, scale, shift, 1e-5), result, rounding)
    grads = kernels.layer_norm_backward(x, scale, True, 1e-5, grad)
    for mine, right, tolerance in zip(grads, wanted, (rounding, 1e-6, 1e-6), strict=True):
        assert_near(mine, right, tolerance)
