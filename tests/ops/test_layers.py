"""A network through Triton's kernels is the network. Without a GPU the kernels run in Triton's interpreter, and PyTorch
on the CPU around them; tests/gpu/test_network.py has all of it."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip('triton')
from basicsr.archs import restormer_arch
from basicsr.archs.restormer_arch import Restormer
from basicsr.inference import strip_layers
from basicsr.inference.strip_engine import StripEngine
from basicsr.ops import kernels, layers

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason='tests/gpu/test_network.py tests the real thing'
)

TINY = {'dim': 4, 'num_blocks': [0, 1, 0, 1], 'num_refinement_blocks': 0, 'heads': [1, 2, 2, 4]}


@pytest.fixture
def interpreted(monkeypatch):
    for module in (layers, restormer_arch, strip_layers):
        monkeypatch.setattr(module, 'uses_triton', lambda x: x.dtype != torch.float64)
    monkeypatch.setattr(layers, 'kernels', kernels)


def network(**options):
    torch.manual_seed(0)
    net = Restormer(**TINY, **options)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if 'norm' in name or name.endswith('bias'):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return net


@pytest.mark.parametrize(
    'options',
    [{}, {'bias': True}, {'LayerNorm_type': 'BiasFree', 'bias': True}],
    ids=['plain', 'biases', 'BiasFree'],
)
def test_result_gradients_and_strips(interpreted, options):
    net = network(**options)
    x = torch.rand(1, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    exact = copy.deepcopy(net).double()
    wanted = exact(x.double())
    wanted.square().mean().backward()
    found = net(x)
    found.square().mean().backward()
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    for (name, parameter), right in zip(net.named_parameters(), exact.parameters(), strict=True):
        assert (parameter.grad - right.grad).norm() <= 1e-4 * right.grad.norm(), name
    by_strips = StripEngine(net, strip_bytes=3_000)(x)
    assert (by_strips - wanted).norm() <= 1e-5 * wanted.norm()


def test_a_gradient_has_no_gradient(interpreted):
    """It would be wrong without a word: the kernels are unknown to autograd."""
    net, x = network(), torch.rand(1, 3, 8, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.square().sum().backward()


@pytest.mark.parametrize(('capability', 'said'), [((9, 0), 'Failed to find C compiler'), ((7, 5), None)])
def test_where_triton_does_not_run_pytorch_computes(monkeypatch, capability, said):
    warnings = []
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    monkeypatch.setattr(layers.get_logger(), 'warning', lambda text, *values: warnings.append(text % values))

    def fail(name):
        raise RuntimeError('Failed to find C compiler. Please specify via CC environment variable.\nand more')

    monkeypatch.setattr(layers.importlib, 'import_module', fail)
    assert not layers._runs_on.__wrapped__(torch.device('cuda', 0))
    assert [said in warning and 'and more' not in warning for warning in warnings] == ([True] if said else [])


@pytest.mark.parametrize(('N', 'dtype'), [(96, torch.float32), (35, torch.float32), (64, torch.bfloat16)])
def test_products_of_all_channels(N, dtype):
    """The way of a GPU: head by head in double precision is the other one."""
    qk = torch.randn(2, N, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    gram, square = layers.products_of_pixels(qk, 3)
    q, k = qk.double().unflatten(2, (2, 3, 4)).unbind(2)
    assert torch.allclose(gram.double(), torch.einsum('bnhi,bnhj->bhij', q, k), atol=1e-4)
    assert torch.allclose(square.double(), qk.double().square().sum(1), atol=1e-4)


def test_convolution_to_few_channels():
    x, weight = torch.randn(5, 7, 6, dtype=torch.float64), torch.randn(3, 6, 3, 3, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(x.permute(2, 0, 1)[None], weight, padding=(2, 1))[0].permute(1, 2, 0)
    torch.testing.assert_close(layers.convolution_to_few(x, weight), expected)
