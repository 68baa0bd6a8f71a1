"""Restorer: arrays and tensors, memory, tiles, TLC, weights."""

import copy
import re
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from basicsr import tasks
from basicsr.archs.restormer_arch import Restormer
from basicsr.inference import RestoreError, Restorer, restore_tensor, restorer
from basicsr.inference.strip_engine import STRIP_BYTES, STRIP_BYTES_CPU, StripEngine
from basicsr.inference.tiles import restore_tiles
from basicsr.utils.checkpoint import save_checkpoint
from basicsr.utils.errors import CheckpointError

RNG = np.random.default_rng(0)


TINY = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 1, 2, 2]}


def tiny(**options):
    torch.manual_seed(0)
    return Restormer(**TINY, **options).eval()


def identity(**options):
    """Without output weights, only the residual is left: exactly the input."""
    net = tiny(**options)
    nn.init.zeros_(net.output.weight)
    return net


class Function(nn.Module):
    """A network made of a function, for `channels` channels."""

    def __init__(self, function, channels=3):
        super().__init__()
        self.seen = []
        self.function = function
        self.first = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        self.seen.append(x)
        return self.function(x)


def image(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def refused(match):
    return pytest.raises(RestoreError, match=match)


SHAPES = [(1, 1), (7, 5), (8, 16), (9, 33), (1, 40), (2, 3, 3), (16, 8, 3), (13, 11, 4), (6, 5, 2), (4, 7, 1)]


# restore_tensor


@pytest.mark.parametrize('size', [(1, 1), (3, 4), (5, 5), (7, 9), (8, 8), (20, 17)])
def test_padding_reflects_or_repeats(size):
    net = Function(lambda x: x + 1)
    x = torch.rand(2, 3, *size)
    torch.testing.assert_close(restore_tensor(net, x), x + 1, rtol=0, atol=0)
    (padded,) = net.seen
    assert padded.shape[-2] % 8 == padded.shape[-1] % 8 == 0
    rows, columns = (np.pad(range(n), (0, -n % 8), mode='reflect' if n > -n % 8 else 'edge') for n in size)
    torch.testing.assert_close(padded, x[:, :, rows][..., columns], rtol=0, atol=0)


# Restorer


@pytest.mark.parametrize(
    ('shape', 'dtype', 'precision', 'channels'),
    [
        *((shape, dtype, 'fp32', 3) for shape in SHAPES for dtype in (np.uint8, np.uint16)),
        *((shape, np.uint16, 'bf16', 3) for shape in SHAPES[::3]),
        *((shape, np.uint16, 'fp32', 1) for shape in SHAPES[1::3]),
    ],
)
def test_identity_network_changes_no_value(shape, dtype, precision, channels):
    restorer = Restorer(identity(inp_channels=channels, out_channels=channels), 'cpu', precision)
    before = image(*shape, dtype=dtype)
    kept = before.copy()
    after = restorer(before)
    assert after.dtype == dtype
    np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(before, kept)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_every_level_survives(dtype):
    every = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(16, -1)
    restorer = Restorer(Function(lambda x: x), 'cpu')
    np.testing.assert_array_equal(restorer(every), every)
    np.testing.assert_array_equal(restorer(np.dstack([every] * 3)), np.dstack([every] * 3))


def test_views_and_other_memory_orders(tmp_path):
    restorer = Restorer(identity(), 'cpu')
    whole = image(20, 30, 3)
    np.save(tmp_path / 'a.npy', whole)
    mapped = np.load(tmp_path / 'a.npy', mmap_mode='r')
    for view in (
        whole[::-1], whole[:, ::2], whole[..., ::-1], np.asfortranarray(whole), whole.swapaxes(0, 1), mapped
    ):  # fmt: skip
        np.testing.assert_array_equal(restorer(view), view)


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('shape', [(9, 7), (9, 7, 1), (9, 7, 2), (9, 7, 3), (9, 7, 4)])
def test_any_byte_order_gives_the_same_values_in_that_order(order, shape):
    before = image(*shape, dtype=np.uint16)
    restorer = fp32(tiny())
    after = restorer(before.astype(f'{order}u2'))
    assert after.dtype.str == f'{order}u2'
    np.testing.assert_array_equal(after, restorer(before))


def test_result_is_the_rounded_output():
    net = tiny()
    before = image(9, 12, 3)
    x = torch.from_numpy(before).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        y = restore_tensor(net, x)
    expected = (y.clamp(0, 1) * 255).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(Restorer(net, 'cpu')(before) - expected).max() <= 1  # channels-last sums in another order
    assert (np.abs(before - expected) > 1).any()


def test_result_is_clamped_and_rounded_half_to_even():
    values = torch.tensor([-1.0, 0.5, 1.5, 2.5, 254.4, 254.6, 300.0, 100.0]) / 255
    net = Function(lambda x: values.expand_as(x))
    assert Restorer(net, 'cpu')(image(8, 8))[0].tolist() == [0, 0, 2, 2, 254, 255, 255, 100]


def test_grey_through_three_channels_is_the_mean():
    gain = torch.tensor([0.3, 0.6, 0.9]).view(1, 3, 1, 1)
    before = image(8, 8)
    after = Restorer(Function(lambda x: x * gain), 'cpu')(before)
    np.testing.assert_array_equal(after, np.round(before * 0.6))


def test_colour_through_one_channel_runs_channel_by_channel():
    net = Function(lambda x: x - x.mean(), channels=1)
    before = image(8, 8, 3)
    after = Restorer(net, 'cpu')(before)
    expected = np.clip(before - before.mean((0, 1), keepdims=True), 0, 255)
    assert np.abs(after - expected).max() <= 0.51
    assert [tuple(x.shape) for x in net.seen] == [(1, 1, 8, 8)] * 3


@pytest.mark.parametrize('colours', [0, slice(3)], ids=['grey', 'RGB'])
def test_alpha_is_copied_and_ignored(colours):
    before = image(9, 11, 2 if colours == 0 else 4)
    restorer = fp32(tiny())
    after = restorer(before)
    np.testing.assert_array_equal(after[..., -1], before[..., -1])
    np.testing.assert_array_equal(after[..., colours], restorer(before[..., colours]))


def test_other_arrays_raise():
    restorer = Restorer(identity(), 'cpu')
    for array, says in (
        (np.zeros((8, 8, 3), np.float32), 'float32; allowed: uint8, uint16; for [0, 1]: np.round(255 * image)'),
        (np.zeros((8, 8, 3), '>i2'), 'int16; allowed: uint8, uint16'),
        (np.zeros((8, 8, 5), np.uint8), 'shape (8, 8, 5); allowed: (H, W), '),
        (np.zeros((0, 8, 1), np.uint8), 'shape (0, 8); allowed: (H, W), '),
    ):
        with pytest.raises(ValueError, match=re.escape(f'image: found an array of {says}')):
            restorer(array)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
def test_nonfinite_result_raises(value):
    def one_bad_pixel(x):
        x = x.clone()
        x[0, 0, 3, 3] = value
        return x

    with refused('result for 9×8 pixels is not finite'):
        Restorer(Function(one_bad_pixel), 'cpu')(image(8, 9, 3))


def raises(error):
    def function(x):
        raise error

    return Function(function)


@pytest.mark.parametrize(
    'error',
    [
        torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB'),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes."),
        RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate 12 bytes.'),
        RuntimeError('MPS backend out of memory'),
        RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'),
        MemoryError(),
    ],
    ids=lambda error: f'{type(error).__name__}: {str(error)[:30]}',
)
def test_out_of_memory_names_the_size(error):
    with refused('image of 9×8 pixels does not fit into the memory of cpu'):
        Restorer(raises(error), 'cpu')(image(8, 9, 3))


def test_allocation_that_fails_within_or_after_the_network(monkeypatch):
    failing = Restorer(Function(lambda x: torch.empty(1 << 60)), 'cpu')
    with refused('does not fit into the memory'):
        failing(image(8, 8, 3))
    monkeypatch.setattr(torch.Tensor, 'round_', lambda tensor: torch.empty(1 << 60))
    with refused('an image of 8×8 pixels does not fit into the memory of cpu'):
        fp32(tiny())(image(8, 8, 3))


def test_other_errors_propagate():
    with pytest.raises(RuntimeError, match='shapes do not match') as caught:
        Restorer(raises(RuntimeError('shapes do not match')), 'cpu')(image(8, 8, 3))
    assert not isinstance(caught.value, RestoreError)


def test_no_gradients_are_recorded_and_the_result_is_an_ordinary_tensor():
    layer, recorded = nn.Conv2d(3, 3, 1), []

    def call(x):
        y = layer(x)
        recorded.append(y.requires_grad)
        return y

    one = Restorer(Function(call), 'cpu')
    one(image(8, 8, 3))
    for each in (one, fp32(tiny())):
        y = each.restore(torch.rand(1, 3, 8, 8))
        assert not y.requires_grad and not y.clamp_(0, 1).is_inference()
    assert recorded == [False, False]


@pytest.mark.parametrize(
    ('network', 'says'),
    [
        (lambda: Function(lambda x: x, 2), 'takes 2 channels; allowed: 1 or 3'),
        (lambda: tiny(inp_channels=6, dual_pixel_task=True), 'takes 6 channels; allowed: 1 or 3'),
        (lambda: tiny(out_channels=1, dual_pixel_task=True), 'makes 1 channels of 3; allowed: 3'),
    ],
    ids=['2 in', '6 in', '3 in, 1 out'],
)
def test_other_networks_restore_only_tensors(network, says):
    restorer = fp32(network())
    assert len(restorer.restore(torch.rand(1, restorer.channels, 8, 8))) == 1
    with pytest.raises(ValueError, match=f'^network: found one that {says}'):
        restorer(image(8, 8, 3))


# Two views


@pytest.mark.parametrize('shape', [(10, 13), (10, 13, 1), (10, 13, 2), (10, 13, 3), (10, 13, 4)], ids=str)
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.dtype('>u2')], ids=str)
def test_two_views_give_one_image(shape, dtype):
    """Left before right, RGB; alpha is that of the left view, grey is repeated and the result averaged."""
    net = tiny(inp_channels=6, dual_pixel_task=True)
    left, right = (image(*shape, dtype=np.dtype(dtype).newbyteorder('=')).astype(dtype) for _ in range(2))
    found = fp32(net)(left, right)
    assert (found.shape, found.dtype) == (left.shape, left.dtype)
    colours = 3 if shape[2:] in ((3,), (4,)) else 1
    full = np.iinfo(dtype).max
    views = [np.broadcast_to(view.reshape(10, 13, -1)[..., :colours], (10, 13, 3)) for view in (left, right)]
    x_HWC = np.concatenate(views, axis=2) / full
    with torch.no_grad():
        y_HWC = restore_tensor(net, torch.from_numpy(x_HWC).float().permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    expected = (y_HWC if colours == 3 else y_HWC.mean(2, keepdim=True)).clamp(0, 1).numpy() * full
    both = found.reshape(10, 13, -1).astype(np.int64)
    assert np.abs(both[..., :colours] - expected).max() <= (0.51 if full == 255 else 2)
    np.testing.assert_array_equal(both[..., colours:], left.reshape(10, 13, -1)[..., colours:])


def test_views_that_do_not_fit_are_refused():
    dual, pixels = fp32(tiny(inp_channels=6, dual_pixel_task=True)), image(8, 8, 3)
    for other in (image(8, 9, 3), image(8, 8, 3, dtype=np.uint16), image(8, 8)):
        with pytest.raises(
            ValueError, match=r'^right: found .*; allowed: as the left view, uint8 of shape \(8, 8, 3\)'
        ):
            dual(pixels, other)
    with pytest.raises(ValueError, match=r'^image: found an array of float64'):
        dual(pixels, pixels / 255)
    with pytest.raises(
        ValueError, match=r'^network: found one that takes 3 channels; allowed: 6, as two views have'
    ):
        fp32(tiny())(pixels, pixels)


def test_progress_ends_at_1_and_may_end_the_call():
    restorer, seen = Restorer(tiny(), 'cpu', 'fp32'), []
    image = np.zeros((20, 30, 3), np.uint8)
    silent = restorer(image)
    restorer.progress = seen.append
    np.testing.assert_array_equal(restorer(image), silent)
    assert seen == sorted(seen) and 0 < seen[0] < 0.2 and seen[-1] == 1

    def stop(done):
        raise KeyboardInterrupt

    restorer.progress = stop
    with pytest.raises(KeyboardInterrupt):
        restorer(image)


# Tensors


def fp32(net, **options):
    """'auto' depends on the processor."""
    return Restorer(net, 'cpu', 'fp32', **options)


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize('network', [tiny, lambda: nn.Conv2d(3, 3, 3, padding=1)], ids=['Restormer', 'other'])
def test_images_of_a_batch_are_independent(network):
    both, x = fp32(network()), torch.rand(2, 3, 24, 21)
    close(both.restore(x), torch.cat([both.restore(image_1CHW) for image_1CHW in x.split(1)]), atol=1e-6)


def test_multiple_is_the_networks_or_the_argument():
    net, x = Function(lambda x: x), torch.rand(1, 3, 5, 13)
    net.multiple = 6
    for restore in (lambda x, **options: fp32(net, **options).restore(x), partial(restore_tensor, net)):
        restore(x)
        restore(x, multiple=4)
        assert [tuple(x.shape[-2:]) for x in net.seen] == [(6, 18), (8, 16)]
        net.seen.clear()
    net, x = tiny(), torch.rand(1, 3, 8, 21)
    with torch.no_grad():
        expected = restore_tensor(net, x, 16)
    limit = needed(net, 16, 32)
    close(fp32(net, multiple=16, memory_limit=limit).restore(x), expected)
    with refused('GB are allowed'):
        fp32(net, multiple=16, memory_limit=limit - 1).restore(x)
    assert (fp32(net).restore(x) - expected).abs().max() > 1e-4


@pytest.mark.parametrize('network', [tiny, lambda: nn.Conv2d(3, 3, 3, padding=1)], ids=['Restormer', 'other'])
def test_half_precision_returns_single(network):
    net, x = network(), torch.rand(1, 3, 24, 16)
    half, full = (Restorer(net, 'cpu', precision).restore(x) for precision in ('bf16', 'fp32'))
    assert half.dtype == full.dtype == torch.float32
    assert 1e-5 < (half - full).abs().max() < 0.02  # not all in single precision


@pytest.mark.parametrize(
    ('network', 'precision'),
    [(tiny, 'fp32'), (tiny, 'bf16'), (lambda: nn.Conv2d(3, 3, 3, padding=1), 'fp32')],
    ids=['Restormer', 'Restormer in bf16', 'other'],
)
def test_networks_and_images_in_double_precision(network, precision):
    net, x = network(), torch.rand(1, 3, 24, 16)
    single = Restorer(copy.deepcopy(net), 'cpu', precision)
    close(single.restore(x.double()), single.restore(x))
    net.double()
    with torch.no_grad():
        expected = net(x.double())
    for each in (x, x.double()):
        found = Restorer(net, 'cpu', precision).restore(each)
        assert found.dtype == torch.float64
        close(found, expected, atol=1e-12 if precision == 'fp32' else 0.02)


class Shifted(Restormer):
    def forward(self, x):
        return super().forward(x) + 1


class Named(Restormer):
    """Inherits the forward pass."""


def test_subclass_keeps_the_strips_or_says_so(caplog):
    x = torch.rand(1, 3, 16, 24)
    for kind, shift in ((Named, 0), (Shifted, 1)):
        torch.manual_seed(0)
        restorer = fp32(kind(**TINY))
        close(restorer.restore(x), fp32(tiny()).restore(x) + shift)
        assert (restorer.engine is None) == bool(caplog.messages) == bool(shift)
    (warning,) = caplog.messages
    assert warning.startswith('Shifted changes') and 'without strips' in warning


@pytest.mark.parametrize('wrong', [torch.rand(3, 8, 8), torch.rand(1, 3, 0, 8), torch.ones(1, 3, 8, 8).byte()])
def test_other_tensors_raise(wrong):
    with pytest.raises(ValueError, match=r'image: found a tensor of .*; allowed: \(B, C, H, W\), float'):
        Restorer(tiny(), 'cpu').restore(wrong)


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        ({'memory_limit': 0}, 'memory_limit: found 0; allowed: a number of bytes above 0, or None'),
        ({'multiple': 12}, 'multiple: found 12; allowed: a multiple of 8'),
        ({'tile': 12}, 'tile: found 12; allowed: a positive multiple of 8'),
        ({'tile': 64, 'tile_overlap': 64}, 'tile_overlap: found 64; allowed: 0 to 63'),
        ({'tile_overlap': 8}, 'tile_overlap: found 8 without tile; allowed: together with tile'),
        ({'tlc': 0}, 'tlc: found 0; allowed: a window of a positive multiple of 8'),
        ({'tlc': 1}, 'tlc: found 1; allowed: a window of a positive multiple of 8'),
        ({'tlc': -8}, 'tlc: found -8; allowed: a window of a positive multiple of 8'),
        ({'tlc': 12}, 'tlc: found 12; allowed: a window of a positive multiple of 8'),
        ({'multiple': 0}, 'multiple: found 0; allowed: 1 or more'),
        *(
            ({'tile': 64, name: value}, f'{name}: found {value!r}; allowed: an integer')
            for name in ('tile', 'tile_overlap', 'tlc', 'multiple')
            for value in (64.0, '64')
        ),
        *(({name: True}, f'{name}: found True; allowed: an integer') for name in ('tile', 'multiple')),
        *(
            ({'memory_limit': value}, f'memory_limit: found {value!r}; allowed: a number of bytes above 0')
            for value in (True, '64', float('nan'), float('inf'))
        ),
    ],
    ids=str,
)
def test_invalid_options_raise(options, says):
    with pytest.raises(ValueError, match=f'^{re.escape(says)}'):
        Restorer(tiny(), 'cpu', **options)


