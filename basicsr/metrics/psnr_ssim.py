"""PSNR and the two SSIMs in use: of each channel, and of the colour image as a volume (the paper's).

Images are numpy arrays, (H, W) or (H, W, C) or, with `input_order='CHW'`, (C, H, W); RGB order. The range is
that of the type (uint8: 255, uint16: 65535) or `data_range`, which floats need: it is never guessed from the
content. Everything is computed in float64. Two images of different shape or type are a ValueError.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from basicsr.utils.registry import METRIC_REGISTRY

InputOrder = Literal['HWC', 'CHW']

# ITU-R BT.601 studio swing for RGB in [0, 1]: luma runs from 16 to 235 of 255
LUMA_WEIGHTS = (65.481, 128.553, 24.966)
LUMA_OFFSET = 16.0

SIGMA, RADIUS = 1.5, 5  # of the Gaussian window of the SSIMs: 11 pixels wide
K1, K2 = 0.01, 0.03


def _range_of(dtype: np.dtype, data_range: float | None) -> float:
    is_integer = dtype in (np.uint8, np.uint16)
    if not is_integer and not np.issubdtype(dtype, np.floating):
        raise ValueError(f'img1: found {dtype}; allowed: uint8, uint16 or a float type')
    if data_range is None:
        if not is_integer:
            raise ValueError(f'data_range: found None for {dtype}; allowed: the distance from black to white')
        return float(np.iinfo(dtype).max)
    if not 0 < data_range < math.inf:
        raise ValueError(f'data_range: found {data_range}; allowed: a finite number above 0')
    return float(data_range)


def _luma(img_HWC: np.ndarray, data_range: float) -> np.ndarray:
    """As MATLAB's rgb2ycbcr on floats: not rounded to integers."""
    return (img_HWC @ np.array(LUMA_WEIGHTS) + LUMA_OFFSET * data_range) / 255


def prepare(
    img1: np.ndarray,
    img2: np.ndarray,
    crop_border: int = 0,
    test_y_channel: bool = False,
    data_range: float | None = None,
    input_order: InputOrder = 'HWC',
) -> tuple[np.ndarray, np.ndarray, float]:
    """Both images, checked and cropped, as float64 (H, W) or (H, W, C), and their range. Arguments and errors as of
    `calculate_psnr`."""
    if img1.shape != img2.shape or img1.dtype != img2.dtype:
        raise ValueError(
            f'img2: found {img2.dtype} of shape {img2.shape}; '
            f'allowed: as img1, {img1.dtype} of shape {img1.shape}'
        )
    if img1.ndim not in (2, 3):
        raise ValueError(f'img1: found shape {img1.shape}; allowed: two or three axes')
    if input_order not in ('HWC', 'CHW'):
        raise ValueError(f'input_order: found {input_order!r}; allowed: HWC, CHW')
    data_range = _range_of(img1.dtype, data_range)
    if input_order == 'CHW' and img1.ndim == 3:
        img1, img2 = (img.transpose(1, 2, 0) for img in (img1, img2))
    height, width = img1.shape[:2]
    if crop_border < 0 or 2 * crop_border >= min(height, width):
        raise ValueError(
            f'crop_border: found {crop_border}; allowed: 0 to less than half of {width}×{height} pixels'
        )
    if test_y_channel and (img1.ndim == 2 or img1.shape[2] != 3):
        raise ValueError(f'test_y_channel: found images of shape {img1.shape}; allowed: 3 channels')
    inside = np.s_[crop_border : height - crop_border, crop_border : width - crop_border]
    img1, img2 = (img[inside].astype(np.float64) for img in (img1, img2))
    if test_y_channel:
        img1, img2 = (_luma(img, data_range) for img in (img1, img2))
    return img1, img2, data_range


def check_window(img: np.ndarray, width: int = 2 * RADIUS + 1) -> None:
    if min(img.shape[:2]) < width:
        raise ValueError(
            f'img1: found {img.shape[1]}×{img.shape[0]} pixels after the crop; '
            f'allowed: at least {width}, the width of the window'
        )


