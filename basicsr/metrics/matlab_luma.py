"""PSNR and SSIM as deraining papers report them: of MATLAB's luma, rounded to integers."""

from __future__ import annotations

import numpy as np

from basicsr.metrics.psnr_ssim import LUMA_OFFSET, LUMA_WEIGHTS, calculate_psnr, calculate_ssim
from basicsr.utils.registry import METRIC_REGISTRY

_THOUSANDTHS = np.array([round(1000 * weight) for weight in LUMA_WEIGHTS])


def matlab_luma(image_HWC: np.ndarray) -> np.ndarray:
    """The Y of MATLAB's `rgb2ycbcr` for an RGB image of uint8, (H, W, 3) → (H, W) uint8: luma of ITU-R BT.601, from 16
    to 235, rounded half up. Raises ValueError on other images.

    >>> matlab_luma(np.array([[[0, 0, 0], [255, 0, 0], [255, 255, 255]]], np.uint8)).tolist()
    [[16, 81, 235]]
    """
    if image_HWC.dtype != np.uint8 or image_HWC.shape[2:] != (3,):
        raise ValueError(f'img1: found {image_HWC.dtype} of shape {image_HWC.shape}; allowed: uint8, (H, W, 3)')
    # In integers, as sums of floats would decide at random how exact halves are rounded.
    above_black = (image_HWC.astype(np.int64) @ _THOUSANDTHS + 127_500) // 255_000
    return (above_black + int(LUMA_OFFSET)).astype(np.uint8)


@METRIC_REGISTRY.register()
def calculate_psnr_y(img1: np.ndarray, img2: np.ndarray, data_range: float = 255) -> float:
    """PSNR in dB of `matlab_luma`, 10·log10(255² / mean((Y₁ − Y₂)²)); inf for identical luma. Rounding both
    lumas adds about 1/6 to the mean square error of `calculate_psnr(…, test_y_channel=True)`: 0.09 dB at 39 dB.

    Args:
        img1, img2: (H, W, 3) RGB of one shape, uint8.
        data_range: 255; nothing else fits uint8.

    Raises ValueError on other images and ranges.

    >>> black = np.zeros((16, 16, 3), np.uint8)
    >>> round(calculate_psnr_y(black, black + 255), 4)  # 20·log10(255 / 219)
    1.3219
    """
    return calculate_psnr(*_lumas(img1, img2, data_range))


@METRIC_REGISTRY.register()
def calculate_ssim_y(img1: np.ndarray, img2: np.ndarray, data_range: float = 255) -> float:
    """SSIM of Wang et al. (IEEE TIP 2004), `calculate_ssim`, of `matlab_luma`.

    Arguments and errors as of `calculate_psnr_y`; ValueError also if a side has fewer than 11 pixels.

    >>> black = np.zeros((16, 16, 3), np.uint8)
    >>> round(calculate_ssim_y(black, black + 255), 4)  # (2·16·235 + 6.5025) / (16² + 235² + 6.5025)
    0.1356
    """
    return calculate_ssim(*_lumas(img1, img2, data_range))


def _lumas(img1: np.ndarray, img2: np.ndarray, data_range: float) -> tuple[np.ndarray, np.ndarray]:
    lumas = matlab_luma(img1), matlab_luma(img2)
    if data_range != 255:
        raise ValueError(f'data_range: found {data_range}; allowed: 255, for uint8')
    return lumas