@pytest.mark.parametrize('kind', [np.uint8, np.int64, np.array])
def test_integer_arguments_may_be_of_any_type(kind):
    net, before = tiny(), image(300, 40)
    options = {'tile': 248, 'tile_overlap': 16, 'tlc': 32, 'multiple': 8}
    expected = Restorer(net, 'cpu', 'fp32', **options)(before)
    options = {name: kind(value) for name, value in options.items()}
    restorer = Restorer(net, 'cpu', 'fp32', **options)
    np.testing.assert_array_equal(restorer(before), expected)
    for limit in (np.int64(10**9), 1e9):
        assert type(Restorer(net, 'cpu', memory_limit=limit).memory_limit) is int


@pytest.mark.parametrize('tlc', [True, 64])
def test_tlc_for_another_network_raises(tlc):
    for net in (nn.Conv2d(3, 3, 1), Shifted(**TINY)):
        says = f'tlc: found {tlc} for the network {type(net).__name__}; allowed: for Restormer alone'
        with pytest.raises(ValueError, match=f'^{says}$'):
            Restorer(net, 'cpu', tlc=tlc)


# Memory


@pytest.fixture
def free(monkeypatch):
    """`free(number)` sets the free memory."""

    def free(number):
        monkeypatch.setattr(restorer, 'free_memory', lambda device: number)

    return free


