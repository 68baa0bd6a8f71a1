"""Uniform motion blur: one kernel for the whole image."""

from __future__ import annotations

import cv2
import numpy as np

from basicsr.data.blur.light import Floats, Image, to_linear, to_srgb
from basicsr.data.blur.motion import random_trajectory


def random_kernel(rng: np.random.Generator, length: float) -> Floats:
    """Draws a camera-shake kernel.

    Args:
        length: length of the camera's path during the exposure, in pixels; 0 means no blur.

    Returns:
        (k, k), k odd: nonnegative, with sum 1 and its centroid at the middle pixel.
    """
    return rasterise(random_trajectory(rng, length))


def rasterise(positions: Floats) -> Floats:
    """Accumulates the positions of a moving point into a kernel.

    Each position adds the same weight, split bilinearly among the four nearest pixels. This preserves the centroid, so
    positions with mean (0, 0) give a kernel that does not shift the image.

    Args:
        positions: (n, 2), (y, x) offsets from the kernel's middle, in pixels.

    Returns:
        (k, k), k odd, with sum 1.
    """
    radius = int(np.ceil(np.abs(positions).max()))
    size = 2 * radius + 1
    corner = np.floor(positions).astype(int)
    fraction = positions - corner
    kernel = np.zeros((size + 1, size + 1))  # room for the far neighbour of a position on the edge, of weight 0
    for dy in (0, 1):
        for dx in (0, 1):
            weight = np.abs(1 - dy - fraction[:, 0]) * np.abs(1 - dx - fraction[:, 1])
            np.add.at(kernel, (corner[:, 0] + radius + dy, corner[:, 1] + radius + dx), weight)
    return kernel[:size, :size] / len(positions)


def blur(image: Image, kernel: Floats, noise: float, rng: np.random.Generator) -> Image:
    """Convolves an image in linear light, then adds noise to its sRGB values.

    Args:
        image: (H, W, C), sRGB; reflected beyond its border.
        kernel: (k, k), k odd.
        noise: standard deviation of the Gaussian noise, in levels of 0 to 255.
    """
    # filter2D computes a correlation: flip the kernel to get a convolution.
    blurred = cv2.filter2D(to_linear(image), -1, kernel[::-1, ::-1].copy(), borderType=cv2.BORDER_REFLECT)
    # OpenCV drops a channel axis of length 1.
    srgb = to_srgb(np.asarray(blurred, np.float64).reshape(image.shape))
    if noise:
        srgb = srgb + noise * rng.standard_normal(image.shape)
    return srgb.round().clip(0, 255).astype(np.uint8)
