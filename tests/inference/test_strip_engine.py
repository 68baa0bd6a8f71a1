"""Strips against the network, and TLC against its definition."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from basicsr.archs import restormer_reference as reference
from basicsr.archs.restormer_arch import Restormer
from basicsr.inference import strip_layers
from basicsr.inference.strip_engine import StripEngine, _Recorded, runs_in_strips
from basicsr.inference.strip_layers import Beside, Strip
from basicsr.inference.tlc import Cells, window_indices
from basicsr.inference.workers import Workers
from basicsr.utils.files import ROOT

SMALL = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 2, 2, 4]}
VARIANTS = [
    {'num_blocks': [0, 2, 0, 1], 'num_refinement_blocks': 0},
    {'bias': True},
    {'LayerNorm_type': 'BiasFree', 'inp_channels': 1, 'out_channels': 1},
    {'inp_channels': 6, 'dual_pixel_task': True, 'bias': True},
]


def network(**options):
    """In double precision, with no weight at its initial value."""
    torch.manual_seed(0)
    net = Restormer(**{**SMALL, **options}).double().eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if 'norm' in name or name.endswith(('temperature', 'bias')):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return net


def picture(net, size, batch=1):
    channels = net.patch_embed.proj.in_channels
    return torch.rand(batch, channels, *size, dtype=net.patch_embed.proj.weight.dtype)


def relative(found, expected):
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def by_definition(net, x, window=None):
    return reference.restormer(dict(net.named_parameters()), x, window)


@pytest.fixture
def threads():
    """Sets the number of threads."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize('options', VARIANTS, ids=str)
@pytest.mark.parametrize(
    ('strip_bytes', 'count'), [(1, 1), (20_000, 1), (None, 1), (1, 3), (20_000, 2), (None, 5)]
)
def test_strips_equal_the_network(options, strip_bytes, threads, count):
    """From strips of one row to the image in one strip; two images, each with its own statistics."""
    net = network(**options)
    for size in ((24, 40), (8, 72), (72, 8), (8, 8)):
        x = picture(net, size, batch=2)
        threads(1)  # with more, PyTorch can take minutes while another process uses the cores
        with torch.no_grad():
            expected = net(x)
        threads(count)
        assert relative(StripEngine(net, strip_bytes=strip_bytes)(x), expected) <= 1e-11


def test_memory_order_of_the_image_does_not_matter():
    net = network()
    x = picture(net, (16, 24), batch=2)
    expected = StripEngine(net)(x)
    for other in (x.contiguous(memory_format=torch.channels_last), x.flip(3).flip(3), x.mT.contiguous().mT):
        assert torch.equal(StripEngine(net)(other), expected)


@pytest.mark.parametrize(
    ('options', 'size', 'window'),
    [
        *((options, (40, 120), 32) for options in VARIANTS[1:]),  # 2 × 4 windows, overlapping unevenly
        (VARIANTS[1], (32, 64), 32),  # windows side by side
        (VARIANTS[1], (24, 88), 32),  # one row of windows
        (VARIANTS[1], (72, 24), 16),
        (VARIANTS[1], (40, 48), 8),  # windows of one pixel at the latent level
    ],
    ids=str,
)
@pytest.mark.parametrize(('strip_bytes', 'count'), [(30_000, 1), (None, 1), (30_000, 3), (None, 4)])
def test_tlc_equals_window_by_window(options, strip_bytes, size, window, threads, count):
    net = network(**options)
    x = picture(net, size, batch=2)
    expected = by_definition(net, x, window)
    with torch.no_grad():
        assert relative(net(x), expected) > 1e-4  # TLC has an effect
    threads(count)
    found = StripEngine(net, window=window, strip_bytes=strip_bytes)(x)
    assert relative(found, expected) <= 1e-9