def needed(net, H, W, strip_bytes=1, **options):
    """Bytes for an image, by default with the smallest strips."""
    return StripEngine(net, strip_bytes=strip_bytes, **options).memory(H, W)


def whole_as_a_strip(net, H, W):
    """Bytes of the largest temporary if all rows of an image are one strip."""
    engine = StripEngine(net)
    return H * W * engine.widest * engine.dtype.itemsize


@pytest.fixture
def used(monkeypatch):
    """The `strip_bytes` of each call of an engine."""
    used, call = [], StripEngine.__call__

    def noted(engine, x):
        used.append(engine.strip_bytes)
        return call(engine, x)

    monkeypatch.setattr(StripEngine, '__call__', noted)
    return used


@pytest.mark.parametrize(('size', 'above'), [((136, 120), 0), ((131, 115), 10_000), ((131, 115), 1_000_000)])
def test_memory_limit_shrinks_strips_and_keeps_the_result(used, size, above):
    net, x, pixels = tiny(), torch.rand(2, 3, *size), image(*size, 3)
    limit = needed(net, 136, 120) + above
    tight, plain = fp32(net, memory_limit=limit), fp32(net)
    expected = plain.restore(x)
    assert used[-1] == STRIP_BYTES_CPU
    close(tight.restore(x), expected)
    assert limit - 10 < needed(net, 136, 120, used[-1]) <= limit
    assert used[-1] < STRIP_BYTES_CPU
    assert np.abs(tight(pixels).astype(int) - plain(pixels)).max() <= 1

    tight.memory_limit = None  # full strips again, hence the same bits
    assert torch.equal(tight.restore(x), expected)
    assert used[-1] == STRIP_BYTES_CPU


