import numpy as np
import pytest
import torch
from torch import nn

from basicsr.archs.restormer_arch import Restormer
from basicsr.inference import RestoreError, Restorer, restore_tensor, tasks
from basicsr.utils.checkpoint import CheckpointError, save_checkpoint
from basicsr.utils.device import DeviceError

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


SHAPES = [(1, 1), (7, 5), (8, 16), (9, 33), (1, 40), (2, 3, 3), (16, 8, 3), (13, 11, 4)]


# restore_tensor


@pytest.mark.parametrize('size', [(1, 1), (3, 4), (5, 5), (7, 9), (8, 8), (20, 17)])
def test_padding_reflects_where_it_can(size):
    net = Function(lambda x: x + 1)
    x = torch.rand(2, 3, *size)
    torch.testing.assert_close(restore_tensor(net, x), x + 1, rtol=0, atol=0)
    (padded,) = net.seen
    assert padded.shape[-2] % 8 == padded.shape[-1] % 8 == 0
    rows, columns = (np.pad(range(n), (0, -n % 8), mode='reflect' if n > -n % 8 else 'edge') for n in size)
    torch.testing.assert_close(padded, x[:, :, rows][..., columns], rtol=0, atol=0)


def test_the_network_says_what_it_needs():
    net = Function(lambda x: x)
    net.multiple = 6
    restore_tensor(net, torch.rand(1, 3, 5, 13))
    restore_tensor(net, torch.rand(1, 3, 5, 13), multiple=4)
    assert [tuple(x.shape[-2:]) for x in net.seen] == [(6, 18), (8, 16)]


def test_a_size_that_needs_no_padding_is_the_bare_network():
    net, x = tiny(), torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        assert torch.equal(restore_tensor(net, x), net(x))


# Restorer


@pytest.mark.parametrize(
    ('shape', 'dtype', 'precision', 'channels'),
    [
        *((shape, dtype, 'fp32', 3) for shape in SHAPES for dtype in (np.uint8, np.uint16)),
        *((shape, np.uint16, 'bf16', 3) for shape in SHAPES[::3]),
        *((shape, np.uint16, 'fp32', 1) for shape in SHAPES[1::3]),
    ],
)
def test_an_identity_network_changes_no_value(shape, dtype, precision, channels):
    restorer = Restorer(identity(inp_channels=channels, out_channels=channels), 'cpu', precision)
    before = image(*shape, dtype=dtype)
    kept = before.copy()
    after = restorer(before)
    assert after.dtype == dtype
    np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(before, kept)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_every_value_survives(dtype):
    every = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(16, -1)
    restorer = Restorer(Function(lambda x: x), 'cpu')
    np.testing.assert_array_equal(restorer(every), every)
    np.testing.assert_array_equal(restorer(np.dstack([every] * 3)), np.dstack([every] * 3))


def test_views_and_other_memory_orders():
    restorer = Restorer(identity(), 'cpu')
    whole = image(20, 30, 3)
    for view in (whole[::-1], whole[:, ::2], whole[..., ::-1], np.asfortranarray(whole), whole.swapaxes(0, 1)):
        np.testing.assert_array_equal(restorer(view), view)


def test_the_result_is_the_networks_rounded():
    net = tiny()
    before = image(9, 12, 3)
    x = torch.from_numpy(before).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        y = restore_tensor(net, x)
    expected = (y.clamp(0, 1) * 255).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(Restorer(net, 'cpu')(before) - expected).max() <= 1  # channels-last sums in another order
    assert (np.abs(before - expected) > 1).any()


def test_rounding_is_half_to_even_and_clamped():
    values = torch.tensor([-1.0, 0.5, 1.5, 2.5, 254.4, 254.6, 300.0, 100.0]) / 255
    net = Function(lambda x: values.expand_as(x))
    assert Restorer(net, 'cpu')(image(8, 8))[0].tolist() == [0, 0, 2, 2, 254, 255, 255, 100]


def test_grey_through_three_channels_is_the_mean():
    gain = torch.tensor([0.3, 0.6, 0.9]).view(1, 3, 1, 1)
    before = image(8, 8)
    after = Restorer(Function(lambda x: x * gain), 'cpu')(before)
    np.testing.assert_array_equal(after, np.round(before * 0.6))


