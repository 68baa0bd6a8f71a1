"""The metrics of deraining and defocus deblurring, against exact fractions and loops over windows and pixels."""

import doctest
import itertools
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
import torch
from test_psnr_ssim import pair, slow_ssim

from basicsr.metrics import defocus, matlab_luma, perceptual
from basicsr.metrics.defocus import calculate_mae, calculate_ssim_uniform
from basicsr.metrics.matlab_luma import calculate_psnr_y, calculate_ssim_y
from basicsr.metrics.perceptual import calculate_lpips
from basicsr.utils.errors import UserError

# Y as MATLAB's rgb2ycbcr gives it for uint8. Last: a weighted sum of exactly 125.5.
COLOURS = {
    (0, 0, 0): 16,
    (255, 255, 255): 235,
    (255, 0, 0): 81,
    (0, 255, 0): 145,
    (0, 0, 255): 41,
    (255, 255, 0): 210,
    (0, 255, 255): 170,
    (255, 0, 255): 106,
    (128, 128, 128): 126,
    (1, 1, 1): 17,
    (0, 204, 68): 126,
}


def exact_luma(image):
    """Y in exact fractions, rounded half away from zero."""
    weights = Fraction(65481, 1000), Fraction(128553, 1000), Fraction(24966, 1000)
    values = [
        16 + sum(weight * int(level) / 255 for weight, level in zip(weights, pixel, strict=True))
        for pixel in image.reshape(-1, 3)
    ]
    return np.array([math.floor(value + Fraction(1, 2)) for value in values]).reshape(image.shape[:2])