@pytest.mark.parametrize('window', [1, 2, 3, 8, 48])
def test_window_indices_are_the_windows_of_the_definition(window):
    for length in range(1, 6 * window + 30):
        inside, *places = window_indices(length, window)
        starts, size = reference.window_starts(length, window), min(length, window)
        assert inside.tolist() == [[*range(start, start + size)] for start in starts]
        pixels = torch.arange(length)
        assert all(torch.equal(inside.flatten()[place], pixels) for place in places)
        covers = torch.stack([(pixels >= start) & (pixels < start + size) for start in starts])
        found = torch.zeros_like(covers)
        for place in places:
            found[place // size, pixels] = True
        assert torch.equal(found, covers)


@pytest.mark.parametrize(
    'options',
    [SMALL, pytest.param(dict.fromkeys(SMALL), marks=pytest.mark.slow)],
    ids=['small', '26.1 M parameters'],
)
@pytest.mark.parametrize('window', [None, 32])
def test_single_precision(options, window):
    """On a size that is no multiple of the strip or of the window."""
    torch.manual_seed(0)
    net = Restormer(**{name: value for name, value in options.items() if value}).double().eval()
    x = picture(net, (40, 56))
    expected = by_definition(net, x, window)
    assert relative(StripEngine(net, window=window, strip_bytes=100_000)(x), expected) <= 1e-9
    net.float()
    for strip_bytes in (100_000, None):
        found = StripEngine(net, window=window, strip_bytes=strip_bytes)(x.float())
        assert found.dtype == torch.float32
        assert relative(found, expected) <= 5e-5


@pytest.mark.parametrize(('options', 'window'), [({'bias': True}, None), ({'LayerNorm_type': 'BiasFree'}, 64)])
def test_half_precision(options, window):
    net = network(**options)
    x = picture(net, (72, 136))
    expected = StripEngine(net, window=window)(x)
    found = StripEngine(copy.deepcopy(net).float(), torch.bfloat16, window)(x.float())
    assert found.dtype == torch.float32
    residual = (expected - x).pow(2).mean().sqrt()
    assert (found - expected).pow(2).mean().sqrt() <= 0.02 * residual


def test_half_precision_sums_in_single_precision():
    """2¹⁶ pixels in strips of one row, against the same queries and keys summed in double precision."""
    half = StripEngine(network().float(), torch.bfloat16).decoder[1][0]
    x_HWC = torch.randn(256, 256, 16).bfloat16()
    parts = [[Strip(row, row + 1, 0) for row in range(256)]]
    cells, alone = Cells.of(256, 256, None), Beside(None, None)
    with torch.inference_mode(), Workers(x_HWC.device) as workers:
        found = half._attention(x_HWC, cells, lambda channels: parts, workers)
        strips = half.query_key.strips(x_HWC, parts[0], alone, workers.workspaces[0])
        rows = [part.double() for _, part in strips]
        q, k = torch.cat(rows).view(-1, 2, 2, 8).permute(1, 2, 3, 0)  # 2 heads of 8 channels
        cosine = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
        expected = (cosine * half.attn.temperature).softmax(-1)
    assert found.dtype == torch.float32
    assert (found[0] - expected).abs().max() < 1e-5


def test_size_that_is_no_multiple_of_8_raises():
    with pytest.raises(ValueError, match=r'input of \(1, 3, 12, 16\): .* multiples of 8'):
        StripEngine(network())(torch.rand(1, 3, 12, 16, dtype=torch.float64))


MEASURE = """
import sys, torch
from basicsr.archs.restormer_arch import Restormer
from basicsr.inference.strip_engine import StripEngine

def kilobytes(name):
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(name))

height, width, dtype, window = int(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(int(sys.argv[5]))
net = Restormer(dim=16, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, heads=[1, 2, 4, 8]).eval()
engine = StripEngine(net, dtype, window or None, 1 if width > 100_000 else None)
engine(torch.rand(1, 3, 64, 64))  # what the libraries allocate once
x = torch.rand(1, 3, height, width)
before = kilobytes('VmRSS')
y = engine(x)
print(1024 * (kilobytes('VmHWM') - before), engine.memory(height, width))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads the memory used from /proc')
@pytest.mark.parametrize(
    'arguments',
    [
        (320, 320, 'float32', 8, 1),
        (320, 320, 'float32', 8, 4),
        (960, 1280, 'float32', 0, 1),
        (960, 1280, 'bfloat16', 384, 3),
        (16, 104_000, 'float32', 0, 1),
        (16, 104_000, 'float32', 0, 2),
    ],
)
def test_memory_bounds_what_a_call_uses(arguments):
    """And by not too much."""
    command = [sys.executable, '-c', MEASURE, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    used, bound = map(int, result.stdout.split())
    assert used <= bound <= 2 * used + 150_000_000


def test_convolutions_that_return_channels_first(monkeypatch):
    net = network(bias=True)
    x = picture(net, (40, 24), batch=2)
    expected = StripEngine(net)(x)
    convolve = F.conv2d
    monkeypatch.setattr(F, 'conv2d', lambda *args, **options: convolve(*args, **options).contiguous())
    for strip_bytes in (1, 30_000, None):
        assert relative(StripEngine(net, strip_bytes=strip_bytes)(x), expected) <= 1e-11


def test_threads_share_an_engine():
    engine = StripEngine(network())
    images = [picture(network(), (24, 16 + 8 * n)) for n in range(4)]
    expected = [engine(x) for x in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, alone in zip(pool.map(engine, images), expected, strict=True):
                assert torch.equal(found, alone)


def test_threads_are_as_before_after_a_call(threads):
    """Also after one that Ctrl-C ends; and threads that begin later have as many."""
    net = network()
    engine, x = StripEngine(net), picture(net, (48, 16))
    threads(3)
    expected = engine(x)

    def stop(done):
        raise KeyboardInterrupt

    engine.progress = stop
    with pytest.raises(KeyboardInterrupt):
        engine(x)
    engine.progress = None
    with ThreadPoolExecutor(1) as another:
        assert (torch.get_num_threads(), another.submit(torch.get_num_threads).result()) == (3, 3)
    assert torch.equal(engine(x), expected)


@pytest.mark.parametrize(('count', 'most', 'each'), [(3, 16, 1), (5, 2, 2)])
def test_pytorch_uses_one_core_in_each_worker(monkeypatch, threads, count, most, each):
    """Or more if there are more cores than workers. So no operation waits for a core that other programs use."""
    seen, mix = set(), strip_layers.Separable._mix

    def record(*arguments):
        seen.add((threading.current_thread(), torch.get_num_threads()))
        mix(*arguments)

    monkeypatch.setattr(strip_layers.Separable, '_mix', record)
    threads(count)
    engine = StripEngine(network())
    engine.most_workers = most
    engine(picture(network(), (48, 16)))
    assert len({thread for thread, _ in seen}) == min(count, most)
    assert {number for _, number in seen} == {each}


def test_fewer_workers_where_memory_is_short(threads):
    """Memory that suffices for one worker suffices where there are eight."""
    net = network()
    engine, x = StripEngine(net, strip_bytes=1), picture(net, (24, 2048))
    threads(1)
    expected, least = engine(x), engine.memory(24, 2048)
    threads(8)
    assert engine.memory(24, 2048) > least
    assert not engine.fit(24, 2048, least - 1)
    assert engine.fit(24, 2048, least) and engine.memory(24, 2048) <= least
    assert relative(engine(x), expected) <= 1e-11


def test_an_error_in_another_thread_is_raised(monkeypatch, threads):
    engine = StripEngine(network())
    main, mix = threading.current_thread(), strip_layers.Separable._mix

    def fail(*arguments):
        if threading.current_thread() is not main:
            raise MemoryError('no memory')
        mix(*arguments)

    monkeypatch.setattr(strip_layers.Separable, '_mix', fail)
    threads(2)
    with pytest.raises(MemoryError, match='no memory'):
        engine(picture(network(), (48, 16)))


def test_engine_keeps_its_weights_when_the_network_changes_its_type():
    net = network()
    engine, x = StripEngine(net), picture(net, (24, 16))
    expected = engine(x)
    net.half()
    assert torch.equal(engine(x), expected)


class OtherForward(Restormer):
    def forward(self, inp_img):
        return super().forward(inp_img) + 1


class OtherSkip(Restormer):
    @staticmethod
    def _reduce(convolution, x_BCHW, skip_BCHW):
        return convolution(torch.cat([x_BCHW, -skip_BCHW], 1))


class Preset(Restormer):
    """Inherits the forward pass and all parts."""


def test_runs_in_strips_only_what_the_engine_computes():
    assert runs_in_strips(Restormer(**SMALL)) and runs_in_strips(Preset(**SMALL))
    other_part, other_padding = Preset(**SMALL), Preset(**SMALL)
    other_part.latent[0].ffn = nn.Identity()
    other_padding.output.padding_mode = 'reflect'
    others = OtherForward(**SMALL), OtherSkip(**SMALL), other_part, other_padding, nn.Conv2d(3, 3, 1)
    assert not any(map(runs_in_strips, others))


class Pretended(_Recorded):
    """A recording that calls the function again, or that fails."""

    fails = False

    def _record(self, restore, x, y):
        if self.fails:
            raise RuntimeError('no memory')
        super()._record(restore, x, y)
        self.graph = SimpleNamespace(replay=lambda: restore(self.x, self.y))


@pytest.fixture
def no_cuda(monkeypatch):
    for name in ('CUDAGraph', 'Stream'):
        monkeypatch.setattr(torch.cuda, name, object)
    monkeypatch.setattr(torch.cuda, 'graph', lambda *args, **how: nullcontext())


@pytest.mark.parametrize('fails', [False, True])
def test_second_call_in_a_row_for_a_size_is_recorded(no_cuda, fails):
    recorded, arguments = Pretended(), []
    recorded.fails = fails

    def restore(x, y):
        arguments.append(x)
        y.copy_(x + 1)

    def run(size, value):
        x, y = torch.full((size,), value), torch.empty(size)
        recorded.run(size, restore, x, y)
        assert torch.equal(y, x + 1)
        return arguments[-1] is not x  # the recording's own input instead of the caller's

    replayed = [run(size, value) for value, size in enumerate((4, 4, 4, 6, 6, 4, 4, 4), 1)]
    assert replayed == ([False] * 8 if fails else [False, True, True, False, True, False, True, True])


def test_size_that_failed_is_not_recorded_yet(no_cuda):
    """Libraries and compilers initialise in a call that is not recorded."""
    recorded, failing = Pretended(), [True]

    def restore(x, y):
        if failing:
            failing.clear()
            raise KeyboardInterrupt
        y.copy_(x)

    x, y = torch.ones(4), torch.empty(4)
    with pytest.raises(KeyboardInterrupt):
        recorded.run('a size', restore, x, y)
    recorded.run('a size', restore, x, y)
    assert recorded.graph is None
    recorded.run('a size', restore, x, y)
    assert recorded.graph is not None