@pytest.mark.parametrize('by', ['free memory', 'limit'])
def test_strips_are_as_large_as_memory_allows(free, used, by):
    net, x = tiny(), torch.rand(1, 3, 40, 56)
    whole, strip = needed(net, 40, 56, STRIP_BYTES_CPU), whole_as_a_strip(net, 40, 56)
    one = fp32(net)
    free(1)  # a limit makes it irrelevant
    for there, strip_bytes in ((whole, STRIP_BYTES_CPU), (whole - 10, strip - 1)):
        if by == 'limit':
            one.memory_limit = there
        else:
            free(there)
        one.restore(x)
        assert used[-1] == strip_bytes
    one.memory_limit = None
    free(None)  # unknown
    one.restore(x)
    assert used[-1] == STRIP_BYTES_CPU


@pytest.fixture
def no_work(monkeypatch):
    monkeypatch.setattr(StripEngine, '__call__', lambda *_: pytest.fail('went to work'))


@pytest.mark.parametrize(
    ('precision', 'half'), [('fp32', 'precision bf16 needs about half of it, '), ('bf16', '')]
)
@pytest.mark.parametrize('there', ['are free', 'are allowed'])
def test_image_that_cannot_fit_raises_before_work_starts(free, no_work, precision, half, there):
    net = tiny()
    one = Restorer(net, 'cpu', precision)
    least = needed(net, 8, 30_000, dtype=one.dtype)
    if there == 'are free':
        free(least - 1)
    else:
        free(10**12)
        one.memory_limit = least - 1
    sentence = (
        f'an image of 30000×1 pixels needs {least / 1e9:.2f} GB of memory on cpu, '
        f'and {(least - 1) / 1e9:.2f} GB {there}; {half}tiles still less'
    )
    for restore in (lambda: one.restore(torch.rand(1, 3, 1, 30_000)), lambda: one(image(1, 30_000, 3))):
        with refused(f'^{re.escape(sentence)}$'):
            restore()


