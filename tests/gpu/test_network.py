"""The network, its gradients and the strip engine on a GPU, against the CPU in double precision."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch

from basicsr.archs import restormer_arch
from basicsr.archs.restormer_arch import Restormer
from basicsr.inference.strip_engine import StripEngine
from basicsr.ops import dispatch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')

SMALL = {'dim': 16, 'num_blocks': [1, 1, 2, 2], 'num_refinement_blocks': 1, 'heads': [1, 2, 4, 8]}
KINDS = {'plain': {}, 'biases': {'bias': True}, 'BiasFree': {'LayerNorm_type': 'BiasFree'}}


def network(**options):
    torch.manual_seed(0)
    net = Restormer(**SMALL, **options)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if 'norm' in name or name.endswith('bias'):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return net


def error(found, exact):
    return float((found.double().cpu() - exact).norm() / exact.norm())


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(2, 3, 64, 72, generator=generator) for _ in range(2)]


@pytest.fixture
def without_triton(monkeypatch):
    monkeypatch.setattr(dispatch, '_runs_on', lambda device: False)


def result_and_gradient(net, lq, gt, half=None, memory_format=torch.channels_last):
    lq = lq.contiguous(memory_format=memory_format)
    with torch.autocast(lq.device.type, half) if half else nullcontext():
        restored = net(lq)
    loss = (restored.to(gt.dtype) - gt).abs().mean()
    (SCALE * loss).backward()
    return restored.detach(), torch.cat([parameter.grad.flatten() for parameter in net.parameters()]) / SCALE


SCALE = 1024  # of the loss: the gradients of half precision would vanish, as in training without a GradScaler


# Relative 2-norms of the errors of result and gradient.
PRECISIONS = {
    'fp32': (None, 1e-5, 1e-3),
    'fp16': (torch.float16, 2e-3, 1e-1),
    'bf16': (torch.bfloat16, 1e-2, 2e-1),
}


@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('kind', KINDS)
def test_result_and_gradient(images, kind, precision, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    check(images, KINDS[kind], *PRECISIONS[precision])


@pytest.mark.parametrize('precision', PRECISIONS)
def test_result_and_gradient_without_triton(images, precision, monkeypatch, without_triton):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    check(images, {}, *PRECISIONS[precision])


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_result_and_gradient_with_checkpointing(images, precision, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    monkeypatch.setattr(Restormer, 'checkpointing', True)
    check(images, {}, *PRECISIONS[precision])


def test_channels_first_images(images, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    check(images, {}, *PRECISIONS['fp32'], memory_format=torch.contiguous_format)


def check(images, options, half, of_result, of_gradient, memory_format=torch.channels_last):
    net = network(**options)
    exact = result_and_gradient(copy.deepcopy(net).double(), *(image.double() for image in images))
    found = result_and_gradient(net.cuda(), *(image.cuda() for image in images), half, memory_format)
    assert error(found[0], exact[0]) < of_result
    assert error(found[1], exact[1]) < of_gradient


@pytest.mark.parametrize('half', [None, torch.bfloat16])
def test_features_stay_channels_last(images, half):
    net, layouts = network().cuda(), {}
    kinds = restormer_arch.TransformerBlock, restormer_arch.Downsample, restormer_arch.Upsample
    for name, module in net.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(
                lambda _, x, y, name=name: layouts.update(
                    {name: y.is_contiguous(memory_format=torch.channels_last)}
                )
            )
    with torch.autocast('cuda', half) if half else nullcontext():
        net(images[0].cuda().contiguous(memory_format=torch.channels_last))
    assert layouts and all(layouts.values())


# -------------------------------------------------------------- the engine

ENGINE_PRECISIONS = {'fp32': (None, 1e-5), 'fp16': (torch.float16, 3e-3), 'bf16': (torch.bfloat16, 2e-2)}


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


@pytest.mark.parametrize('precision', ENGINE_PRECISIONS)
@pytest.mark.parametrize('kind', KINDS)
def test_engine_equals_the_network(kind, precision):
    half, tolerance = ENGINE_PRECISIONS[precision]
    net, x = network(**KINDS[kind]), torch.rand(2, 3, 200, 264)
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(x.double())
    net.cuda()
    for strip_bytes in (None, 200_000):
        engine = StripEngine(net, half, strip_bytes=strip_bytes)
        found = engine(x.cuda())
        assert error(found, exact) < tolerance
        assert all(torch.equal(engine(x.cuda()), found) for _ in range(3))


@pytest.mark.parametrize('window', [64, 200])
def test_tlc_equals_that_of_the_cpu(window):
    net, x = network(), torch.rand(1, 3, 136, 200)
    expected = StripEngine(net, window=window)(x)
    assert error(StripEngine(net.cuda(), window=window)(x.cuda()), expected.double()) < 1e-5


def test_engine_without_triton(without_triton):
    net, x = network(), torch.rand(1, 3, 136, 200)
    expected = StripEngine(net)(x)
    assert error(StripEngine(net.cuda())(x.cuda()), expected.double()) < 1e-5


@pytest.mark.parametrize('precision', ENGINE_PRECISIONS)
@pytest.mark.parametrize('window', [None, 384])
def test_memory_bounds_what_a_call_uses(precision, window):
    engine = StripEngine(Restormer().cuda(), ENGINE_PRECISIONS[precision][0], window)
    engine(torch.rand(1, 3, 64, 64, device='cuda'))
    for H, W in ((64, 64), (256, 256), (720, 1280)):
        x = torch.rand(1, 3, H, W, device='cuda')
        torch.cuda.empty_cache()
        for _ in range(3):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            engine(x)
            assert torch.cuda.max_memory_allocated() - before <= engine.memory(H, W)


@pytest.mark.parametrize('window', [None, 64])
def test_engine_does_not_synchronise(window):
    engine, x = StripEngine(network().cuda(), torch.bfloat16, window), torch.rand(1, 3, 200, 264).cuda()
    other = torch.rand(1, 3, 64, 64).cuda()
    for _ in range(2):
        engine(other)  # first launched one by one, then recorded
        engine(x)
        engine(other)
        torch.cuda.set_sync_debug_mode('error')
        try:
            engine(x)
        finally:
            torch.cuda.set_sync_debug_mode('default')
        engine(x)
    torch.cuda.set_sync_debug_mode('error')
    try:
        engine(x)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert engine.recorded.graph is not None


@pytest.mark.parametrize('half', [None, torch.bfloat16])
def test_recorded_engine_keeps_the_memory_of_its_weights(half):
    net, x = network().cuda(), torch.rand(1, 3, 64, 72).cuda()
    engine = StripEngine(net, half)
    expected = [engine(x) for _ in range(2)][-1]
    net.cpu()
    torch.cuda.empty_cache()
    filled = [torch.full((2**24,), torch.nan, device='cuda') for _ in range(8)]  # what was freed
    assert torch.equal(engine(x), expected)
    del filled


def test_two_engines_at_once():
    """Threads that restore images of a few sizes, each with an engine of its own."""
    net, images = network().cuda(), [torch.rand(1, 3, side, 64).cuda() for side in (64, 64, 64, 72, 72, 64)]
    expected = [StripEngine(net)(x) for x in images]

    def restore_all(_):
        engine = StripEngine(net)
        return [engine(x) for _ in range(3) for x in images]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(restore_all, range(4)):
            for one, other in zip(found, expected * 3, strict=True):
                assert torch.allclose(one, other, atol=1e-6)
