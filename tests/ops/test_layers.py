"""A network that computes with the Triton kernels, which run in Triton's interpreter here (see tests/conftest.py);
tests/gpu/test_network.py runs them on a GPU."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip('triton')
from basicsr.archs import restormer_arch
from basicsr.archs.restormer_arch import Restormer
from basicsr.inference.strip_engine import StripEngine
from basicsr.ops import dispatch, kernels, layers, rows

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason='tests/gpu/test_network.py tests this on the GPU'
)

TINY = {'dim': 4, 'num_blocks': [0, 1, 0, 0], 'num_refinement_blocks': 0, 'heads': [1, 2, 2, 4]}


@pytest.fixture
def interpreted(monkeypatch):
    for module in (layers, rows, restormer_arch):
        monkeypatch.setattr(module, 'uses_triton', lambda x: x.dtype != torch.float64)
    monkeypatch.setattr(dispatch, 'kernels', kernels)
    monkeypatch.setattr(kernels, 'ROWS', 2)  # the interpreter takes seconds for programs of many rows


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
    [
        pytest.param({'bias': True}, id='biases'),
        pytest.param({'LayerNorm_type': 'BiasFree'}, id='BiasFree', marks=pytest.mark.slow),
    ],
)
def test_result_gradients_and_strips_equal_double_precision(interpreted, options):
    net = network(**options)
    x = torch.rand(1, 3, 16, 8).contiguous(memory_format=torch.channels_last)
    exact = copy.deepcopy(net).double()
    wanted = exact(x.double())
    wanted.square().mean().backward()
    found = net(x)
    found.square().mean().backward()
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    for (name, parameter), right in zip(net.named_parameters(), exact.parameters(), strict=True):
        assert (parameter.grad - right.grad).norm() <= 1e-4 * right.grad.norm(), name
    by_strips = StripEngine(net, strip_bytes=1_000)(x)
    assert (by_strips - wanted).norm() <= 1e-5 * wanted.norm()


def test_gradient_of_a_gradient_raises(interpreted):
    """Autograd does not know the kernels; it would be wrong silently."""
    net, x = network(), torch.rand(1, 3, 8, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.square().sum().backward()


@pytest.mark.parametrize(('capability', 'said'), [((9, 0), 'Failed to find C compiler'), ((7, 5), None)])
def test_pytorch_computes_where_triton_does_not_run(monkeypatch, capability, said):
    warnings = []
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    monkeypatch.setattr(dispatch.get_logger(), 'warning', lambda text, *values: warnings.append(text % values))

    def fail(name):
        raise RuntimeError('Failed to find C compiler. Please specify via CC environment variable.\nand more')

    monkeypatch.setattr(dispatch.importlib, 'import_module', fail)
    assert not dispatch._runs_on.__wrapped__(torch.device('cuda', 0))
    assert [said in warning and 'and more' not in warning for warning in warnings] == ([True] if said else [])


def test_convolution_to_few_channels():
    x, weight = torch.randn(5, 7, 6, dtype=torch.float64), torch.randn(3, 6, 3, 3, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(x.permute(2, 0, 1)[None], weight, padding=(2, 1))[0].permute(1, 2, 0)
    torch.testing.assert_close(rows.convolution_to_few(x, weight), expected)