def test_fixed_strips_give_the_same_bits_or_raise(free, used):
    net, x = tiny(), torch.rand(1, 3, 131, 130)
    fixed, least = fp32(net, fixed_strips=True), needed(net, 136, 136, STRIP_BYTES_CPU)
    results = []
    for there in (least, 10**12, None):
        free(there)
        results.append(fixed.restore(x))
        assert used[-1] == STRIP_BYTES_CPU
    assert all(torch.equal(result, results[0]) for result in results)

    free(least - 1)
    sentence = f'needs {least / 1e9:.2f} GB of memory on cpu, and .* GB are free'
    with refused(sentence):
        fixed.restore(x)
    fixed.memory_limit = least - 1
    with refused('are allowed'):
        fixed.restore(x)
    close(fp32(net, memory_limit=least - 1).restore(x), results[0])  # as strips may become smaller


@pytest.fixture
def gpu(monkeypatch, free):
    """`gpu(most)`: a Restorer as on a GPU that runs out of memory with strips above `most` bytes, after it has written
    a wrong result, which must not be returned. `gpu.strips`: the size of each attempt."""
    run = StripEngine._restore

    def restore(engine, image_HWC, result_HWC, *others):
        gpu.strips.append(engine.strip_bytes)
        if engine.strip_bytes > gpu.most:
            run(engine, 1 - image_HWC, result_HWC, *others)
            raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB')
        run(engine, image_HWC, result_HWC, *others)

    def gpu(most, **options):
        gpu.most = most
        one = fp32(tiny(), **options)
        one.strip_bytes = STRIP_BYTES
        return one

    gpu.strips, gpu.emptied = [], []
    monkeypatch.setattr(StripEngine, '_restore', restore)
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: gpu.emptied.append(1))
    free(None)
    return gpu


