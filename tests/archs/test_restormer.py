"""The network against the published names and the plain formulation, `restormer_reference`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from basicsr.archs import restormer_reference as reference
from basicsr.archs.restormer_arch import BiasFree_LayerNorm, Restormer, TransformerBlock

HERE = Path(__file__).parent
SMALL = {'dim': 16, 'num_blocks': [1, 2, 1, 2], 'num_refinement_blocks': 2, 'heads': [1, 2, 4, 8]}
CONFIGURATIONS = {
    'deblurring': {},
    'real denoising': {'LayerNorm_type': 'BiasFree'},
    'biases': {'bias': True},
    'biases, BiasFree': {'bias': True, 'LayerNorm_type': 'BiasFree'},
    'grey denoising': {'inp_channels': 1, 'out_channels': 1, 'LayerNorm_type': 'BiasFree'},
    'dual pixel': {'inp_channels': 6, 'dual_pixel_task': True},
    'dual pixel, biases': {'inp_channels': 6, 'dual_pixel_task': True, 'bias': True},
}


def far_from_defaults(net: torch.nn.Module) -> torch.nn.Module:
    """Fresh norms are 1 and 0 and fresh temperatures 1, which would hide a mistake in their place."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            if name.endswith('temperature'):
                parameter.copy_(1 + noise.abs() * 2)
            elif 'norm' in name or name.endswith('bias'):
                parameter.add_(noise * 0.3)
    return net


def images(channels: int, dtype: torch.dtype) -> torch.Tensor:
    """Three crops: noise, black, and half black."""
    x = torch.rand(3, channels, 24, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[1] = 0
    x[2, :, :12] = 0
    return x.to(dtype)


def run_reference(net, x):
    return reference.restormer(dict(net.named_parameters()), x)


def gradients(net, output, x):
    target = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * target).sum(), [*net.parameters(), x], materialize_grads=True)


def small_network(options, dtype=torch.float64):
    torch.manual_seed(0)
    return far_from_defaults(Restormer(**SMALL, **options)).to(dtype)


@pytest.mark.parametrize('name', CONFIGURATIONS)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_double_precision_equals_the_reference(name, layout):
    options = CONFIGURATIONS[name]
    net = small_network(options).to(memory_format=layout)
    x = images(options.get('inp_channels', 3), torch.float64).contiguous(memory_format=layout)
    with torch.no_grad():
        ours, theirs = net(x), run_reference(net, x)
    assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max()


@pytest.mark.parametrize('name', CONFIGURATIONS)
def test_single_precision_is_as_exact_as_the_reference(name):
    """A black crop is ill-conditioned (every norm divides by nearly nothing): there the reference itself is more than
    1e-5 off the exact result, and the network may be as far off."""
    options = CONFIGURATIONS[name]
    net = small_network(options, torch.float32)
    x = images(options.get('inp_channels', 3), torch.float32)
    with torch.no_grad():
        ours, theirs = net(x), run_reference(net, x)
        exact = run_reference(net.double(), x.double())
    scale = exact.abs().max()
    lit = [0, 2]
    assert (ours - theirs)[lit].abs().max() <= 1e-5 * scale
    assert (ours - exact).abs().max() <= max(1e-5 * scale, 3 * (theirs - exact).abs().max())


SLOW_GRADIENTS = {'biases', 'grey denoising', 'biases, BiasFree', 'dual pixel'}


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_GRADIENTS)) for name in CONFIGURATIONS]
)
def test_gradients_equal_the_reference(name):
    """In single precision both formulations are a few 1e-5 of each tensor's largest gradient off the exact gradients:
    there the network may be as far off as the reference."""
    options = CONFIGURATIONS[name]
    net = small_network(options, torch.float64)
    x = images(options.get('inp_channels', 3), torch.float64).requires_grad_()
    exact = gradients(net, run_reference(net, x), x)
    ours = gradients(net, net(x), x)
    for parameter, mine, right in zip([*dict(net.named_parameters()), 'x'], ours, exact, strict=True):
        assert (mine - right).abs().max() <= 1e-9 * right.abs().max(), parameter

    lit = x.detach()[[0, 2]].requires_grad_()
    exact = gradients(net, run_reference(net, lit), lit)
    net, lit = net.float(), lit.detach().float().requires_grad_()
    theirs = gradients(net, run_reference(net, lit), lit)
    ours = gradients(net, net(lit), lit)
    largest = max(gradient.abs().max() for gradient in exact)
    for parameter, mine, other, right in zip(
        [*dict(net.named_parameters()), 'x'], ours, theirs, exact, strict=True
    ):
        error, their_error = (mine - right).abs().max(), (other - right).abs().max()
        assert error <= max(1e-5 * largest, 4 * their_error), parameter


