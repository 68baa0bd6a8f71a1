"""RealBlur's measures: against known shifts and exposures, and slow loops over the formulas."""

import doctest
import math

import cv2
import numpy as np
import pytest

from basicsr.metrics import aligned
from basicsr.metrics.aligned import (
    align,
    alignment_converges,
    brightness_scale,
    calculate_psnr_aligned,
    calculate_ssim_aligned,
    find_homography,
    masked_psnr,
    masked_ssim,
)
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from basicsr.utils.registry import METRIC_REGISTRY

HEIGHT, WIDTH, MARGIN = 300, 360, 20
# From places in the target to those in the restored image.
HOMOGRAPHY = np.array([[1.004, 0.003, 2.3], [-0.002, 0.997, -1.6], [4e-6, -3e-6, 1]])
RNG = np.random.default_rng(0)


def smooth(height, width):
    """(H, W, 3) in about [0, 1], with details of some 10 pixels."""
    coarse = np.random.default_rng(0).random((height // 10, width // 10, 3))
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def moved_pair():
    """A target, and what a camera sees of the same scene that stands otherwise; nothing is invented at the edges."""
    scene = smooth(HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN)
    inside = np.s_[MARGIN:-MARGIN, MARGIN:-MARGIN]
    shift = np.array([[1, 0, MARGIN], [0, 1, MARGIN], [0, 0, 1.0]])
    warp = shift @ HOMOGRAPHY @ np.linalg.inv(shift)
    moved = cv2.warpPerspective(scene, warp, scene.shape[1::-1], flags=cv2.INTER_CUBIC)
    return np.clip(moved[inside], 0, 1), scene[inside]


def figures_of(restored, target):
    """PSNR, SSIM, and whether the alignment converges."""
    metrics = (calculate_psnr_aligned, calculate_ssim_aligned, alignment_converges)
    return tuple(metric(restored, target) for metric in metrics)


def corners(homography):
    points = [[0, 0, 1], [WIDTH, 0, 1], [0, HEIGHT, 1], [WIDTH, HEIGHT, 1]]
    x, y, w = homography @ np.transpose(points)
    return np.stack([x / w, y / w])


def mask_of(homography):
    """Whether the nearest pixel to where a place of the target lies is one of the restored image."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    u, v, w = np.tensordot(homography, np.stack([x, y, np.ones_like(x)]), 1)
    u, v = np.rint(u / w), np.rint(v / w)
    return (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT)


def some_mask(height, width):
    mask = np.ones((height, width))
    mask[:4] = mask[:, -7:] = mask[9:12, 5:8] = 0
    return mask


# Alignment


def test_a_known_homography_is_found_and_undone():
    restored, target = moved_pair()
    aligned = align(restored, target)
    assert aligned.converged
    assert np.abs(corners(aligned.homography) - corners(HOMOGRAPHY)).max() < 0.15
    # But for a row where the nearest pixel is one of two, by a rounding.
    assert np.mean(aligned.mask != mask_of(aligned.homography)) < 0.005
    assert set(np.unique(aligned.mask)) == {0, 1} and 0.9 < aligned.mask.mean() < 0.99

    perfect = cv2.warpPerspective(
        np.float32(restored),
        HOMOGRAPHY,
        (WIDTH, HEIGHT),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )
    interpolation = masked_psnr(np.float64(perfect), target, mask_of(HOMOGRAPHY))
    psnr, ssim, _ = figures_of(restored, target)
    assert psnr == masked_psnr(aligned.restored, target, aligned.mask)
    assert ssim == masked_ssim(aligned.restored, target, aligned.mask)
    assert calculate_psnr(restored, target, data_range=1.0) < 20
    # The remaining error is one of brightness, which is compared before the alignment.
    assert 50 < interpolation - 3 < masked_psnr(aligned.restored / aligned.scale, target, aligned.mask)
    assert psnr > 30 and ssim > 0.997


def test_motion_and_darkening_are_undone_together():
    restored, target = moved_pair()
    plain, darker = figures_of(restored, target), figures_of(0.4 * restored, target)
    assert darker == pytest.approx(plain, rel=1e-3)


# Brightness


def test_brightness_is_undone_exactly():
    target = smooth(HEIGHT, WIDTH)
    assert brightness_scale(0.7 * target, target) == pytest.approx(1 / 0.7, rel=1e-12)
    psnr, ssim, converged = figures_of(0.7 * target, target)
    assert psnr > 60 and ssim > 0.9999 and converged


def test_brightness_scale_is_least_squares():
    z, x = RNG.random((12, 13, 3)), RNG.random((12, 13, 3))
    scale = brightness_scale(z, x)
    assert scale == pytest.approx(sum(x.flat * z.flatten()) / sum(z.flatten() ** 2), rel=1e-12)
    error = [((x - factor * z) ** 2).sum() for factor in (scale, scale * 1.001, scale * 0.999)]
    assert error[0] == min(error)
    assert brightness_scale(np.zeros((12, 13, 3)), x) == 1


def test_pixels_scaled_above_white_are_not_clamped():
    target = smooth(HEIGHT, WIDTH)
    restored = 0.5 * target
    restored[50:55, 60:65] = 1
    aligned = align(restored, target)
    assert aligned.scale > 1.9
    assert aligned.restored.max() > 1.8


# No alignment


@pytest.mark.parametrize(
    ('restored', 'target'),
    [
        (np.full((20, 24, 3), 0.5), np.full((20, 24, 3), 0.25)),
        (np.full((20, 24, 3), 0.5), smooth(20, 24)),
        (np.zeros((20, 24, 3)), smooth(20, 24)),
    ],
    ids=['flat', 'flat and detailed', 'black'],
)
def test_images_without_alignment_are_measured_in_place(restored, target):
    assert find_homography(restored, target) is None
    aligned = align(restored, target)
    assert not aligned.converged
    np.testing.assert_array_equal(aligned.homography, np.eye(3))
    assert aligned.mask.all()
    scaled = restored * brightness_scale(restored, target)
    np.testing.assert_array_equal(aligned.restored, scaled)
    psnr, ssim, converged = figures_of(restored, target)
    assert psnr == pytest.approx(calculate_psnr(scaled, target, data_range=1.0), rel=1e-12)
    assert ssim == pytest.approx(calculate_ssim(scaled, target, data_range=1.0), rel=1e-9)
    assert converged is False


def ecc_gives(monkeypatch, homography):
    monkeypatch.setattr(aligned.cv2, 'findTransformECC', lambda *_: (0.9, np.float32(homography)))


@pytest.mark.parametrize('homography', [np.full((3, 3), np.nan), [[1, 0, 1e4], [0, 1, 0], [0, 0, 1]]])
def test_senseless_homography_counts_as_not_converged(monkeypatch, homography):
    target = smooth(30, 40)
    ecc_gives(monkeypatch, homography)
    aligned = align(target, target)
    assert not aligned.converged
    np.testing.assert_allclose(aligned.restored, target)


def test_other_errors_of_opencv_propagate(monkeypatch):
    def full(*_):
        error = cv2.error('out of memory')
        error.code = cv2.Error.StsNoMem
        raise error

    monkeypatch.setattr(aligned.cv2, 'findTransformECC', full)
    with pytest.raises(cv2.error, match='out of memory'):
        find_homography(*moved_pair())


def test_arguments_of_ecc_follow_the_definition(monkeypatch):
    """Always 100 iterations, on images smoothed over 5 pixels; the target is the fixed image."""
    seen = []
    monkeypatch.setattr(
        aligned.cv2, 'findTransformECC', lambda *given: (seen.extend(given), (1.0, given[2]))[1]
    )
    restored, target = moved_pair()
    find_homography(restored, target)
    template, moved, start, motion, (_, iterations, eps), mask, smoothing = seen
    grey = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(template, target @ grey, atol=1e-5)
    np.testing.assert_allclose(moved, restored @ grey, atol=1e-5)
    np.testing.assert_array_equal(start, np.eye(3))
    assert (motion, iterations, eps, mask, smoothing) == (cv2.MOTION_HOMOGRAPHY, 100, 0, None, 5)


# Figures


def test_masked_psnr_equals_a_plain_loop():
    a, b, mask = RNG.random((14, 19, 3)), RNG.random((14, 19, 3)), some_mask(14, 19)
    squares, count = 0.0, 0
    for y, x, c in np.ndindex(a.shape):
        if mask[y, x]:
            squares += (a[y, x, c] - b[y, x, c]) ** 2
            count += 1
    assert masked_psnr(a, b, mask) == pytest.approx(10 * math.log10(count / squares), rel=1e-12)
    assert masked_psnr(a, a, mask) == math.inf


def slow_masked_ssim(a, b, mask):
    a, b = a * mask[..., None], b * mask[..., None]
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = 0.01**2, 0.03**2
    means = []
    for channel in range(3):
        values = []
        for y in range(5, a.shape[0] - 5):
            for x in range(5, a.shape[1] - 5):
                if mask[y, x]:
                    p, q = (image[y - 5 : y + 6, x - 5 : x + 6, channel] for image in (a, b))
                    mp, mq = (weights * p).sum(), (weights * q).sum()
                    vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
                    covariance = (weights * (p - mp) * (q - mq)).sum()
                    values.append(
                        (2 * mp * mq + c1) * (2 * covariance + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
                    )
        means.append(np.mean(values))
    return np.mean(means)


@pytest.mark.parametrize('shape', [(18, 21), (11, 14)])
def test_masked_ssim_equals_a_plain_loop(shape):
    a = smooth(*shape)
    b = np.clip(a + 0.1 * RNG.normal(size=a.shape), 0, 1)
    mask = some_mask(*shape)
    assert masked_ssim(a, b, mask) == pytest.approx(slow_masked_ssim(a, b, mask), rel=1e-9)
    assert masked_ssim(a, b, np.ones(shape)) == pytest.approx(calculate_ssim(a, b, data_range=1.0), rel=1e-9)


# Images


def test_white_depends_on_the_dtype_or_data_range():
    restored, target = (np.rint(255 * image).astype(np.uint8) for image in moved_pair())
    eight = figures_of(restored, target)
    sixteen = figures_of(*(image.astype(np.uint16) * 257 for image in (restored, target)))
    real = figures_of(restored / 255, target / 255)
    assert eight == pytest.approx(real, rel=1e-9)
    assert eight == pytest.approx(sixteen, rel=1e-9)
    assert calculate_psnr_aligned(restored.astype(float), target.astype(float), 255.0) == eight[0]


def test_metrics_of_a_pair_share_one_alignment(monkeypatch):
    pairs = [moved_pair(), tuple(image[:100] for image in moved_pair())]
    apart = [figures_of(*pair) for pair in pairs]
    calls = []
    monkeypatch.setattr(aligned, 'align', lambda *pair: (calls.append(pair), align(*pair))[1])
    assert [figures_of(*pair) for pair in pairs] == apart and len(calls) == 2
    pairs[1][0][:] = pairs[1][1]  # in place: the same array, another image
    assert figures_of(*pairs[1])[0] > apart[1][0] and len(calls) == 3


def test_metrics_are_registered():
    for metric in (calculate_psnr_aligned, calculate_ssim_aligned, alignment_converges):
        assert METRIC_REGISTRY.get(metric.__name__) is metric


A = np.zeros((12, 13, 3), np.uint8)
REFUSED = {
    'other shape': (A[:, :12], A, r'restored: found uint8 of shape \(12, 12, 3\); allowed: .*\(12, 13, 3\)'),
    'other type': (A / 255, A, 'restored: found float64 .* the target, uint8'),
    'grey': (A[..., 0], A[..., 0], r'target: found shape \(12, 13\); allowed: \(H, W, 3\)'),
    'small': (A[:10], A[:10], 'allowed: .* at least 11 pixels a side'),
    'signed': (A.astype(int), A.astype(int), 'target: found int64; allowed: uint8'),
}


@pytest.mark.parametrize(('restored', 'target', 'message'), REFUSED.values(), ids=list(REFUSED))
def test_images_that_do_not_fit_raise(restored, target, message):
    with pytest.raises(ValueError, match=message):
        calculate_psnr_aligned(restored, target)


def test_examples_in_the_docstrings():
    failed, attempted = doctest.testmod(aligned)
    assert attempted >= 3 and not failed