@METRIC_REGISTRY.register()
def calculate_psnr(
    img1: np.ndarray,
    img2: np.ndarray,
    crop_border: int = 0,
    test_y_channel: bool = False,
    data_range: float | None = None,
    input_order: InputOrder = 'HWC',
) -> float:
    """Peak signal-to-noise ratio in dB, 10·log10(L² / mean((img1 − img2)²)); inf for identical images.

    Args:
        img1, img2: images of one shape and type (see the top of the file).
        crop_border: pixels to leave out along every edge.
        test_y_channel: compare the luma of RGB images: BT.601, 16 … 235 of 255, as MATLAB's rgb2ycbcr gives
            for floats (not rounded).
        data_range: L, the distance from black to white; by default that of an integer type.
        input_order: where the channels of an image with three axes are.

    Raises ValueError if the images do not fit each other or an argument.

    >>> black = np.zeros((16, 16, 3), np.uint8)
    >>> round(calculate_psnr(black, black + 16), 4)  # 20·log10(255 / 16)
    24.0484
    >>> calculate_psnr(black, black)
    inf
    """
    img1, img2, data_range = prepare(img1, img2, crop_border, test_y_channel, data_range, input_order)
    mse = float(np.mean((img1 - img2) ** 2))
    return math.inf if mse == 0 else 20 * math.log10(data_range) - 10 * math.log10(mse)


@METRIC_REGISTRY.register()
def calculate_ssim(
    img1: np.ndarray,
    img2: np.ndarray,
    crop_border: int = 0,
    test_y_channel: bool = False,
    data_range: float | None = None,
    input_order: InputOrder = 'HWC',
) -> float:
    """Structural similarity (Wang et al., IEEE TIP 2004) of each channel, then the mean over the channels.

    SSIM = (2·μ₁μ₂ + C₁)(2·σ₁₂ + C₂) / ((μ₁² + μ₂² + C₁)(σ₁² + σ₂² + C₂)) in a Gaussian window of 11×11 pixels,
    sigma 1.5, C = (0.01·L)², (0.03·L)². It is averaged where the whole window lies within the image, so
    nothing depends on a padding. This is scikit-image's `structural_similarity` with `gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False`.

    Arguments as of `calculate_psnr`; ValueError also if fewer than 11 pixels are left along a side.

    >>> black = np.zeros((16, 16, 3), np.uint8)
    >>> round(calculate_ssim(black, black + 16), 4)  # 6.5025 / (16² + 6.5025)
    0.0248
    """
    img1, img2, data_range = prepare(img1, img2, crop_border, test_y_channel, data_range, input_order)
    check_window(img1)
    similarity = structural_similarity(
        img1,
        img2,
        channel_axis=-1 if img1.ndim == 3 else None,
        gaussian_weights=True,
        sigma=SIGMA,
        use_sample_covariance=False,
        data_range=data_range,
        K1=K1,
        K2=K2,
    )
    return float(similarity)


def _window_mean(volume: np.ndarray) -> np.ndarray:
    """Gaussian mean around every element along all axes; the border values continue outwards."""
    return gaussian_filter(volume, SIGMA, mode='nearest', truncate=RADIUS / SIGMA)


@METRIC_REGISTRY.register()
def calculate_ssim_3d(
    img1: np.ndarray,
    img2: np.ndarray,
    crop_border: int = 0,
    test_y_channel: bool = False,
    data_range: float | None = None,
    input_order: InputOrder = 'HWC',
) -> float:
    """Structural similarity of the colour image as a volume: what MATLAB's `ssim` does with an RGB array, and
    the SSIM that the deblurring papers report. It is higher than `calculate_ssim`: never compare the two.

    The formula is that of `calculate_ssim`, but the window is an 11×11×11 Gaussian over (H, W, C), border
    values are replicated along all three axes (for the channels, too), and the mean is over all voxels.

    Arguments and errors as of `calculate_ssim`.

    >>> black = np.zeros((16, 16, 3), np.uint8)
    >>> round(calculate_ssim_3d(black, black + 16), 4)
    0.0248
    """
    img1, img2, data_range = prepare(img1, img2, crop_border, test_y_channel, data_range, input_order)
    check_window(img1)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean1, mean2 = _window_mean(img1), _window_mean(img2)
    mean_product, mean_squares = mean1 * mean2, mean1**2 + mean2**2
    covariance = _window_mean(img1 * img2) - mean_product
    variances = _window_mean(img1**2 + img2**2) - mean_squares  # only their sum is needed
    similarity = (2 * mean_product + c1) * (2 * covariance + c2) / ((mean_squares + c1) * (variances + c2))
    return float(similarity.mean())
