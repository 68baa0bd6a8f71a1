"""Motion blur as a camera makes it: from one sharp photograph a blurred and a sharp picture of it.

    photograph → linear light → brighter highlights → frames of a moving camera, and of what moves before it
      blurred: their mean → noise → saturation → camera curve → JPEG
      sharp:   the frame at the middle of the exposure → saturation → camera curve

Frames are averaged in linear light, with noise and saturation after it, as in Rim et al., "Realistic blur
synthesis for learning image deblurring" (ECCV 2022). Pairs of a `video` are made as those of GoPro were (Nah et al.,
"Deep multi-scale convolutional neural network for dynamic scene deblurring", CVPR 2017): a few frames, averaged as the
camera shows them. The camera moves with 6 degrees of freedom, so that the blur varies over the picture, on paths in the
manner of Boracchi & Foi (IEEE TIP 2012).

Images are RGB: (H, W, 3). All that is random comes from the generator given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from basicsr.data.blur.light import (
    _LIGHT,
    _SHOWN,
    Floats,
    Image,
    Light,
    Sensor,
    add_noise,
    brighten_highlights,
    compress,
    develop,
    random_sensor,
    show,
)
from basicsr.data.blur.motion import (
    Camera,
    frames,
    grid,
    moments_of,
    random_shake,
    random_trajectory,
    transform,
)
from basicsr.data.blur.parameters import BlurParameters

LARGEST_APPROACH = 0.4  # distances of a moving object: far more would bring the camera up to it
MASK_EDGE = 2.0  # width of the edge of a moving object, in pixels


# --- light --------------------------------------------------------------------------------------------------


# --- motion -------------------------------------------------------------------------------------------------


def average(layer: Light, H: Floats, shares: Floats, width: int, height: int) -> Light:
    """The mean of frames (height, width, C) of a layer, weighted by `shares`; pixel (x, y, 1) of a frame is at
    H·(x, y, 1) in the layer, which goes on by reflection beyond its border."""
    total = np.zeros((height, width, layer.shape[2]), np.float32)
    frame = np.empty_like(total)
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for homography, share in zip(H, shares, strict=True):
        cv2.warpPerspective(layer, homography, (width, height), frame, how, cv2.BORDER_REFLECT)
        cv2.scaleAdd(frame, share, total, total)
    return total


# --- layers -------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """A part of a view, in its pixels; it may lie outside."""

    left: int
    top: int
    width: int
    height: int

    def grown(self, margin: int) -> Window:
        return Window(self.left - margin, self.top - margin, self.width + 2 * margin, self.height + 2 * margin)


def cut(image: Image, window: Window, scale: float) -> Image:
    """A window (height, width, 3) of the image times `scale`, which goes on by reflection beyond its border."""
    left, top, width, height = (round(value / scale) for value in window)
    rows, columns = np.arange(top, top + max(height, 1)), np.arange(left, left + max(width, 1))
    if top < 0 or left < 0 or rows[-1] >= image.shape[0] or columns[-1] >= image.shape[1]:
        part = image[np.ix_(_reflected(rows, image.shape[0]), _reflected(columns, image.shape[1]))]
    else:
        part = np.ascontiguousarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    if part.shape[:2] != (window.height, window.width):
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        part = cv2.resize(part, (window.width, window.height), interpolation=how)
    return part


def _reflected(indices: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    indices = indices % (2 * length)
    return np.minimum(indices, 2 * length - 1 - indices)


def random_mask(rng: np.random.Generator, width: int, height: int, size: float) -> Light:
    """(height, width) in [0, 1]: smooth shapes of about `size` pixels, with an edge of MASK_EDGE pixels."""
    shape = (int(height / size) + 3, int(width / size) + 3)
    heights = rng.standard_normal(shape, np.float32)
    offset = rng.uniform(0, 1, 2)
    place = np.float32([[1 / size, 0, offset[0] + 0.5], [0, 1 / size, offset[1] + 0.5]])
    how = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    field = cv2.warpAffine(heights, place, (width, height), flags=how, borderMode=cv2.BORDER_REFLECT)
    # The field climbs by about 1 in `size` pixels.
    return ((field - rng.uniform(0.3, 1.5)) * (size / MASK_EDGE) + 0.5).clip(0, 1)


class Layer(NamedTuple):
    """What moves as a whole: light (h, w, 4), red, green and blue times opacity, and opacity; in a window of the
    view."""

    light: Light
    window: Window

    def average(self, H: Floats, shares: Floats, patch: Window) -> Light:
        """(h, w, 4) of the patch, over frames with homographies of the view."""
        from_patch = np.array([[1.0, 0, patch.left], [0, 1, patch.top], [0, 0, 1]])
        to_layer = np.array([[1.0, 0, -self.window.left], [0, 1, -self.window.top], [0, 0, 1]])
        return average(self.light, to_layer @ H @ from_patch, shares, patch.width, patch.height)


def layer_of(part: Image, window: Window, opacity: Light | None, sensor: Sensor) -> Layer:
    """`part` and `opacity` (none: 1) are those of the window."""
    light = np.empty(
        (*part.shape[:2], 4), np.float32
    )  # OpenCV is twice as fast with four channels as with three
    light[..., :3] = cv2.LUT(part, _SHOWN if sensor.video_frames else _LIGHT)
    if sensor.highlight_gain != 1:
        brighten_highlights(light[..., :3], sensor.highlight_gain)
    light[..., :3] *= sensor.gain
    light[..., 3] = 1
    if opacity is not None:
        light *= opacity[..., None]
    return Layer(light, window)


def _margin(H: Floats, patch: Window) -> int:
    points = grid(patch.left, patch.top, patch.width, patch.height)
    return int(np.ceil(np.abs(transform(H, points) - points).max())) + 2


# --- pairs --------------------------------------------------------------------------------------------------


def blurred_pair(
    image: Image,
    rng: np.random.Generator,
    parameters: BlurParameters,
    patch: int | None = None,
    other: Callable[[np.random.Generator], Image] | None = None,
) -> tuple[Image, Image]:
    """A blurred and a sharp picture of a sharp photograph (H, W, 3): squares of `patch` pixels at a random place, or
    the whole of it. What lies beyond its border is its reflection.

    Args:
        other: gives a photograph to cut moving objects out of; none: the same one.
    """
    scale = rng.uniform(*parameters.scale)
    if patch is not None:
        scale = max(scale, min(patch / min(image.shape[:2]), 1.0))
    height, width = (max(round(side * scale), 1) for side in image.shape[:2])
    window = Window(0, 0, width, height)
    if patch is not None:
        left, top = (int(rng.integers(max(side - patch, 0) + 1)) for side in (width, height))
        window = Window(left, top, patch, patch)

    camera = random_shake(rng, parameters, width, height)
    sensor = random_sensor(rng, parameters)

    H = camera.homographies()
    around = window.grown(_margin(H, window))
    scene = layer_of(cut(image, around, scale), around, None, sensor)
    blurred, sharp = _exposed(scene, H, window, sensor.video_frames)
    if rng.random() < parameters.foreground:
        photograph = image if other is None else other(rng)
        layer, H = random_object(photograph, rng, parameters, camera, window, scale, sensor)
        fronts = _exposed(layer, H, window, sensor.video_frames)
        for picture, front in zip((blurred, sharp), fronts, strict=True):
            picture *= 1 - front[..., 3:]
            picture += front

    blurred, sharp = blurred[..., :3], sharp[..., :3]
    finish = show if sensor.video_frames else develop
    if not sensor.video_frames:
        blurred = add_noise(
            blurred, rng, rng.uniform(*parameters.shot_noise), rng.uniform(*parameters.read_noise)
        )
    result = finish(blurred)
    if rng.random() < parameters.jpeg:
        low, high = parameters.jpeg_quality
        result = compress(result, int(rng.integers(low, high, endpoint=True)))
    return result, finish(sharp)


def _exposed(layer: Layer, H: Floats, patch: Window, video_frames: int) -> tuple[Light, Light]:
    """The patch, averaged over the exposure, and at its middle."""
    moments = moments_of(H, video_frames) if video_frames else frames(H, grid(*patch))
    blurred = layer.average(*moments, patch)
    return blurred, layer.average(H[len(H) // 2][None], np.ones(1), patch)


def random_object(
    photograph: Image,
    rng: np.random.Generator,
    parameters: BlurParameters,
    camera: Camera,
    patch: Window,
    scale: float,
    sensor: Sensor,
) -> tuple[Layer, Floats]:
    """Something nearer than the scene that moves by itself, and its homographies (T, 3, 3)."""
    percent = 2 * max(camera.centre) / 100
    length = percent * rng.uniform(*parameters.foreground_shift)
    path = random_trajectory(rng, length, rng.uniform(*parameters.exposure), len(camera.angles))
    own = np.tile(np.eye(3), (len(path), 1, 1))
    own[:, :2, 2] = path - path[len(path) // 2]
    nearer = rng.uniform(1, 3)
    if shift := np.abs(camera.shifts).max():
        nearer = min(nearer, LARGEST_APPROACH / shift)
    H = camera.homographies(nearer) @ own

    around = patch.grown(_margin(H, patch))
    mask = random_mask(
        rng, around.width, around.height, max(percent * rng.uniform(*parameters.foreground_size), MASK_EDGE)
    )
    height, width = (round(side * scale) for side in photograph.shape[:2])
    left = int(rng.integers(max(width - around.width, 0) + 1))
    top = int(rng.integers(max(height - around.height, 0) + 1))
    part = cut(photograph, Window(left, top, around.width, around.height), scale)
    return layer_of(part, around, mask, sensor), H
