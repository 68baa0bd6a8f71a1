"""Linear light and sRGB, sensor noise, saturation, and JPEG compression."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from basicsr.data.blur.parameters import BlurParameters

Image = NDArray[np.uint8]  # sRGB, 0 to 255
Light = NDArray[np.float32]  # 1 is the level at which the sensor saturates
Floats = NDArray[np.float64]

HIGHLIGHT = 0.8  # linear light above which a photograph may have been clipped


def to_linear(image: Image) -> Floats:
    """Converts sRGB in [0, 255] to linear light in [0, 1] (IEC 61966-2-1)."""
    srgb = np.arange(256) / 255
    table = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return table[image]


def to_srgb(light: Floats) -> Floats:
    """Converts linear light, clipped to [0, 1], to sRGB in [0, 255], not rounded (IEC 61966-2-1)."""
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


LINEAR = to_linear(np.arange(256, dtype=np.uint8)).astype(np.float32)  # sRGB level → linear light
SCALED = (np.arange(256) / 255).astype(np.float32)  # sRGB level → sRGB in [0, 1]
_LEVELS = 65535  # entries of the table below, whose error is at most 0.03 levels of sRGB before rounding
_SRGB = to_srgb(np.arange(_LEVELS + 1) / _LEVELS).round().astype(np.uint8)


def develop(light: Light) -> Image:
    """Clips linear light at saturation and converts it to 8-bit sRGB."""
    return _SRGB[(light.clip(0, 1) * _LEVELS + 0.5).astype(np.uint16)]


def to_image(srgb: Light) -> Image:
    """Rounds sRGB in [0, 1] to 8 bits."""
    return (srgb * 255).round().clip(0, 255).astype(np.uint8)


def brighten_highlights(light: Light, gain: float) -> None:
    """Multiplies white by `gain`, in place; the factor falls to 1 at HIGHLIGHT, and stays 1 below it."""
    excess = ((light - HIGHLIGHT) / (1 - HIGHLIGHT)).clip(0, 1)
    light *= 1 + (gain - 1) * excess**2


def add_noise(light: Light, rng: np.random.Generator, shot: float, read: float) -> Light:
    """Adds Gaussian noise of variance shot²·light + read² (Foi et al., IEEE TIP 2008), with light clipped to [0, 1]."""
    if shot == read == 0:
        return light
    deviation: Light = np.sqrt(shot**2 * light.clip(0, 1) + read**2)
    return light + deviation * rng.standard_normal(light.shape, np.float32)


def compress(image: Image, quality: int) -> Image:
    """Encodes an RGB image as JPEG with `quality` 1 to 100, and decodes it."""
    encoded, data = cv2.imencode('.jpg', image[:, :, ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))
    assert encoded
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[:, :, ::-1], np.uint8)


class Sensor(NamedTuple):
    """How a camera records a scene: one long exposure, or the mean of video frames."""

    gain: float = 1.0
    highlight_gain: float = 1.0
    video_frames: int = (
        0  # 0: one long exposure; otherwise frames are averaged in sRGB, and the gains are unused
    )


def random_sensor(rng: np.random.Generator, parameters: BlurParameters) -> Sensor:
    if rng.random() < parameters.video:
        low, high = parameters.video_frames
        return Sensor(video_frames=int(rng.integers(low, high, endpoint=True)))
    gain, highlight_gain = rng.uniform(*parameters.gain), 1.0
    if rng.random() < parameters.highlights:
        highlight_gain = rng.uniform(*parameters.highlight_gain)
    return Sensor(gain, highlight_gain)
