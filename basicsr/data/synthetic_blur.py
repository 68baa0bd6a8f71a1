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
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Image = NDArray[np.uint8]
Floats = NDArray[np.float64]
Light = NDArray[np.float32]  # linear; 1 is where the sensor saturates

TRAJECTORY_STEPS = 1000  # positions in one exposure; far below a pixel apart for any sensible blur
JERKS = 1.0  # sudden changes of direction, on average, in a unit of time
TREMOR = 1.5  # random acceleration over a unit of time, relative to the first speed
SPRING = 4.0  # pull back to the first position: the hand tries to hold still

SHAKE_STEPS = 256  # positions in one exposure of a camera that turns and moves: what is blurred is in frames
FRAMES_PER_PIXEL = 2  # so many frames for each pixel that the fastest part of a picture travels …
MOST_FRAMES = 200  # … but no more than these
HIGHLIGHT = 0.8  # linear light above which a photograph may have been cut off
LARGEST_MOTION = 0.2  # radians, and distances of the scene: far more would turn the scene out of sight
LARGEST_APPROACH = 0.4  # distances of a moving object: far more would bring the camera up to it
MASK_EDGE = 2.0  # width of the edge of a moving object, in pixels


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


# --- light --------------------------------------------------------------------------------------------------


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


# --- motion -------------------------------------------------------------------------------------------------


def random_trajectory(
    rng: np.random.Generator, length: float, exposure: float = 1.0, steps: int = TRAJECTORY_STEPS
) -> Floats:
    """Positions (steps, 2), in pixels, of a shaken camera at equal intervals of time; the path's length is
    `length` and its mean position is (0, 0).

    In the manner of Boracchi & Foi, "Modeling the performance of image restoration from motion blur" (IEEE
    TIP 2012): a particle that has inertia is driven by Gaussian tremor and rare jerks and pulled back to where
    it started. Where it lingers the blur is bright; the longer the exposure, the more the path winds.
    """
    dt = exposure / steps
    tremor = TREMOR * np.sqrt(dt) * rng.standard_normal((steps, 2))
    jerked = (rng.random(steps) < JERKS * dt).tolist()
    jerks = 2 * rng.standard_normal((steps, 2))

    angle = rng.uniform(0, 2 * np.pi)
    paths = []
    # Axis by axis in Python's own numbers: the same bits as with arrays of two, twenty times faster.
    for axis, velocity in enumerate((float(np.cos(angle)), float(np.sin(angle)))):
        position, path = 0.0, []
        for push, is_jerk, jerk in zip(tremor[:, axis].tolist(), jerked, jerks[:, axis].tolist(), strict=True):
            path.append(position)
            velocity = velocity + push - SPRING * dt * position
            if is_jerk:
                velocity = velocity + jerk
            position = position + dt * velocity
        paths.append(path)
    positions = np.stack([np.array(path) for path in paths], axis=1)

    travelled = np.linalg.norm(np.diff(positions, axis=0), axis=1).sum()
    positions *= length / travelled
    return positions - positions.mean(axis=0)


class Camera(NamedTuple):
    """A camera in motion, seen from where it is at the middle of the exposure."""

    angles: Floats  # (T, 3): rotation vectors about x (right), y (down) and the optical axis, in radians
    shifts: Floats  # (T, 3): translations, in distances of the scene
    focal: float  # in pixels
    centre: tuple[float, float]  # (x, y) of the optical axis, in pixels

    def times(self, size: float) -> Camera:
        return self._replace(angles=size * self.angles, shifts=size * self.shifts)

    def homographies(self, nearer: float = 1.0) -> Floats:
        """(T, 3, 3): pixel (x, y, 1) of a moment → where that is in the middle frame, K·(R − t·nᵀ/d)·K⁻¹, for a plane
        across the optical axis; it is `nearer` times as near as the scene."""
        x, y = self.centre
        K = np.array([[self.focal, 0, x], [0, self.focal, y], [0, 0, 1]])
        moved = Rotation.from_rotvec(self.angles).as_matrix()
        moved[:, :, 2] -= nearer * self.shifts
        H = K @ moved @ np.linalg.inv(K)
        return H / H[:, 2:, 2:]


def transform(H: Floats, points: Floats) -> Floats:
    """Homographies (T, 3, 3) of points (P, 2) as (x, y): (T, P, 2)."""
    moved = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ H.transpose(0, 2, 1)
    return moved[:, :, :2] / moved[:, :, 2:]


def grid(left: float, top: float, width: float, height: float) -> Floats:
    """The corners, the middles of the sides and the middle of a rectangle, (9, 2) as (x, y)."""
    x, y = np.meshgrid(left + width * np.array([0, 0.5, 1]), top + height * np.array([0, 0.5, 1]))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def path_lengths(moved: Floats) -> Floats:
    """Positions (T, P, 2) of points → how far each travels between two moments, (T − 1, P)."""
    return np.linalg.norm(np.diff(moved, axis=0), axis=-1)


def random_shake(rng: np.random.Generator, parameters: BlurParameters, width: float, height: float) -> Camera:
    """A hand-held camera whose view is (width, height) pixels."""
    length = rng.uniform(*parameters.shake) / 100 * max(width, height)
    exposure = rng.uniform(*parameters.exposure)
    focal = width / 2 / np.tan(np.radians(rng.uniform(*parameters.fov)) / 2)
    roll = rng.uniform(*parameters.roll)
    depth = rng.uniform(*parameters.depth)
    turning, moving, along_axis = (random_trajectory(rng, 1.0, exposure, SHAKE_STEPS) for _ in range(3))

    angles = np.column_stack([turning, roll * along_axis[:, 0]])
    shifts = np.column_stack([moving, along_axis[:, 1]]) / depth
    middle = SHAKE_STEPS // 2
    centre = ((width - 1) / 2, (height - 1) / 2)
    camera = Camera(angles - angles[middle], shifts - shifts[middle], focal, centre)
    largest = LARGEST_MOTION / max(np.linalg.norm(camera.angles, axis=1).max(), np.abs(camera.shifts).max())
    view = grid(0, 0, width, height)
    # Positions of pixels are all but linear in small angles: the second time is for large ones.
    size = min(length / focal, largest)
    for _ in range(2 if length else 0):
        travelled = path_lengths(transform(camera.times(size).homographies(), view)).sum(axis=0).mean()
        size = min(size * length / travelled, largest)
    return camera.times(size)


def frames(H: Floats, points: Floats) -> tuple[Floats, Floats]:
    """Homographies (T, 3, 3) at equal intervals of time → those of few frames, (n, 3, 3), and the share of the
    exposure that each stands for, (n,): between two frames no point of `points` (P, 2) moves much more than a pixel,
    unless there would be more than MOST_FRAMES."""
    steps = path_lengths(transform(H, points)).max(axis=1)
    arc = np.concatenate([[0.0], steps.cumsum()])
    count = min(int(np.ceil(FRAMES_PER_PIXEL * arc[-1])) + 1, MOST_FRAMES)
    places = (arc * (count / arc[-1])).astype(int).clip(max=count - 1) if arc[-1] > 0 else np.zeros(len(H), int)
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    moments = np.diff(starts, append=len(H))
    return np.add.reduceat(H, starts, axis=0) / moments[:, None, None], moments / len(H)


def moments_of(H: Floats, count: int) -> tuple[Floats, Floats]:
    """As `frames`, but `count` moments at equal intervals of time, the middle of the exposure among them if there is
    an odd number."""
    middles = (np.arange(count) + 0.5) / count * len(H)
    return H[middles.astype(int)], np.full(count, 1 / count)


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
