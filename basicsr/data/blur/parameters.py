"""The parameters of synthetic motion blur."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any


def _range(low: float, high: float, least: float, most: float) -> Any:
    return field(default=(low, high), metadata={'allowed': (least, most)})


def _chance(value: float) -> Any:
    return field(default=value, metadata={'allowed': (0.0, 1.0)})


@dataclass
class BlurParameters:
    """Parameters of synthetic blur. A value is drawn uniformly from each range [lo, hi] for every image.

    Lengths are in % of the longer side of the image, as a hand shakes by an angle: frames of 1280 and of 320 pixels
    from the same camera then have the same blur. Raises ValueError.

    Args:
        shake: distance that the image travels in one exposure, along its path and on average over its pixels, in %;
            [0, 0]: a camera at rest. The camera never turns by more than 0.2 radians.
        exposure: simulated exposure time; longer paths change direction more often (Boracchi & Foi 2012: 1 is their
            unit; below 0.3 paths are almost straight).
        fov: horizontal field of view, in degrees; blur varies more across wide fields.
        roll: rotation about the optical axis relative to the other two; its blur grows with the distance from the
            centre (Whyte et al., IJCV 2012).
        depth: distance to the scene; at 1 translation blurs as much as rotation, far away only rotation blurs.
        scale: factor to resize the photograph by first: below 1 hides its own blur, noise and compression; above 1
            makes it as soft as video frames.
        foreground: chance of an object that moves in front of the scene.
        foreground_size: approximate diameter of the object, in %.
        foreground_shift: distance that the object travels in one exposure, in addition to the camera's motion, in %.
        gain: brightness, before the sensor saturates.
        highlights: chance that white areas of the photograph were brighter than white, and leave streaks (Rim et al.,
            ECCV 2022).
        highlight_gain: factor by which they were brighter than white.
        shot_noise: standard deviation of signal-dependent noise at saturation, as a fraction of full scale; it grows
            with the square root of light (Foi et al., IEEE TIP 2008).
        read_noise: standard deviation of signal-independent noise, as a fraction of full scale in linear light.
        video: chance that a pair is made as in GoPro: the mean of a few video frames in sRGB instead of linear light,
            without saturation, highlights and noise (Nah et al., CVPR 2017).
        video_frames: number of frames.
        jpeg: chance that the blurred image is compressed.
        jpeg_quality: JPEG quality, 1 to 100.
    """

    shake: tuple[float, float] = _range(0, 6, 0, 50)
    exposure: tuple[float, float] = _range(0.3, 3, 0.01, 20)
    fov: tuple[float, float] = _range(40, 80, 1, 120)
    roll: tuple[float, float] = _range(0, 1, 0, 100)
    depth: tuple[float, float] = _range(1, 10, 0.01, 1e6)
    scale: tuple[float, float] = _range(0.5, 1, 0.05, 4)
    foreground: float = _chance(0.3)
    foreground_size: tuple[float, float] = _range(8, 30, 0.1, 100)
    foreground_shift: tuple[float, float] = _range(0, 3, 0, 50)
    gain: tuple[float, float] = _range(0.8, 1.2, 0.01, 100)
    highlights: float = _chance(0.3)
    highlight_gain: tuple[float, float] = _range(1, 8, 1, 1000)
    shot_noise: tuple[float, float] = _range(0, 0.015, 0, 1)
    read_noise: tuple[float, float] = _range(0, 0.002, 0, 1)
    video: float = _chance(0.5)
    video_frames: tuple[int, int] = _range(7, 13, 1, 1000)
    jpeg: float = _chance(0.2)
    jpeg_quality: tuple[int, int] = _range(70, 98, 1, 100)

    def __post_init__(self) -> None:
        for option in fields(BlurParameters):
            value = getattr(self, option.name)
            least, most = option.metadata['allowed']
            if option.type == 'float':
                valid, allowed = _ascends(least, value, most), f'a chance from {least:g} to {most:g}'
            else:
                value = list(value) if isinstance(value, tuple | list) else value
                valid = isinstance(value, list) and len(value) == 2 and _ascends(least, *value, most)
                allowed = f'[lo, hi] with {least:g} ≤ lo ≤ hi ≤ {most:g}'
                if option.type == 'tuple[int, int]':
                    valid = valid and all(isinstance(each, int) for each in value)
                    allowed += ', integers'
            if not valid:
                raise ValueError(f'{option.name}: found {value}; allowed: {allowed}')


def _ascends(*values: object) -> bool:
    numbers = [each for each in values if isinstance(each, int | float) and not isinstance(each, bool)]
    return len(numbers) == len(values) and all(low <= high for low, high in pairwise(numbers))  # False for NaN
