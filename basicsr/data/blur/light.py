"""Linear light, sRGB, sensors and compression."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from basicsr.data.blur.parameters import BlurParameters

Image = NDArray[np.uint8]


Floats = NDArray[np.float64]


Light = NDArray[np.float32]  # linear; 1 is where the sensor saturates


HIGHLIGHT = 0.8  # linear light above which a photograph may have been cut off


def to_linear(image: Image) -> Floats:
    """sRGB in 0…255 → linear light in [0, 1] (IEC 61966-2-1)."""
    srgb = np.arange(256) / 255
    table = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return table[image]


def to_srgb(light: Floats) -> Floats:
    """Linear light in [0, 1] → sRGB in [0, 255], not rounded."""
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


_LIGHT = to_linear(np.arange(256, dtype=np.uint8)).astype(np.float32)


_SHOWN = (np.arange(256) / 255).astype(np.float32)


_LEVELS = 65535  # of a table: at most 0.03 of a level of sRGB off, before rounding


_SRGB = to_srgb(np.arange(_LEVELS + 1) / _LEVELS).round().astype(np.uint8)


def develop(light: Light) -> Image:
    """Saturation, the camera's curve, and rounding to 8 bits."""
    return _SRGB[(light.clip(0, 1) * _LEVELS + 0.5).astype(np.uint16)]


def show(picture: Light) -> Image:
    """Of what has the camera's curve already: rounded to 8 bits."""
    return (picture * 255).round().clip(0, 255).astype(np.uint8)


def brighten_highlights(light: Light, gain: float) -> None:
    """In place: what is white becomes `gain` times as bright; what is darker than HIGHLIGHT stays."""
    excess = ((light - HIGHLIGHT) / (1 - HIGHLIGHT)).clip(0, 1)
    light *= 1 + (gain - 1) * excess**2


def add_noise(light: Light, rng: np.random.Generator, shot: float, read: float) -> Light:
    """Gaussian noise of variance shot²·light + read²; light above saturation has no more than at saturation."""
    if shot == read == 0:
        return light
    deviation = np.sqrt(shot**2 * light.clip(0, 1) + read**2)
    return light + deviation * rng.standard_normal(light.shape, np.float32)


def compress(image: Image, quality: int) -> Image:
    """What is left of an image after JPEG."""
    encoded, data = cv2.imencode('.jpg', image[:, :, ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))
    assert encoded
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1])


class Sensor(NamedTuple):
    """What becomes of the light of a scene. Frames of a video are averaged as they are shown."""

    gain: float = 1.0
    highlight_gain: float = 1.0
    video_frames: int = 0  # 0: no video, one long exposure


def random_sensor(rng: np.random.Generator, parameters: BlurParameters) -> Sensor:
    if rng.random() < parameters.video:
        low, high = parameters.video_frames
        return Sensor(video_frames=int(rng.integers(low, high, endpoint=True)))
    gain, highlight_gain = rng.uniform(*parameters.gain), 1.0
    if rng.random() < parameters.highlights:
        highlight_gain = rng.uniform(*parameters.highlight_gain)
    return Sensor(gain, highlight_gain)
