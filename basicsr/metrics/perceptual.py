"""LPIPS: the distance between two images' features in a recognition network."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from basicsr.metrics.metric import lower_is_better
from basicsr.metrics.psnr_ssim import prepare
from basicsr.utils.errors import UserError
from basicsr.utils.registry import METRIC_REGISTRY

# The network works in this thread alone: each thread that calls PyTorch starts as many threads as there are cores.
_thread = ThreadPoolExecutor(1, 'lpips')


@METRIC_REGISTRY.register()
@lower_is_better
def calculate_lpips(img1: np.ndarray, img2: np.ndarray, data_range: float | None = None) -> float:
    """LPIPS, version 0.1 with AlexNet (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual
    Metric", CVPR 2018); 0 for identical images, and lower is better.

    d = Σ over layers l of mean over pixels of Σ over channels c of w_lc·(y₁_lc − y₂_lc)², y being the features divided
    by their length. Computed on the CPU by the package `lpips`, which downloads AlexNet at the first use.

    Args:
        img1, img2: (H, W, 3) RGB of one shape and type.
        data_range: distance from black to white; by default that of an integer type.

    Raises ValueError on other images and ranges; UserError if the package is missing or cannot load its network.

    >>> calculate_lpips(image, image)  # doctest: +SKIP
    0.0
    """
    img1, img2, data_range = prepare(img1, img2, data_range=data_range)
    if img1.shape[2:] != (3,):
        raise ValueError(f'img1: found shape {img1.shape}; allowed: (H, W, 3)')
    images_BCHW = [
        torch.from_numpy(np.float32(image / data_range)).permute(2, 0, 1)[None] for image in (img1, img2)
    ]
    return _thread.submit(_distance, *images_BCHW).result()


@torch.no_grad()
def _distance(x_BCHW: Tensor, y_BCHW: Tensor) -> float:
    return float(_network()(x_BCHW, y_BCHW, normalize=True))  # takes [0, 1] instead of [-1, 1]


@functools.cache
def _network() -> Any:
    try:
        import lpips
    except ImportError:
        raise UserError('the package lpips is not installed; `pip install lpips` gets it') from None
    try:
        return lpips.LPIPS(net='alex', version='0.1', verbose=False).eval()
    except (OSError, RuntimeError) as error:
        raise UserError(f'lpips cannot load AlexNet: {error}') from error
