"""Metrics against scikit-image, closed forms and a slow SSIM that looks into every window."""

import doctest
import inspect
import itertools
import math

import numpy as np
import pydantic
import pytest
from skimage.metrics import peak_signal_noise_ratio

from basicsr.metrics import psnr_ssim
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim, calculate_ssim_3d
from basicsr.utils.registry import METRIC_REGISTRY

METRICS = [calculate_psnr, calculate_ssim, calculate_ssim_3d]
SSIMS = [calculate_ssim, calculate_ssim_3d]
all_metrics = pytest.mark.parametrize('metric', METRICS)


def pair(shape=(15, 13, 3), dtype=np.uint8, seed=0):
    """A colour ramp with noise, and with more noise; full range of an integer type, [0, 1] of a float."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0.1, 0.8, shape[0] * shape[1]).reshape(shape[:2])
    ramp = ramp if len(shape) == 2 else ramp[..., None] * np.linspace(1, 0.3, shape[2])
    images = [np.clip(ramp + rng.normal(0, sigma, shape), 0, 1) for sigma in (0.05, 0.1)]
    if np.issubdtype(dtype, np.integer):
        images = [np.round(img * np.iinfo(dtype).max) for img in images]
    return [img.astype(dtype) for img in images]


def slow_ssim(a, b, data_range, valid_only=False):
    """Mean SSIM over all voxels of an array with any number of axes, from the definition: weighted means and
    centred moments in each window. Outside the array, the nearest value; or only windows that lie inside."""
    a, b = np.float64(a), np.float64(b)
    offsets = np.arange(-5, 6)
    weights = np.ones(())
    for _ in range(a.ndim):
        weights = np.multiply.outer(weights, np.exp(-(offsets**2) / (2 * 1.5**2)))
    weights /= weights.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    margin = 5 if valid_only else 0
    values = []
    for centre in itertools.product(*(range(margin, n - margin) for n in a.shape)):
        window = np.ix_(*(np.clip(c + offsets, 0, n - 1) for c, n in zip(centre, a.shape, strict=True)))
        x, y = a[window], b[window]
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
        cov = (weights * (x - mx) * (y - my)).sum()
        values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.mean(values)


@pytest.mark.parametrize('shape', [(15, 13, 3), (15, 13)])
@pytest.mark.parametrize(('dtype', 'peak'), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1.0)])
def test_psnr_is_scikit_images(shape, dtype, peak):
    a, b = pair(shape, dtype)
    expected = peak_signal_noise_ratio(np.float64(a), np.float64(b), data_range=peak)
    assert calculate_psnr(a, b, data_range=peak) == pytest.approx(expected, rel=1e-12)
    if dtype != np.float32:
        assert calculate_psnr(a, b) == calculate_psnr(a, b, data_range=peak)


def test_psnr_closed_forms():
    black = np.zeros((11, 11, 3), np.uint8)
    assert calculate_psnr(black, black + 255) == pytest.approx(
        0, abs=1e-12
    )  # uint8 arithmetic would say 1 - 256
    assert calculate_psnr(black + 5, black) == pytest.approx(20 * math.log10(255 / 5), rel=1e-12)
    assert calculate_psnr(black + 5, black, data_range=5) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('shape', [(13, 12, 3), (13, 12, 1), (13, 12)])
def test_ssim_3d_is_the_slow_one_with_replicated_borders(shape):
    a, b = pair(shape)
    assert calculate_ssim_3d(a, b) == pytest.approx(slow_ssim(a, b, 255), rel=1e-10)


def test_ssim_is_the_mean_of_the_channels_over_whole_windows():
    a, b = pair()
    channels = [slow_ssim(a[..., c], b[..., c], 255, valid_only=True) for c in range(3)]
    assert calculate_ssim(a, b) == pytest.approx(np.mean(channels), rel=1e-10)
    assert calculate_ssim(a[..., 0], b[..., 0]) == pytest.approx(channels[0], rel=1e-10)


@all_metrics
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_identical_images(metric, dtype):
    a, _ = pair(dtype=dtype)
    value = metric(a, a.copy(), data_range=1.0 if dtype == np.float32 else None)
    assert value == (math.inf if metric is calculate_psnr else pytest.approx(1, abs=1e-12))


@all_metrics
@pytest.mark.parametrize('shape', [(15, 13, 3), (15, 13)])
def test_range_follows_the_type_and_scale_does_not_matter(metric, shape):
    a, b = pair(shape)
    expected = pytest.approx(metric(a, b), rel=1e-9)
    assert metric(a.astype(np.uint16) * 257, b.astype(np.uint16) * 257) == expected
    assert metric(a / 255, b / 255, data_range=1) == expected
    assert metric(np.float32(a), np.float32(b), data_range=255) == expected


@all_metrics
def test_channels_first(metric):
    a, b = pair()
    chw = [np.ascontiguousarray(img.transpose(2, 0, 1)) for img in (a, b)]
    for options in ({}, {'crop_border': 1}, {'test_y_channel': True}):
        assert metric(*chw, input_order='CHW', **options) == pytest.approx(metric(a, b, **options), rel=1e-12)
    assert metric(a[..., 0], b[..., 0], input_order='CHW') == metric(a[..., 0], b[..., 0])


@all_metrics
@pytest.mark.parametrize('shape', [(17, 15, 3), (17, 15)])
def test_border_is_left_out_on_every_side(metric, shape):
    a, b = pair(shape)
    expected = metric(a[2:-2, 2:-2], b[2:-2, 2:-2])
    for edge in np.s_[:2, :], np.s_[-2:, :], np.s_[:, :2], np.s_[:, -2:]:
        spoiled = b.copy()
        spoiled[edge] = 255 - spoiled[edge]
        assert metric(a, spoiled, crop_border=2) == expected != metric(a, spoiled)


@pytest.mark.parametrize(('dtype', 'top'), [(np.uint8, 255), (np.uint16, 65535), (np.float64, 1)])
@pytest.mark.parametrize(
    ('colour', 'luma'), [((1, 1, 1), 219), ((1, 0, 0), 65.481), ((0, 1, 0), 128.553), ((0, 0, 1), 24.966)]
)
def test_luma_of_the_primaries(dtype, top, colour, luma):
    black = np.zeros((4, 4, 3), dtype)
    lit = (black + np.array(colour) * top).astype(dtype)
    value = calculate_psnr(lit, black, test_y_channel=True, data_range=1 if dtype == np.float64 else None)
    assert value == pytest.approx(20 * math.log10(255 / luma), rel=1e-12)


@pytest.mark.parametrize('metric', SSIMS)
@pytest.mark.parametrize(('dtype', 'peak'), [(np.uint8, 255), (np.float64, 1)])
def test_ssim_of_the_luma_sees_the_offset_of_black(metric, dtype, peak):
    """PSNR does not: the offset cancels in a difference. Luma by hand: MATLAB's rgb2ycbcr, first row."""
    a, b = pair(dtype=dtype)
    ya, yb = (
        (16 + 65.481 * (x[..., 0] / peak) + 128.553 * (x[..., 1] / peak) + 24.966 * (x[..., 2] / peak))
        for x in (a, b)
    )
    value = metric(a, b, test_y_channel=True, data_range=peak)
    assert value == pytest.approx(slow_ssim(ya, yb, 255, valid_only=metric is calculate_ssim), rel=1e-10)