def test_colour_through_one_channel_goes_by_itself():
    net = Function(lambda x: x - x.mean(), channels=1)
    before = image(8, 8, 3)
    after = Restorer(net, 'cpu')(before)
    expected = np.clip(before - before.mean((0, 1), keepdims=True), 0, 255)
    assert np.abs(after - expected).max() <= 0.51
    assert [tuple(x.shape) for x in net.seen] == [(1, 1, 8, 8)] * 3


def test_alpha_is_passed_through_and_not_looked_at():
    before = image(9, 9, 4)
    restorer = Restorer(tiny(), 'cpu')
    after = restorer(before)
    np.testing.assert_array_equal(after[..., 3], before[..., 3])
    np.testing.assert_array_equal(after[..., :3], restorer(before[..., :3]))


@pytest.mark.parametrize(
    'wrong',
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.int64),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((8,), np.uint8),
        np.zeros((0, 8), np.uint8),
    ],
    ids=lambda a: f'{a.shape} {a.dtype}',
)
def test_other_arrays_are_refused(wrong):
    with pytest.raises(ValueError, match=r'image: found an array of .*; allowed: '):
        Restorer(identity(), 'cpu')(wrong)


def test_networks_of_other_channels_are_refused():
    restorer = Restorer(tiny(inp_channels=6, dual_pixel_task=True), 'cpu')
    with pytest.raises(ValueError, match='takes 6 channels; allowed: 1 or 3'):
        restorer(image(8, 8, 3))


def test_devices_and_precisions_are_checked():
    with pytest.raises(DeviceError, match='device'):
        Restorer(identity(), 'gpu')
    with pytest.raises(DeviceError, match='fp16 on a CPU'):
        Restorer(identity(), 'cpu', 'fp16')


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
def test_what_is_not_finite_is_never_returned(value):
    def one_bad_pixel(x):
        x = x.clone()
        x[0, 0, 3, 3] = value
        return x

    with pytest.raises(RestoreError, match='result for 9×8 pixels is not finite'):
        Restorer(Function(one_bad_pixel), 'cpu')(image(8, 9, 3))


def raises(error):
    def function(x):
        raise error

    return Function(function)


@pytest.mark.parametrize(
    'error',
    [
        torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB'),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate 12 bytes.'),
        RuntimeError('MPS backend out of memory'),
        RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'),
        MemoryError(),
    ],
    ids=lambda error: f'{type(error).__name__}: {str(error)[:30]}',
)
def test_too_little_memory_is_a_sentence_with_the_size(error):
    with pytest.raises(RestoreError, match='image of 9×8 pixels does not fit into the memory of cpu'):
        Restorer(raises(error), 'cpu')(image(8, 9, 3))


def test_a_real_allocation_failure():
    net = Function(lambda x: torch.empty(1 << 60))
    with pytest.raises(RestoreError, match='does not fit into the memory'):
        Restorer(net, 'cpu')(image(8, 8, 3))


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match='shapes do not match') as caught:
        Restorer(raises(RuntimeError('shapes do not match')), 'cpu')(image(8, 8, 3))
    assert not isinstance(caught.value, RestoreError)


def test_nothing_is_recorded_for_gradients():
    net = tiny()
    Restorer(net, 'cpu')(image(8, 8, 3))
    assert all(p.grad is None for p in net.parameters())


# Weights


def test_from_checkpoint(tmp_path):
    net = tiny()
    path = tmp_path / 'a.pth'
    torch.save({'params': net.state_dict()}, path)
    before = image(16, 16, 3)
    after = Restorer.from_checkpoint(path, device='cpu')(before)
    np.testing.assert_array_equal(after, Restorer(net, 'cpu')(before))


def test_default_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, 'ROOT', tmp_path)
    folder = tmp_path / 'Motion_Deblurring' / 'pretrained_models'
    with pytest.raises(CheckpointError, match=r'has neither motion_deblurring\.pth nor '):
        Restorer.from_checkpoint(device='cpu')
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
