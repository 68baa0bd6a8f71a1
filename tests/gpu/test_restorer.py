"""Restoring on a GPU: what the CPU gives, and nothing left behind."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from basicsr.archs.restormer_arch import Restormer
from basicsr.evaluation.evaluate import evaluate
from basicsr.inference import Restorer
from basicsr.inference.strip_engine import STRIP_BYTES, StripEngine
from basicsr.inference.tiles import restore_tiles
from basicsr.metrics.metric import Metric
from basicsr.utils.logger import get_logger
from basicsr.utils.parallel import in_stages

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')

RNG = np.random.default_rng(0)
TINY = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 1, 2, 2]}
KINDS = [(33, 50), (40, 21, 2), (72, 131, 3), (47, 64, 4)]


def tiny():
    torch.manual_seed(0)
    return Restormer(**TINY).eval()


class Noting(nn.Module):
    """Makes an image a little lighter, and calls a function on the way."""

    def __init__(self, note=lambda: None):
        super().__init__()
        self.note = note
        self.first = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        self.note()
        return x * 0.9 + 0.1


def image(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def settings():
    backends = torch.backends
    owners = (
        [backends.cudnn.conv, backends.cuda.matmul] if hasattr(backends.cuda.matmul, 'fp32_precision') else []
    )
    return (
        [owner.fp32_precision for owner in owners],
        [backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()],
        [backends.cudnn.benchmark, backends.cudnn.deterministic],
    )


@pytest.fixture(params=['allow_tf32', 'fp32_precision'])
def tf32(request):
    """TF32 is allowed everywhere, by PyTorch's older or newer settings."""
    name, matmul, cudnn = request.param, torch.backends.cuda.matmul, torch.backends.cudnn
    if not hasattr(matmul, name):
        pytest.skip('PyTorch before 2.9 has none of the newer settings')
    owners, value = ((matmul, cudnn), True) if name == 'allow_tf32' else ((matmul, cudnn.conv), 'tf32')
    before = [getattr(owner, name) for owner in owners]
    for owner in owners:
        setattr(owner, name, value)
    yield
    for owner, value in zip(owners, before, strict=True):
        setattr(owner, name, value)


# The results


@pytest.mark.parametrize('options', [{}, {'tlc': 64}, {'tile': 32, 'tile_overlap': 8}], ids=str)
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('shape', KINDS)
def test_single_precision_equals_the_cpu(tf32, shape, dtype, options):
    """TF32 would be off by tens of 16-bit levels."""
    before = image(*shape, dtype=dtype)
    found, expected = (Restorer(tiny(), device, 'fp32', **options)(before) for device in ('cuda', 'cpu'))
    assert found.dtype == dtype and found.shape == shape
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found != before).any()


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_every_level_survives(dtype):
    every = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(16, -1)
    identity = tiny()
    nn.init.zeros_(identity.output.weight)
    restorer = Restorer(identity, 'cuda', 'fp32')
    for pixels in (every, np.dstack([every, every.T.reshape(16, -1)]), np.dstack([every] * 3)[::-1]):
        np.testing.assert_array_equal(restorer(pixels), pixels)


def test_other_sizes_do_not_change_the_bits(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)
    restorer, x = Restorer(tiny(), 'cuda', 'fp32', fixed_strips=True), torch.rand(1, 3, 136, 200)
    first = restorer.restore(x)
    for side in (64, 104, 136):
        restorer.restore(torch.rand(1, 3, side, 200))
    assert torch.equal(restorer.restore(x), first)


# The libraries' settings


@pytest.mark.parametrize(('precision', 'exact'), [('fp32', True), ('bf16', False)])
def test_libraries_are_set_only_during_a_call(monkeypatch, precision, exact):
    inside, backends = [], torch.backends
    monkeypatch.setattr(backends.cudnn, 'benchmark', True)
    monkeypatch.setattr(backends.cudnn, 'deterministic', False)
    before = settings()

    def note():
        convolution = getattr(backends.cudnn, 'conv', None)
        if hasattr(convolution, 'fp32_precision'):
            tf32 = convolution.fp32_precision == 'tf32'
        else:
            tf32 = backends.cudnn.allow_tf32
        inside.append((backends.cudnn.benchmark, backends.cudnn.deterministic, tf32))

    restorer = Restorer(Noting(note), 'cuda', precision)
    restorer(image(24, 40, 3))
    assert inside == [(False, True, not exact)]  # PyTorch allows TF32 in convolutions by itself
    assert settings() == before


# Waiting