@all_metrics
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_inputs_are_left_alone_and_may_be_read_only(metric, dtype):
    a, b = pair(dtype=dtype)
    before = a.copy(), b.copy()
    a.flags.writeable = b.flags.writeable = False
    assert isinstance(metric(a, b, test_y_channel=True, data_range=255), float)
    assert np.array_equal(a, before[0]) and np.array_equal(b, before[1])


A, B = pair()
REFUSED = {
    'other shape': ((A, B[:, :12]), {}, r'img2: found uint8 of shape \(15, 12, 3\); .*\(15, 13, 3\)'),
    'shape that broadcasts': ((A, B[..., :1]), {}, 'img2: found'),
    'other type': ((A, B.astype(np.uint16)), {}, 'img2: found uint16 .* img1, uint8'),
    'other float': ((A / 1.0, np.float32(B)), {'data_range': 255}, 'img2: found float32 .* img1, float64'),
    'signed type': (
        (A.astype(np.int32), B.astype(np.int32)),
        {'data_range': 255},
        'img1: found int32; allowed: uint8',
    ),
    'boolean': ((A > 9, B > 9), {'data_range': 1}, 'img1: found bool'),
    'float without range': ((A / 255, B / 255), {}, 'data_range: found None for float64'),
    'no range': ((A, B), {'data_range': 0}, 'data_range: found 0'),
    'range is not a number': ((A, B), {'data_range': math.nan}, 'data_range: found nan'),
    'batch': ((A[None], B[None]), {}, r'img1: found shape \(1, 15, 13, 3\)'),
    'order': ((A, B), {'input_order': 'WHC'}, "input_order: found 'WHC'"),
    'negative border': ((A, B), {'crop_border': -1}, 'crop_border: found -1'),
    'border eats the image': ((A[:12, :12], B[:12, :12]), {'crop_border': 6}, 'crop_border: found 6'),
    'luma of grey': ((A[..., 0], B[..., 0]), {'test_y_channel': True}, r'test_y_channel: .*\(15, 13\)'),
    'luma of four channels': (
        (np.zeros((15, 15, 4), np.uint8),) * 2,
        {'test_y_channel': True},
        'test_y_channel',
    ),
}


@all_metrics
@pytest.mark.parametrize(('images', 'options', 'message'), REFUSED.values(), ids=list(REFUSED))
def test_refused(metric, images, options, message):
    with pytest.raises(ValueError, match=message):
        metric(*images, **options)


@pytest.mark.parametrize('metric', SSIMS)
@pytest.mark.parametrize('shape', [(10, 20, 3), (20, 10), (12, 20, 3)])
def test_images_smaller_than_the_window_are_refused(metric, shape):
    a = np.zeros(shape, np.uint8)
    with pytest.raises(ValueError, match='pixels after the crop; allowed: at least 11'):
        metric(a, a, crop_border=1 if shape[0] == 12 else 0)


def test_not_a_number_is_not_perfect():
    a = np.full((11, 11, 3), np.nan)
    assert all(math.isnan(metric(a, a, data_range=1)) for metric in METRICS)


@all_metrics
def test_registered_with_a_signature_that_options_are_checked_against(metric):
    assert METRIC_REGISTRY.get(metric.__name__) is metric
    parameters = list(inspect.signature(metric, eval_str=True).parameters.values())[2:]
    model = pydantic.create_model('Options', **{p.name: (p.annotation, p.default) for p in parameters})
    assert model(crop_border=0, test_y_channel=False).data_range is None
    with pytest.raises(pydantic.ValidationError):
        model(input_order='WHC')


def test_examples_in_the_docstrings():
    failed, attempted = doctest.testmod(psnr_ssim)
    assert attempted >= 6 and not failed
