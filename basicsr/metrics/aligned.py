"""PSNR and SSIM as RealBlur's published figures are measured: after alignment of the result to the target.

The two photographs of a RealBlur pair (Rim et al., ECCV 2020) are of two cameras, a little shifted and differently
exposed, and a restored image is as bright and lies where the blurred one did. So it is first made as bright as the
target and warped onto it, and what the warp has brought in from beyond its edges is masked out:

1. z ← z·Σxz / Σz², of the restored image z and the target x, over all pixels and colours: least squares.
2. The homography W that maps a place in the target to the same place in z, by ECC (Evangelidis and Psarakis,
   IEEE TPAMI 2008) between the grey images of both, from the identity: 100 iterations whatever they gain, of images
   smoothed by a Gaussian of 5 pixels.
3. z'(p) = z(W·p), cubic, beyond the edges reflected; not clamped or rounded again. The mask of a place p is 1 if the
   pixel nearest to W·p lies in z, else 0.

An alignment that does not converge, as happens between images that have little in common, leaves z where it is: only
1. is applied, with a mask that is 1 everywhere, and `converged` is False, for the caller to count.

Images are (H, W, 3), RGB, uint8 or uint16 (255 or 65535 is white) or of a float type in [0, 1]; both of one shape and
type, at least 11 pixels a side, else ValueError. All is computed in float64, but for ECC and the warp: float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from skimage.metrics import structural_similarity

from basicsr.metrics.psnr_ssim import K1, K2, RADIUS, SIGMA

ITERATIONS = 100
SMOOTHING = 5  # pixels, of the images that ECC compares
BORDER = RADIUS  # of the SSIM: where its window does not lie within the image


class Alignment(NamedTuple):
    """`restored` (H, W, 3) in the place and brightness of the target; `mask` (H, W), 1 where it is measured, else 0;
    `scale` is the factor of the brightness, `homography` (3, 3) the W above, in pixels."""

    restored: np.ndarray
    mask: np.ndarray
    scale: float
    homography: np.ndarray
    converged: bool


class AlignedFigures(NamedTuple):
    """PSNR in dB; whether the alignment converged."""

    psnr: float
    ssim: float
    converged: bool


def calculate_aligned(restored: np.ndarray, target: np.ndarray) -> AlignedFigures:
    """Both figures of a restored image against its target (see the top of the file).

    >>> rng = np.random.default_rng(0)
    >>> target = cv2.resize(rng.random((16, 16, 3)), (64, 64))
    >>> psnr, ssim, converged = calculate_aligned(target / 2, target)  # darker, and nothing else
    >>> psnr > 60, round(ssim, 3), converged
    (True, 1.0, True)
    """
    restored, target = _prepare(restored, target)
    aligned = align(restored, target)
    return AlignedFigures(
        masked_psnr(aligned.restored, target, aligned.mask),
        masked_ssim(aligned.restored, target, aligned.mask),
        aligned.converged,
    )


def align(restored: np.ndarray, target: np.ndarray) -> Alignment:
    """Steps 1 to 3 at the top of the file. An image warped so far that nothing of it is left to measure counts as not
    converged, too."""
    restored, target = _prepare(restored, target)
    scale = brightness_scale(restored, target)
    restored = restored * scale
    homography = find_homography(restored, target)
    if homography is not None:
        warped, mask = _warp(restored, homography)
        if _inside(mask).any():
            return Alignment(warped, mask, scale, homography, True)
    return Alignment(restored, np.ones(restored.shape[:2]), scale, np.eye(3), False)


def brightness_scale(restored: np.ndarray, target: np.ndarray) -> float:
    """Σxz / Σz²: the factor for the restored image z that brings it nearest to the target x. 1 if z is black."""
    restored, target = _prepare(restored, target)
    energy = float(np.vdot(restored, restored))
    return float(np.vdot(restored, target)) / energy if energy > 0 else 1.0


def find_homography(restored: np.ndarray, target: np.ndarray) -> np.ndarray | None:
    """The homography (3, 3) from places in the target to those in the restored image, (x, y, 1) in pixels, x to the
    right and y down; None if ECC does not converge. It is indifferent to brightness and contrast."""
    restored, target = _prepare(restored, target)
    # The target comes first: it stands still, and the other is warped onto it.
    template, moved = (cv2.cvtColor(np.float32(image), cv2.COLOR_RGB2GRAY) for image in (target, restored))
    # With an eps of 0 no gain is too small, and all iterations are done.
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, ITERATIONS, 0.0)
    try:
        _, homography = cv2.findTransformECC(
            template, moved, np.eye(3, dtype=np.float32), cv2.MOTION_HOMOGRAPHY, criteria, None, SMOOTHING
        )
    except cv2.error as error:
        if error.code != cv2.Error.StsNoConv:
            raise
        return None
    return np.float64(homography) if np.isfinite(homography).all() else None


def _warp(restored: np.ndarray, homography: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image, and the mask of what lay within it."""
    height, width = restored.shape[:2]

    def warp(image: np.ndarray, interpolation: int, border: int) -> np.ndarray:
        flags = interpolation | cv2.WARP_INVERSE_MAP  # the homography leads from the result to the image
        # Not in double precision, in which OpenCV 5.0 does not reflect.
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
    restored, target = _prepare(restored, target)
    difference = (restored - target) * mask[..., None]
    mse = float(np.vdot(difference, difference)) / (float(mask.sum()) * difference.shape[2])
    return math.inf if mse == 0 else -10 * math.log10(mse)


def masked_ssim(restored: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    """SSIM of each colour by itself, in the window of `calculate_ssim`, between the images with black where `mask` is
    0; then its mean over the places where `mask` is 1, without 5 pixels along each edge. `mask` as of `masked_psnr`.
    """
    restored, target = _prepare(restored, target)
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


def _prepare(restored: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both, checked, as float64; integers in [0, 1]."""
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
    if target.dtype in (np.uint8, np.uint16):
        white = np.iinfo(target.dtype).max
        return restored / white, target / white
    if not np.issubdtype(target.dtype, np.floating):
        raise ValueError(f'target: found {target.dtype}; allowed: uint8, uint16 or a float type')
    return restored.astype(np.float64, copy=False), target.astype(np.float64, copy=False)
