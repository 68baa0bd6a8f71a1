"""PSNR and SSIM as RealBlur's published figures are measured: after aligning the result to the target.

The two photographs of a RealBlur pair (Rim et al., ECCV 2020) come from two cameras, slightly shifted and differently
exposed; a restored image has the brightness and position of the blurred one. So it is scaled to the brightness of the
target, warped onto it, and masked where the warp reached beyond its edges:

1. z ← z·Σxz / Σz² (least squares), for the restored image z and the target x, over all pixels and colours.
2. The homography W maps a place in the target to the same place in z. ECC (Evangelidis and Psarakis, IEEE TPAMI 2008)
   finds it between the grey images, starting from the identity: always 100 iterations, on images smoothed by a Gaussian
   of 5 pixels.
3. z'(p) = z(W·p), cubic interpolation, reflected beyond the edges; neither clamped nor rounded again. The mask at p is
   1 if the pixel nearest to W·p lies in z, else 0.

If the alignment does not converge, as happens between images with little in common, z stays in place: only step 1 is
applied, the mask is 1 everywhere, and `converged` is False.

Images are (H, W, 3), RGB, of one shape and dtype, at least 11 pixels a side, else ValueError. `data_range` is the
distance from black to white; by default 255 for uint8, 65535 for uint16, 1 for floats. Everything is computed in
float64, except ECC and the warp: float32.
"""

from __future__ import annotations

import hashlib
import math
import threading
from typing import NamedTuple

import cv2
import numpy as np
from skimage.metrics import structural_similarity

from basicsr.metrics.psnr_ssim import K1, K2, RADIUS, SIGMA
from basicsr.utils.registry import METRIC_REGISTRY

ITERATIONS = 100
SMOOTHING = 5  # pixels: the Gaussian window on the images that ECC compares
BORDER = RADIUS  # pixels along the edges without SSIM: its window would leave the image


class Alignment(NamedTuple):
    """`restored`: (H, W, 3), warped and scaled to the target. `mask`: (H, W), 1 where pixels are measured, else 0.
    `scale`: the factor of step 1. `homography`: W, (3, 3), in pixels."""

    restored: np.ndarray
    mask: np.ndarray
    scale: float
    homography: np.ndarray
    converged: bool


_last = threading.local()  # .pair and .aligned: the pair that this thread measured last


@METRIC_REGISTRY.register()
def calculate_psnr_aligned(img1: np.ndarray, img2: np.ndarray, data_range: float | None = None) -> float:
    """PSNR in dB of `img1` after alignment to `img2` (see the top of the file); inf for identical images.

    >>> rng = np.random.default_rng(0)
    >>> target = cv2.resize(rng.random((16, 16, 3)), (64, 64))
    >>> calculate_psnr_aligned(target / 2, target) > 60  # darker, and nothing else
    True
    """
    aligned, target = _aligned_pair(img1, img2, data_range)
    return masked_psnr(aligned.restored, target, aligned.mask)


@METRIC_REGISTRY.register()
def calculate_ssim_aligned(img1: np.ndarray, img2: np.ndarray, data_range: float | None = None) -> float:
    """SSIM of `img1` after alignment to `img2` (see the top of the file)."""
    aligned, target = _aligned_pair(img1, img2, data_range)
    return masked_ssim(aligned.restored, target, aligned.mask)


@METRIC_REGISTRY.register()
def alignment_converges(img1: np.ndarray, img2: np.ndarray, data_range: float | None = None) -> bool:
    """Whether the two metrics above could align `img1` to `img2`."""
    return _aligned_pair(img1, img2, data_range)[0].converged


def _aligned_pair(img1: np.ndarray, img2: np.ndarray, data_range: float | None) -> tuple[Alignment, np.ndarray]:
    """The alignment and the target. The metrics of one pair share one alignment, which takes nearly all their time."""
    restored, target = _prepare(img1, img2, data_range)
    hashes = [hashlib.blake2b(image.tobytes()).digest() for image in (img1, img2)]
    pair = *hashes, img1.shape, img1.dtype, data_range
    if getattr(_last, 'pair', None) != pair:
        _last.pair, _last.aligned = pair, align(restored, target)
    return _last.aligned, target


def align(restored: np.ndarray, target: np.ndarray) -> Alignment:
    """Steps 1 to 3 at the top of the file, for float64 images with white at 1, as all functions below. A warp that
    leaves no pixel to measure counts as not converged."""
    scale = brightness_scale(restored, target)
    restored = restored * scale
    homography = find_homography(restored, target)
    if homography is not None:
        warped, mask = _warp(restored, homography)
        if _inside(mask).any():
            return Alignment(warped, mask, scale, homography, True)
    return Alignment(restored, np.ones(restored.shape[:2]), scale, np.eye(3), False)


