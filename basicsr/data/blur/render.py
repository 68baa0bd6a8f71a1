"""Realistic motion blur: turns one sharp photograph into a pair of a blurred and a sharp image.

    photograph → linear light → brighter highlights → frames of a moving camera and of moving objects
      blurred: mean of the frames → noise → saturation → sRGB → JPEG
      sharp:   frame at the middle of the exposure → saturation → sRGB

Frames are averaged in linear light, followed by noise and saturation, as in Rim et al., "Realistic blur synthesis for
learning image deblurring" (ECCV 2022). With a chance of `video`, pairs are made the way GoPro was (Nah et al., "Deep
multi-scale convolutional neural network for dynamic scene deblurring", CVPR 2017): a few frames, averaged in sRGB. The
camera moves with six degrees of freedom, so blur varies over the image (Whyte et al., IJCV 2012), on random paths after
Boracchi & Foi (IEEE TIP 2012).

Images are RGB, (H, W, 3). All randomness comes from the given generator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from basicsr.data.blur.light import (
    LINEAR,
    SCALED,
    Floats,
    Image,
    Light,
    Sensor,
    add_noise,
    brighten_highlights,
    compress,
    develop,
    random_sensor,
    to_image,
)
from basicsr.data.blur.motion import (
    Camera,
    frames,
    grid,
    random_shake,
    random_trajectory,
    transform,
    video_frames,
)
from basicsr.data.blur.parameters import BlurParameters

LARGEST_APPROACH = 0.4  # of the distance to a moving object: more would bring the camera too close to it
MASK_EDGE = 2.0  # width of a moving object's soft edge, in pixels


def blurred_pair(
    image: Image,
    rng: np.random.Generator,
    parameters: BlurParameters,
    patch: int | None = None,
    other: Callable[[np.random.Generator], Image] | None = None,
) -> tuple[Image, Image]:
    """Makes a blurred and a sharp image from a sharp photograph (H, W, 3), uint8 RGB.

    Returns both, uint8 RGB: (patch, patch, 3) or (round(H·scale), round(W·scale), 3), with a scale from `parameters`.

    Args:
        patch: side of a square at a random place, in pixels; None: the entire image. The photograph is reflected
            beyond its border.
        other: returns the photograph that moving objects are cut from; None: `image`.
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
    around = window.grown(margin(H, window))
    scene = make_layer(cut(image, around, scale), around, None, sensor)
    blurred, sharp = expose(scene, H, window, sensor)
    if rng.random() < parameters.foreground:
        photograph = image if other is None else other(rng)
        layer, H = random_object(photograph, rng, parameters, camera, window, scale, sensor)
        for picture, front in zip((blurred, sharp), expose(layer, H, window, sensor), strict=True):
            picture *= 1 - front[..., 3:]
            picture += front

    blurred, sharp = blurred[..., :3], sharp[..., :3]
    finish = to_image if sensor.video_frames else develop
    if not sensor.video_frames:
        shot, read = rng.uniform(*parameters.shot_noise), rng.uniform(*parameters.read_noise)
        blurred = add_noise(blurred, rng, shot, read)
    result = finish(blurred)
    if rng.random() < parameters.jpeg:
        low, high = parameters.jpeg_quality
        result = compress(result, int(rng.integers(low, high, endpoint=True)))
    return result, finish(sharp)


class Window(NamedTuple):
    """A rectangle in pixels of the image; it may extend beyond the image."""

    left: int
    top: int
    width: int
    height: int

    def grown(self, margin: int) -> Window:
        return Window(self.left - margin, self.top - margin, self.width + 2 * margin, self.height + 2 * margin)


def margin(H: Floats, window: Window) -> int:
    """Returns how many pixels beyond a window the homographies (T, 3, 3) reach."""
    points = grid(*window)
    return int(np.ceil(np.abs(transform(H, points) - points).max())) + 2


def cut(image: Image, window: Window, scale: float) -> Image:
    """Cuts a window (height, width, 3) from the image resized by `scale`; reflected beyond its border."""
    left, top, width, height = (round(value / scale) for value in window)
    rows, columns = np.arange(top, top + max(height, 1)), np.arange(left, left + max(width, 1))
    if top < 0 or left < 0 or rows[-1] >= image.shape[0] or columns[-1] >= image.shape[1]:
        part = image[np.ix_(_reflected(rows, image.shape[0]), _reflected(columns, image.shape[1]))]
    else:
        part = np.ascontiguousarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    if part.shape[:2] != (window.height, window.width):
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        resized = cv2.resize(part, (window.width, window.height), interpolation=interpolation)
        return np.asarray(resized, np.uint8)
    return part


