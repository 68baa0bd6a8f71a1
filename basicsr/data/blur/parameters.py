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
    """What synthetic blur is like. A range [lo, hi] is drawn from uniformly, for every picture. Raises ValueError.

    Lengths are in % of the picture's longer side, as a hand shakes by an angle: frames of 1280 and of 320 pixels of
    the same camera then have the same blur.

    Args:
        shake: how far the view of the camera travels in one exposure, along its path and on average over the picture,
            in %; [0, 0]: the camera stands still. It never turns by more than 0.2 radians.
        exposure: time of exposure; the longer, the more often the path changes its direction (Boracchi & Foi 2012:
            1 is their unit; below 0.3 paths are nearly straight).
        fov: horizontal angle of view, in degrees; wide angles make the blur vary more.
        roll: turning about the optical axis, relative to that about the others; the blur grows with the distance from
            the middle (Whyte et al., IJCV 2012).
        depth: distance of the scene; at 1 moving the camera blurs as much as turning it, far away turning alone does.
        scale: the photograph is scaled by this factor first: below 1 that hides its own blur, noise and compression;
            above 1 it becomes as soft as the frames of a video are.
        foreground: chance of an object that moves by itself in front of the scene.
        foreground_size: what such an object has across, roughly, in %.
        foreground_shift: how far it travels in one exposure, beside what the camera does, in %.
        gain: brightness, before the sensor saturates.
        highlights: chance that what is white in the photograph was brighter than white, and leaves streaks
            (Rim et al., ECCV 2022).
        highlight_gain: how many times brighter than white.
        shot_noise: standard deviation of the sensor's noise at full light that grows as the root of light, in full
            scales (Foi et al., IEEE TIP 2008).
        read_noise: standard deviation of the noise that is there without light, in full scales of linear light.
        video: chance that a pair is made as those of GoPro: the mean of a few frames of a video, as it is shown and not
            in linear light, so without saturation, highlights and noise (Nah et al., CVPR 2017).
        video_frames: how many frames.
        jpeg: chance that the blurred picture is compressed.
        jpeg_quality: of the compression, 1 to 100.
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
                right, allowed = _ascends(least, value, most), f'a chance from {least:g} to {most:g}'
            else:
                value = list(value) if isinstance(value, tuple | list) else value
                right = isinstance(value, list) and len(value) == 2 and _ascends(least, *value, most)
                allowed = f'[lo, hi] with {least:g} ≤ lo ≤ hi ≤ {most:g}'
                if option.type == 'tuple[int, int]':
                    right = right and all(isinstance(each, int) for each in value)
                    allowed += ', whole numbers'
            if not right:
                raise ValueError(f'{option.name}: found {value}; allowed: {allowed}')


def _ascends(*values: Any) -> bool:
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return False
    return all(low <= high for low, high in pairwise(values))  # False for NaN