def slow_uniform_ssim(a, b, data_range):
    """Mean over all windows of 7×7 pixels of one channel, from the definition with sample variances."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for top, left in itertools.product(range(a.shape[0] - 6), range(a.shape[1] - 6)):
        x, y = (np.float64(image[top : top + 7, left : left + 7]).ravel() for image in (a, b))
        mx, my = x.mean(), y.mean()
        (vx, cov), (_, vy) = np.cov(x, y, ddof=1)
        values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.mean(values)


def test_luma_is_matlabs():
    image = np.array([list(COLOURS)], np.uint8)
    luma = matlab_luma.matlab_luma(image)
    assert luma.dtype == np.uint8 and luma[0].tolist() == list(COLOURS.values())
    assert 587 * 204 + 114 * 68 == 127500  # of 255,000, for 219 levels: 109.5 above black
    colours = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    np.testing.assert_array_equal(matlab_luma.matlab_luma(colours), exact_luma(colours))


def test_psnr_and_ssim_of_luma():
    a, b = pair((14, 13, 3))
    ya, yb = exact_luma(a), exact_luma(b)
    assert calculate_psnr_y(a, b, data_range=255.0) == pytest.approx(
        10 * math.log10(255**2 / np.mean((ya - yb) ** 2)), rel=1e-12
    )
    assert calculate_ssim_y(a, b) == pytest.approx(slow_ssim(ya, yb, 255, valid_only=True), rel=1e-10)
    assert calculate_psnr_y(a, a) == math.inf and calculate_ssim_y(a, a) == 1
    blue = np.zeros_like(a)
    blue[..., 2] = 1
    assert calculate_psnr_y(blue, np.zeros_like(a)) == math.inf  # 0.098 of a level is rounded away


@pytest.mark.parametrize('shape', [(12, 11, 3), (9, 10)])
@pytest.mark.parametrize(('dtype', 'peak'), [(np.uint8, 255), (np.uint16, 65535), (np.float64, 1.0)])
def test_uniform_ssim_and_mae(shape, dtype, peak):
    a, b = pair(shape, dtype)
    channels = [
        slow_uniform_ssim(x, y, peak) for x, y in zip(np.atleast_3d(a).T, np.atleast_3d(b).T, strict=True)
    ]
    assert calculate_ssim_uniform(a, b, data_range=peak) == pytest.approx(np.mean(channels), rel=1e-9)
    errors = [abs(float(x) - float(y)) / peak for x, y in zip(a.flat, b.flat, strict=True)]
    assert calculate_mae(a, b, data_range=peak) == pytest.approx(sum(errors) / a.size, rel=1e-12)


A, B = pair()


@pytest.mark.parametrize(
    ('metric', 'images', 'data_range', 'message'),
    [
        (calculate_psnr_y, (A.astype(np.uint16),) * 2, 65535.0, 'img1: found uint16 of shape .*; allowed: uint8'),
        (calculate_ssim_y, (A / 255, B / 255), None, 'img1: found float64 of shape'),
        (calculate_psnr_y, (A[..., 0], B[..., 0]), None, r'img1: found uint8 of shape \(15, 13\)'),
        (calculate_psnr_y, (A, B), 1.0, 'data_range: found 1.0; allowed: 255'),
        (calculate_psnr_y, (A, B[1:]), None, 'img2: found uint8 of shape'),
        (calculate_ssim_y, (A[:10], B[:10]), None, 'allowed: at least 11'),
        (calculate_ssim_uniform, (A[:, :6], B[:, :6]), None, 'found 6×15 pixels after the crop; allowed: at least 7'),
        (calculate_mae, (A / 255, B / 255), None, 'data_range: found None'),
        (calculate_lpips, (A[..., :1], B[..., :1]), None, r'found shape \(15, 13, 1\); allowed: \(H, W, 3\)'),
    ],
)  # fmt: skip
def test_refused(metric, images, data_range, message):
    with pytest.raises(ValueError, match=message):
        metric(*images, **({'data_range': data_range} if data_range else {}))


@pytest.mark.parametrize('module', [matlab_luma, defocus, perceptual])
def test_examples_in_the_documentation(module):
    assert not doctest.testmod(module).failed


# LPIPS, with a stand-in for the package


@pytest.fixture
def network():
    perceptual._network.cache_clear()
    yield
    perceptual._network.cache_clear()


def stand_in(monkeypatch, network):
    module = ModuleType('lpips')
    module.LPIPS = network
    monkeypatch.setitem(sys.modules, 'lpips', module)


def test_lpips_is_called_as_published_in_one_thread(monkeypatch, network):
    made, seen = [], []

    class LPIPS(torch.nn.Module):
        def __init__(self, **options):
            super().__init__()
            made.append(options)

        def forward(self, x, y, normalize=False):
            seen.append((x, y, normalize, self.training, torch.is_grad_enabled(), threading.get_ident()))
            return (x - y).abs().mean().reshape(1, 1, 1, 1)

    stand_in(monkeypatch, LPIPS)
    a, b = pair()
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda _: calculate_lpips(a, b), range(8)))
    assert values == [pytest.approx(np.abs(a / 255 - b / 255).mean(), rel=1e-5)] * 8
    assert calculate_lpips(a / 255, b / 255, data_range=1.0) == pytest.approx(values[0], rel=1e-6)
    assert made == [{'net': 'alex', 'version': '0.1', 'verbose': False}]
    x, y, normalize, training, grad, _ = seen[0]
    for given, image in ((x, a), (y, b)):
        assert given.dtype == torch.float32 and given.shape == (1, 3, 15, 13)
        np.testing.assert_allclose(given[0].permute(1, 2, 0).numpy(), image / 255, rtol=1e-6)
    assert (normalize, training, grad) == (True, False, False)
    assert len({thread for *_, thread in seen}) == 1


def test_lpips_without_its_package_or_network(monkeypatch, network):
    monkeypatch.setitem(sys.modules, 'lpips', None)  # import fails
    with pytest.raises(UserError, match='the package lpips is not installed; `pip install lpips` gets it'):
        calculate_lpips(A, B)

    def offline(**_):
        raise OSError('no route to host')

    stand_in(monkeypatch, offline)
    with pytest.raises(UserError, match='lpips cannot load AlexNet: no route to host'):
        calculate_lpips(A, B)
