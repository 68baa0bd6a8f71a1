"""SSIM in a uniform window and MAE, as papers on defocus deblurring report them.

Images are as in `basicsr.metrics.psnr_ssim`: (H, W) or (H, W, C), the range that of the type or `data_range`.
"""

from __future__ import annotations

import numpy as np
from skimage.metrics import structural_similarity

from basicsr.metrics.metric import lower_is_better
from basicsr.metrics.psnr_ssim import check_window, prepare
from basicsr.utils.registry import METRIC_REGISTRY

WINDOW = 7  # scikit-image's default


@METRIC_REGISTRY.register()
def calculate_ssim_uniform(img1: np.ndarray, img2: np.ndarray, data_range: float | None = None) -> float:
    """SSIM of each channel in a window of 7×7 pixels of equal weights, then the mean over the channels.

    The formula is that of `calculate_ssim`, with variances and covariance divided by 48 instead of 49 (as of a sample);
    it is averaged where the whole window lies within the image. This is scikit-image's `structural_similarity` with
    its default values.

    Args:
        img1, img2: images of one shape and type, at least 7 pixels a side.
        data_range: distance from black to white; by default that of an integer type.

    Raises ValueError on other images and ranges.

    >>> black = np.zeros((16, 16, 3), np.uint8)
    >>> round(calculate_ssim_uniform(black, black + 16), 4)  # 6.5025 / (16² + 6.5025)
    0.0248
    """
    img1, img2, data_range = prepare(img1, img2, data_range=data_range)
    check_window(img1, WINDOW)
    channel_axis = -1 if img1.ndim == 3 else None
    return float(structural_similarity(img1, img2, channel_axis=channel_axis, data_range=data_range))


@METRIC_REGISTRY.register()
@lower_is_better
def calculate_mae(img1: np.ndarray, img2: np.ndarray, data_range: float | None = None) -> float:
    """Mean absolute error, mean(|img1 − img2|) / L: 0 for identical images, 1 for black against white.

    Arguments and errors as of `calculate_ssim_uniform`, for images of any size; L is `data_range`.

    >>> black = np.zeros((16, 16, 3), np.uint8)
    >>> calculate_mae(black, black + 51)
    0.2
    """
    img1, img2, data_range = prepare(img1, img2, data_range=data_range)
    return float(np.mean(np.abs(img1 - img2)) / data_range)
