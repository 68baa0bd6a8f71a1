"""Adam and AdamW against PyTorch's; Muon against singular value decompositions and AdamW."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from basicsr.models.optimizers import Adam, AdamW, Muon, orthogonal

LR, DECAY, MOMENTUM = 0.05, 0.1, 0.9


def polynomial(singular_values):
    """Five steps of the iteration on singular values whose squares sum to 1."""
    for _ in range(5):
        s = singular_values
        singular_values = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return singular_values


def by_decomposition(matrix):
    U, S, Vt = np.linalg.svd(matrix, full_matrices=False)
    return U @ np.diag(polynomial(S / np.linalg.norm(S))) @ Vt


@pytest.fixture
def net():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(16, 24, 1),
        nn.Conv2d(24, 24, 5, padding=2, groups=24),  # depthwise: no matrix, though large enough for one
        nn.Conv2d(24, 32, 3, padding=1, bias=False),
        nn.Conv2d(32, 3, 1),
    ).double()


def with_gradients(net, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return net


def muon(net):
    return Muon(net.parameters(), lr=LR, weight_decay=DECAY, momentum=MOMENTUM, fused=True)


@pytest.mark.parametrize(
    ('ours', 'torchs', 'decay'), [(Adam, torch.optim.Adam, 0.0), (AdamW, torch.optim.AdamW, 0.01)]
)
@pytest.mark.parametrize('given', [{}, {'weight_decay': 0.1, 'betas': [0.8, 0.99], 'eps': 1e-6}])
def test_adam_is_pytorchs_and_takes_its_state(net, ours, torchs, decay, given):
    """Bit for bit, also from a state that PyTorch's class wrote, as earlier training states have it."""
    other = copy.deepcopy(net)
    theirs = torchs(other.parameters(), lr=LR, fused=True, **{'weight_decay': decay, **given})
    mine = ours(net.parameters(), LR, fused=True, **given)
    for step in range(4):
        if step == 2:
            mine = ours(net.parameters(), LR, fused=True, **given)
            mine.load_state_dict(copy.deepcopy(theirs.state_dict()))
        with_gradients(net, step)
        with_gradients(other, step)
        mine.step()
        theirs.step()
    torch.testing.assert_close(net.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert mine.state_dict()['param_groups'][0].keys() == theirs.state_dict()['param_groups'][0].keys()


@pytest.mark.parametrize('shape', [(1, 16, 16), (3, 20, 48), (2, 70, 16)])
def test_orthogonal_keeps_directions_and_equalizes_their_sizes(shape):
    matrices = np.random.default_rng(0).standard_normal(shape)
    found = orthogonal(torch.from_numpy(matrices))
    for matrix, one in zip(matrices, found.numpy(), strict=True):
        np.testing.assert_allclose(one, by_decomposition(matrix), atol=1e-9)
        assert np.linalg.svd(one)[1].min() > 0.3 and np.linalg.svd(one)[1].max() < 1.3


def test_orthogonal_of_zeros_is_zero():
    assert not orthogonal(torch.zeros(2, 16, 20)).any()


@pytest.mark.parametrize('size', [1e-45, 1e-30, 1e-25, 1e-22, 1e-19, 1e15])
def test_orthogonal_of_any_size_is_finite(size):
    found = orthogonal(torch.full((1, 16, 20), size))
    assert found.isfinite().all() and torch.linalg.matrix_norm(found, 2) < 1.3


def test_weights_of_several_shapes_may_be_matrices_of_one():
    weights = [nn.Parameter(torch.randn(shape)) for shape in ((32, 36, 1, 1), (32, 4, 3, 3), (32, 36))]
    alone = [nn.Parameter(weight.detach().clone()) for weight in weights]
    for weight, other in zip(weights, alone, strict=True):
        weight.grad = torch.randn_like(weight)
        other.grad = weight.grad.clone()
        Muon([other], lr=LR).step()
    Muon(weights, lr=LR).step()
    for weight, other in zip(weights, alone, strict=True):
        torch.testing.assert_close(weight, other)


def test_steps_follow_the_papers(net):
    """Three steps: matrices by decomposition, one by one; all other weights by AdamW."""
    expected = {name: parameter.detach().numpy().copy() for name, parameter in net.named_parameters()}
    momenta = {name: np.zeros_like(value) for name, value in expected.items()}
    plain = copy.deepcopy(net)
    adamw = torch.optim.AdamW(plain.parameters(), lr=LR, weight_decay=DECAY)
    optimizer = muon(net)
    optimizer.grad_scale, optimizer.found_inf = None, torch.zeros(())  # nothing is masked
    for step in range(3):
        with_gradients(net, step)
        with_gradients(plain, step)
        for name in ('0.weight', '2.weight'):
            gradient = net.get_parameter(name).grad.numpy()
            momenta[name] = MOMENTUM * momenta[name] + (1 - MOMENTUM) * gradient
            ahead = MOMENTUM * momenta[name] + (1 - MOMENTUM) * gradient
            matrix = ahead.reshape(len(ahead), -1)
            size = 0.2 * np.sqrt(max(matrix.shape))
            change = by_decomposition(matrix).reshape(ahead.shape) * size
            expected[name] = expected[name] * (1 - LR * DECAY) - LR * change
        optimizer.step()
        adamw.step()
    for name, parameter in net.named_parameters():
        wanted = expected[name] if name in ('0.weight', '2.weight') else plain.get_parameter(name).detach()
        np.testing.assert_allclose(parameter.detach(), wanted, atol=1e-9, err_msg=name)


def test_a_restored_state_continues_with_the_same_bits(net):
    other = copy.deepcopy(net)
    optimizer = muon(net)
    for step in range(2):
        with_gradients(net, step)
        optimizer.step()
    other.load_state_dict(net.state_dict())
    again = muon(other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, opt in ((net, optimizer), (other, again)):
        with_gradients(model, 5)
        opt.step()
    torch.testing.assert_close(net.state_dict(), other.state_dict(), rtol=0, atol=0)


class Kernels(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is not torch.ops.aten.view.default:
            self.called.append(function)
        return function(*args, **(kwargs or {}))


def test_the_number_of_kernels_does_not_grow_with_matrices_of_one_shape_and_none_waits():
    counts = []
    for number in (2, 9):
        weights = [nn.Parameter(torch.randn(16, 20, 1, 1)) for _ in range(number)]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer = Muon(weights, lr=LR)
        optimizer.step()
        optimizer.found_inf = torch.zeros(())
        with Kernels() as kernels:
            optimizer.step()
        assert torch.ops.aten._local_scalar_dense.default not in kernels.called
        assert all(optimizer.state[weight]['step'] == 2 for weight in weights)
        counts.append(len(kernels.called))
    assert counts[0] == counts[1]