def _reflected(indices: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    indices = indices % (2 * length)
    return np.minimum(indices, 2 * length - 1 - indices)


class Layer(NamedTuple):
    """A part of the scene that moves rigidly.

    Its light is (height, width, 4): RGB multiplied by opacity, then opacity.
    """

    light: Light
    window: Window  # where the light is, in pixels of the image

    def average(self, H: Floats, shares: Floats, window: Window) -> Light:
        """Averages the frames of a window, (height, width, 4).

        Args:
            H: homographies (n, 3, 3) of the image.
            shares: (n,), the weight of each frame.
        """
        from_window = np.array([[1.0, 0, window.left], [0, 1, window.top], [0, 0, 1]])
        to_layer = np.array([[1.0, 0, -self.window.left], [0, 1, -self.window.top], [0, 0, 1]])
        return average(self.light, to_layer @ H @ from_window, shares, window.width, window.height)


def average(light: Light, H: Floats, shares: Floats, width: int, height: int) -> Light:
    """Averages warped copies of `light`, weighted by `shares`. Returns (height, width, C).

    Pixel (x, y, 1) of a copy comes from H·(x, y, 1); light is reflected beyond its border.
    """
    total = np.zeros((height, width, light.shape[2]), np.float32)
    frame = np.empty_like(total)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for homography, share in zip(H, shares, strict=True):
        cv2.warpPerspective(light, homography, (width, height), frame, flags, cv2.BORDER_REFLECT)
        cv2.scaleAdd(frame, share, total, total)
    return total


def make_layer(part: Image, window: Window, opacity: Light | None, sensor: Sensor) -> Layer:
    """Makes a layer of a part (height, width, 3) of a photograph; `opacity` (height, width), None: 1."""
    light = np.empty((*part.shape[:2], 4), np.float32)  # OpenCV is twice as fast on four channels as on three
    light[..., :3] = cv2.LUT(part, SCALED if sensor.video_frames else LINEAR)
    if sensor.highlight_gain != 1:
        brighten_highlights(light[..., :3], sensor.highlight_gain)
    light[..., :3] *= sensor.gain
    light[..., 3] = 1
    if opacity is not None:
        light *= opacity[..., None]
    return Layer(light, window)


def expose(layer: Layer, H: Floats, window: Window, sensor: Sensor) -> tuple[Light, Light]:
    """Returns a layer averaged over the exposure, and at its middle."""
    moments = video_frames(H, sensor.video_frames) if sensor.video_frames else frames(H, grid(*window))
    return layer.average(*moments, window), layer.average(H[len(H) // 2][None], np.ones(1), window)


def random_object(
    photograph: Image,
    rng: np.random.Generator,
    parameters: BlurParameters,
    camera: Camera,
    window: Window,
    scale: float,
    sensor: Sensor,
) -> tuple[Layer, Floats]:
    """Draws an object that moves in front of the scene. Returns it and its homographies (T, 3, 3)."""
    percent = 2 * max(camera.centre) / 100
    length = percent * rng.uniform(*parameters.foreground_shift)
    path = random_trajectory(rng, length, rng.uniform(*parameters.exposure), len(camera.angles))
    own = np.tile(np.eye(3), (len(path), 1, 1))
    own[:, :2, 2] = path - path[len(path) // 2]
    nearer = rng.uniform(1, 3)
    if shift := np.abs(camera.shifts).max():
        nearer = min(nearer, LARGEST_APPROACH / shift)
    H = camera.homographies(nearer) @ own

    around = window.grown(margin(H, window))
    size = max(percent * rng.uniform(*parameters.foreground_size), MASK_EDGE)
    mask = random_mask(rng, around.width, around.height, size)
    height, width = (round(side * scale) for side in photograph.shape[:2])
    left = int(rng.integers(max(width - around.width, 0) + 1))
    top = int(rng.integers(max(height - around.height, 0) + 1))
    part = cut(photograph, Window(left, top, around.width, around.height), scale)
    return make_layer(part, around, mask, sensor), H


def random_mask(rng: np.random.Generator, width: int, height: int, size: float) -> Light:
    """Draws smooth shapes of about `size` pixels: (height, width) in [0, 1], with edges MASK_EDGE pixels wide."""
    shape = (int(height / size) + 3, int(width / size) + 3)
    noise = rng.standard_normal(shape, np.float32)
    offset = rng.uniform(0, 1, 2)
    place = np.array([[1 / size, 0, offset[0] + 0.5], [0, 1 / size, offset[1] + 0.5]], np.float32)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    field = cv2.warpAffine(noise, place, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)
    # The field has a slope of about 1 / size.
    return ((field - rng.uniform(0.3, 1.5)) * (size / MASK_EDGE) + 0.5).clip(0, 1)