def brightness_scale(restored: np.ndarray, target: np.ndarray) -> float:
    """Σxz / Σz²: the factor that brings the restored image z nearest to the target x; 1 if z is black."""
    energy = float(np.vdot(restored, restored))
    return float(np.vdot(restored, target)) / energy if energy > 0 else 1.0


def find_homography(restored: np.ndarray, target: np.ndarray) -> np.ndarray | None:
    """The homography (3, 3) that maps (x, y, 1) in the target, in pixels, x to the right and y down, to the restored
    image; None if ECC does not converge. It does not depend on brightness and contrast."""
    # OpenCV's first image is the fixed one, onto which the second is warped.
    template, moved = (cv2.cvtColor(np.float32(image), cv2.COLOR_RGB2GRAY) for image in (target, restored))
    # An eps of 0 never stops early.
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, ITERATIONS, 0.0)
    try:
        _, homography = cv2.findTransformECC(  # type: ignore[call-overload]
            template, moved, np.eye(3, dtype=np.float32), cv2.MOTION_HOMOGRAPHY, criteria, None, SMOOTHING
        )
    except cv2.error as error:
        if error.code != cv2.Error.StsNoConv:
            raise
        return None
    return np.float64(homography) if np.isfinite(homography).all() else None


def _warp(restored: np.ndarray, homography: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The warped image, and its mask."""
    height, width = restored.shape[:2]

    def warp(image: np.ndarray, interpolation: int, border: int) -> np.ndarray:
        flags = interpolation | cv2.WARP_INVERSE_MAP  # the homography maps result to source
        # Single precision: OpenCV 5.0 does not reflect float64 images.
        warped = cv2.warpPerspective(
            np.float32(image), homography, (width, height), flags=flags, borderMode=border, borderValue=0
        )
        return np.float64(warped)

    return (
        warp(restored, cv2.INTER_CUBIC, cv2.BORDER_REFLECT),
        warp(np.ones((height, width)), cv2.INTER_NEAREST, cv2.BORDER_CONSTANT),
    )


def masked_psnr(restored: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    """10·log10(1 / (Σ(m·(z − x))² / Σm)) in dB, the sums over pixels and colours; inf for identical images.
    `mask` is (H, W), 0 or 1, and not 0 everywhere."""
    difference = (restored - target) * mask[..., None]
    mse = float(np.vdot(difference, difference)) / (float(mask.sum()) * difference.shape[2])
    return math.inf if mse == 0 else -10 * math.log10(mse)


def masked_ssim(restored: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    """SSIM of each colour, in the window of `calculate_ssim`, between the images with black where `mask` is 0; then its
    mean where `mask` is 1, without 5 pixels along each edge. `mask` as for `masked_psnr`."""
    _, similarity = structural_similarity(
        restored * mask[..., None],
        target * mask[..., None],
        channel_axis=-1,
        gaussian_weights=True,
        sigma=SIGMA,
        use_sample_covariance=False,
        data_range=1.0,
        K1=K1,
        K2=K2,
        full=True,
    )
    weights = _inside(mask)
    return float((_inside(similarity) * weights[..., None]).sum() / (weights.sum() * similarity.shape[2]))


def _inside(plane: np.ndarray) -> np.ndarray:
    return plane[BORDER:-BORDER, BORDER:-BORDER]


def _prepare(
    restored: np.ndarray, target: np.ndarray, data_range: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Checks both images and returns them as float64, black at 0 and white at 1."""
    least = 2 * BORDER + 1
    if restored.shape != target.shape or restored.dtype != target.dtype:
        raise ValueError(
            f'restored: found {restored.dtype} of shape {restored.shape}; '
            f'allowed: as the target, {target.dtype} of shape {target.shape}'
        )
    if target.ndim != 3 or target.shape[2] != 3 or min(target.shape[:2]) < least:
        raise ValueError(
            f'target: found shape {target.shape}; allowed: (H, W, 3), at least {least} pixels a side'
        )
    is_integer = target.dtype in (np.uint8, np.uint16)
    if not is_integer and not np.issubdtype(target.dtype, np.floating):
        raise ValueError(f'target: found {target.dtype}; allowed: uint8, uint16 or a float type')
    white = data_range or (float(np.iinfo(target.dtype).max) if is_integer else 1.0)
    if white == 1:
        return restored.astype(np.float64, copy=False), target.astype(np.float64, copy=False)
    return restored.astype(np.float64) / white, target.astype(np.float64) / white
