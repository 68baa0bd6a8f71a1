"""Motion of the camera during an exposure, as homographies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from basicsr.data.blur.light import (
    Floats,
)
from basicsr.data.blur.parameters import BlurParameters

TRAJECTORY_STEPS = 1000  # positions in one exposure; far below a pixel apart for any sensible blur


JERKS = 1.0  # sudden changes of direction, on average, in a unit of time


TREMOR = 1.5  # random acceleration over a unit of time, relative to the first speed


SPRING = 4.0  # pull back to the first position: the hand tries to hold still


SHAKE_STEPS = 256  # positions in one exposure of a camera that turns and moves: what is blurred is in frames


FRAMES_PER_PIXEL = 2  # so many frames for each pixel that the fastest part of a picture travels …


MOST_FRAMES = 200  # … but no more than these


LARGEST_MOTION = 0.2  # radians, and distances of the scene: far more would turn the scene out of sight


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