def test_gradients_have_the_strides_of_their_weights():
    """DistributedDataParallel copies gradients with other strides."""
    net = Restormer(**SMALL, bias=True)
    x = torch.rand(2, 3, 24, 40).contiguous(memory_format=torch.channels_last)
    net(x).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name


def test_black_crop_gives_finite_gradients():
    """Queries and keys are zero there, where a square root has an infinite slope."""
    net = Restormer(**SMALL)
    x = torch.zeros(2, 3, 16, 16, requires_grad=True)
    output = net(x)
    assert torch.equal(output, torch.zeros_like(output))
    assert all(gradient.isfinite().all() for gradient in gradients(net, output, x))


def test_published_names_shapes_and_size():
    published = json.loads((HERE / 'restormer_state_dict.json').read_text())
    net = Restormer()
    assert {name: list(tensor.shape) for name, tensor in net.state_dict().items()} == published
    assert len(published) == 494
    assert sum(parameter.numel() for parameter in net.parameters()) == 26_126_644


def test_published_size_of_the_bias_free_network():
    assert sum(p.numel() for p in Restormer(LayerNorm_type='BiasFree').parameters()) == 26_111_668


def test_bias_free_norm_keeps_the_mean():
    x = torch.tensor([[1.0, 2.0, 6.0]])
    expected = x / (x.var(unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(BiasFree_LayerNorm(3)(x), expected)


@pytest.mark.slow
def test_compiles_as_a_graph():
    """No graph breaks. (Only traced: a compiler may be missing.)"""
    net = Restormer(dim=8, num_blocks=[1, 0, 0, 1], num_refinement_blocks=0, heads=[1, 1, 2, 2])
    x = images(3, torch.float32)[:, :, :16, :16]
    compiled = torch.compile(net, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-5)


def test_features_stay_channels_last_after_channels_first_pixel_shuffles(monkeypatch):
    """As on CUDA, where pixel shuffles return channels-first tensors for any input."""
    for name in ('pixel_shuffle', 'pixel_unshuffle'):
        shuffle = getattr(torch.nn.functional, name)
        monkeypatch.setattr(
            torch.nn.functional, name, lambda x, factor, shuffle=shuffle: shuffle(x.contiguous(), factor)
        )
    net, layouts = Restormer(**SMALL), []
    for module in net.modules():
        if isinstance(module, TransformerBlock):
            module.register_forward_hook(
                lambda *seen: layouts.append(seen[2].is_contiguous(memory_format=torch.channels_last))
            )
    net(torch.rand(2, 3, 24, 40).contiguous(memory_format=torch.channels_last))
    assert len(layouts) == 12 and all(layouts)


@pytest.mark.parametrize(
    ('arguments', 'name'),
    [
        ({'dim': 15}, 'dim'),
        ({'heads': [1, 2, 4, 7]}, 'heads'),
        ({'heads': [1, 2, 4]}, 'heads'),
        ({'num_blocks': [1, 1, 1]}, 'num_blocks'),
        ({'num_refinement_blocks': -1}, 'num_refinement_blocks'),
        ({'LayerNorm_type': 'Batch'}, 'LayerNorm_type'),
        ({'inp_channels': 6}, 'out_channels'),
    ],
)
def test_invalid_argument_raises(arguments, name):
    with pytest.raises(ValueError, match=f'^{name}: found'):
        Restormer(**arguments)


def test_size_that_is_no_multiple_of_8_raises():
    with pytest.raises(ValueError, match='multiples of 8'):
        Restormer(**SMALL)(torch.rand(1, 3, 20, 24))