def synchronizations(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    return sum('called a synchronizing' in str(each.message) for each in caught)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_an_image_synchronises_for_its_check_and_its_result(dtype):
    restorer, pixels = Restorer(Noting(), 'cuda', 'fp32'), image(64, 64, 3, dtype=dtype)
    restorer(pixels)
    assert synchronizations(lambda: restorer(pixels)) == 2


def test_tiles_do_not_synchronise():
    x = torch.rand(1, 3, 64, 64, device='cuda')
    assert synchronizations(lambda: restore_tiles(lambda tile: tile * 2, x, 32, 8)) == 0


# Memory

SIDE = 1024


@pytest.fixture
def said(monkeypatch):
    """The warnings."""
    said = []
    monkeypatch.setattr(get_logger(), 'warning', lambda text, *values: said.append(text % values))
    return said


@pytest.fixture
def used(monkeypatch):
    """The `strip_bytes` of every attempt."""
    used, call = [], StripEngine.__call__

    def noted(engine, x):
        used.append(engine.strip_bytes)
        return call(engine, x)

    monkeypatch.setattr(StripEngine, '__call__', noted)
    return used


def test_little_free_memory_shrinks_strips_and_keeps_the_result(said, used):
    restorer = Restorer(tiny(), 'cuda', 'fp32', fixed_strips=True)
    x = torch.rand(1, 3, SIDE, SIDE)
    expected = restorer.restore(x).cpu()
    assert used == [STRIP_BYTES] and not said
    engine = StripEngine(tiny().cuda(), strip_bytes=STRIP_BYTES // 8)
    torch.cuda.empty_cache()
    left = engine.memory(SIDE, SIDE)
    hog = torch.empty(torch.cuda.mem_get_info()[0] - left, dtype=torch.uint8, device='cuda')
    try:
        found = [restorer.restore(x).cpu() for _ in range(2)]
    finally:
        del hog
        torch.cuda.empty_cache()
    assert max(used[1:]) < STRIP_BYTES // 4
    for each in found:
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-5)
    (warning,) = said
    assert 'out of memory: going on with smaller strips' in warning


def test_out_of_memory_retries_with_smaller_strips(said, used):
    """The allocator refuses what seemed to be free."""
    restorer = Restorer(tiny(), 'cuda', 'fp32')
    x = torch.rand(1, 3, SIDE, SIDE, device='cuda')

    def taken(strip_bytes):
        restorer.strip_bytes = strip_bytes
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = restorer.restore(x).cpu()
        return torch.cuda.max_memory_allocated() - before, result

    taken(STRIP_BYTES)  # libraries take some for good at their first call
    (small, _), (large, expected) = taken(STRIP_BYTES // 16), taken(STRIP_BYTES)
    assert small < 0.7 * large
    used.clear()
    torch.cuda.empty_cache()
    most = torch.cuda.memory_reserved() + (small + large) // 2
    torch.cuda.set_per_process_memory_fraction(most / torch.cuda.get_device_properties(0).total_memory)
    try:
        found = restorer.restore(x).cpu()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert used[0] == STRIP_BYTES and len(used) > 1
    assert used == [STRIP_BYTES // 4**attempt for attempt in range(len(used))]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    (warning,) = said
    assert 'out of memory: going on with smaller strips' in warning


# Many images


class Pairs:
    def __init__(self):
        self.images = [torch.from_numpy(image(3, 40 + 8 * n, 64)) for n in range(5)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {'lq': self.images[index], 'gt': self.images[index].flip(0), 'name': str(index)}


def test_metrics_of_a_set_equal_the_cpu(tmp_path):
    pairs = Pairs()
    metrics = {
        'difference': Metric(lambda restored, gt, data_range: np.mean(np.abs(restored - gt.astype(float))))
    }
    found, expected = (
        evaluate(
            Restorer(tiny(), device, 'fp32').restore,
            pairs,
            metrics,
            device=torch.device(device),
            folder=tmp_path / device,
        )
        for device in ('cuda', 'cpu')
    )
    assert [each['name'] for each in found.images] == [each['name'] for each in expected.images]
    for one, other in zip(found.images, expected.images, strict=True):
        assert one['difference'] == pytest.approx(other['difference'], abs=0.01)
    assert {path.name for path in (tmp_path / 'cuda').iterdir()} == {f'{n}.png' for n in range(5)}


def test_threads_use_the_current_gpu():
    last = torch.cuda.device_count() - 1
    with torch.cuda.device(last):
        stages = in_stages(
            range(2),
            lambda key: torch.cuda.current_device(),
            lambda item: item,
            lambda item: (item, torch.cuda.current_device(), threading.current_thread()),
            torch.device('cuda', last),
        )
        for _, outcome in stages:
            read, written, thread = outcome()
            assert read == written == last and thread is not threading.main_thread()