@pytest.mark.parametrize('fixed', [False, True])
def test_gpu_out_of_memory_retries_with_smaller_strips(gpu, caplog, fixed):
    x = torch.rand(1, 3, 40, 56)
    one = gpu(most=STRIP_BYTES, fixed_strips=fixed)
    expected = one.restore(x)
    gpu.strips.clear()
    gpu.most = STRIP_BYTES // 16
    close(one.restore(x), expected)
    assert gpu.strips == [STRIP_BYTES, STRIP_BYTES // 4, STRIP_BYTES // 16]
    close(one.restore(x), expected)
    assert gpu.strips[3:] == [STRIP_BYTES // 16]  # strips that did not fit are not tried again
    assert len(gpu.emptied) == 2
    gpu.most = STRIP_BYTES // 64
    one.restore(x)
    assert one.strip_bytes == STRIP_BYTES // 64
    (warning,) = caplog.messages  # once
    assert re.search('cpu is out of memory: .* smaller strips', warning)


def test_retry_starts_from_the_chosen_strips(gpu):
    limit = needed(tiny(), 256, 256, 6_000_000)
    gpu(most=2_000_000, memory_limit=limit).restore(torch.rand(1, 3, 256, 256))
    assert gpu.strips == [6_000_000, 1_500_000]


@pytest.mark.parametrize(
    'restore', [lambda one: one(image(7, 9, 3)), lambda one: one.restore(torch.rand(1, 3, 7, 9))]
)
def test_image_that_fits_with_no_strips_raises(gpu, restore):
    one = gpu(most=0)
    with refused('an image of 9×7 pixels does not fit into the memory of cpu'):
        restore(one)
    assert gpu.strips == [STRIP_BYTES // 4**n for n in range(5)]
    assert gpu.strips[-1] == restorer._SMALLEST_STRIP_BYTES
    assert one.strip_bytes == STRIP_BYTES  # for the next image


@pytest.fixture
def says_cuda(monkeypatch):
    """`says_cuda(restorer)` says that it is on a GPU; the work is the CPU's."""

    def says_cuda(one):
        one.device = torch.device('cuda')
        monkeypatch.setattr(torch.Tensor, 'to', lambda tensor, *_, **__: tensor)
        return one

    return says_cuda


def test_fixed_strips_that_do_not_fit_a_gpu_shrink_at_once(gpu, says_cuda, free, caplog):
    one = says_cuda(gpu(most=STRIP_BYTES, fixed_strips=True))
    free(needed(tiny(), 256, 256, 6_000_000))
    one.restore(torch.rand(1, 3, 256, 256))
    assert gpu.strips == [6_000_000] and len(caplog.messages) == 1
    free(needed(tiny(), 256, 256) - 1)
    with refused(r'needs .* GB are free'):
        one.restore(torch.rand(1, 3, 256, 256))


@pytest.mark.parametrize('tile', [None, 16])
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_gpu_call_sets_libraries_and_restores_them(monkeypatch, says_cuda, free, precision, tile):
    cudnn, inside, entered = torch.backends.cudnn, [], []
    monkeypatch.setattr(cudnn, 'benchmark', True)
    monkeypatch.setattr(cudnn, 'deterministic', False)
    monkeypatch.setattr(restorer, 'without_tf32', lambda device: entered.append(device.type) or nullcontext())
    free(None)
    one = says_cuda(Restorer(tiny(), 'cpu', precision, tile=tile))

    def call(engine, x):
        inside.append((cudnn.benchmark, cudnn.deterministic))
        return x

    monkeypatch.setattr(StripEngine, '__call__', call)
    one.restore(torch.rand(1, 3, 24, 24))
    assert set(inside) == {(False, True)} and entered == ['cuda'] * (precision == 'fp32')
    assert (cudnn.benchmark, cudnn.deterministic) == (True, False)


def test_image_that_does_not_fit_is_not_copied():
    """A copy would take 30 GB."""
    pixels = np.broadcast_to(np.uint8(0), (100_000, 100_000, 3))
    with refused(r'^an image of 100000×100000 pixels needs .*; precision bf16 .*tiles'):
        fp32(tiny(), memory_limit=10**9)(pixels)
    least = (needed(tiny(), 64, 64) + 28 * 10**10) / 1e9
    says = f'an image of 100000×100000 pixels in tiles needs {least:.2f} GB of memory on cpu, and 1.00 GB are allowed'
    with refused(f'^{says}$'):
        fp32(tiny(), memory_limit=10**9, tile=64)(pixels)


def test_concurrent_calls_keep_their_own_strips(monkeypatch):
    """A small image from another thread, during a large one in small strips."""
    net, seen, call = tiny(), [], StripEngine.__call__
    one = fp32(net, memory_limit=needed(net, 136, 120) + 20_000)

    def meanwhile(engine, x):
        if x.shape[-1] > 8:
            before = engine.strip_bytes
            one.restore(torch.rand(1, 3, 8, 8))
            seen.append((before, engine.strip_bytes))
        return call(engine, x)

    monkeypatch.setattr(StripEngine, '__call__', meanwhile)
    one.restore(torch.rand(1, 3, 136, 120))
    ((before, after),) = seen
    assert before == after < STRIP_BYTES_CPU


# Tiles


def test_every_tile_has_its_own_statistics():
    net, x = tiny(), torch.rand(1, 3, 43, 30)
    whole = fp32(net)
    expected = restore_tiles(whole.restore, x, 24, 7)
    found = fp32(net, tile=24, tile_overlap=7).restore(x)
    close(found, expected, atol=1e-6)
    assert (found - whole.restore(x)).abs().max() > 1e-4
    before = image(43, 30, 4)
    np.testing.assert_array_equal(fp32(identity(), tile=24, tile_overlap=7)(before), before)


def test_tiles_need_the_memory_of_a_tile():
    net, x = tiny(), torch.rand(1, 3, 80, 56)
    # And three times the image, in single precision, less two colours.
    limit = needed(net, 32, 32) + 28 * 80 * 56
    with refused('image of 56×80 pixels'):
        fp32(net, memory_limit=limit).restore(x)
    tiled = fp32(net, memory_limit=limit, tile=32, tile_overlap=8)
    close(tiled.restore(x), fp32(net, tile=32, tile_overlap=8).restore(x))
    tiled.memory_limit -= 1
    with refused(r'^an image of 56×80 pixels in tiles needs .*; smaller tiles still less$'):
        tiled.restore(x)
    with refused(r'^a tile of 64×72 pixels needs .*; precision bf16 .* smaller tiles still'):
        tiled._restore(torch.rand(1, 3, 72, 64))  # as when memory has become less meanwhile


# TLC


def test_tlc_is_attention_over_windows():
    net, x = tiny(), torch.rand(1, 3, 72, 131)
    found = fp32(net, tlc=64).restore(x)
    close(found, restore_tensor(StripEngine(net, window=64), x), atol=1e-6)
    plain = fp32(net, tlc=False).restore(x)
    assert (found - plain).abs().max() > 1e-4
    for window in (True, 136):  # as large as the image, padded
        assert torch.equal(fp32(net, tlc=window).restore(x), plain)


def test_windows_in_tight_memory():
    net, x = tiny(), torch.rand(1, 3, 72, 136)
    limit = StripEngine(net, window=64, strip_bytes=1).memory(72, 136)
    tight = fp32(net, tlc=64, memory_limit=limit)
    close(tight.restore(x), fp32(net, tlc=64).restore(x))


# Weights


@pytest.mark.parametrize(('validated_with', 'window'), [(True, 384), (False, None), (128, 128)])
def test_checkpoint_decides_on_tlc_unless_an_argument_does(tmp_path, validated_with, window):
    path = tmp_path / 'a.pth'
    save_checkpoint(path, tiny().state_dict(), {'type': 'Restormer', **TINY}, 1, tlc=validated_with)
    for argument, expected in ((None, window), (False, None), (True, 384), (64, 64)):
        assert Restorer.from_checkpoint(path, 'cpu', tlc=argument).engine.window == expected


def test_param_key_chooses_the_weights_of_a_checkpoint(tmp_path):
    net, options, x = tiny(), {'type': 'Restormer', **TINY}, torch.rand(1, 3, 16, 16)
    save_checkpoint(tmp_path / 'a.pth', identity().state_dict(), options, 1, net.state_dict())
    for key, expected in ((None, fp32(net).restore(x)), ('params_ema', fp32(net).restore(x)), ('params', x)):
        close(Restorer.from_checkpoint(tmp_path / 'a.pth', 'cpu', 'fp32', param_key=key).restore(x), expected)


def test_default_weights(tmp_path, monkeypatch):
    for base in ('ROOT', 'SHIPPED'):
        monkeypatch.setattr(tasks, base, tmp_path)
    folder = tmp_path / 'Motion_Deblurring' / 'pretrained_models'
    with pytest.raises(
        CheckpointError, match=r'motion_deblurring\.pth: found no weights for motion_deblurring'
    ):
        Restorer.from_checkpoint(device='cpu')
    with pytest.raises(CheckpointError, match='is a folder'):
        Restorer.from_checkpoint('', device='cpu')
    folder.mkdir(parents=True)
    shipped, published = folder / 'motion_deblurring_compact.pth', folder / 'motion_deblurring.pth'
    save_checkpoint(shipped, identity().state_dict(), {'type': 'Restormer', **TINY}, 1)
    assert tasks.default_weights('motion_deblurring') == shipped
    before = image(8, 8, 3)
    np.testing.assert_array_equal(Restorer.from_checkpoint(device='cpu')(before), before)
    shipped.rename(published)
    shipped.touch()
    assert tasks.default_weights('Motion_Deblurring') == published


def test_tasks():
    assert tasks.find_task('Motion_DEBLURRING') is tasks.TASKS['motion_deblurring']
    assert all(task.name == name for name, task in tasks.TASKS.items())
    with pytest.raises(ValueError, match="task: found 'derain'; allowed: motion_deblurring"):
        tasks.find_task('derain')
