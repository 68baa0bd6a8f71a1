"""Motion of a hand-held camera during an exposure, as homographies.

A homography H (3, 3) maps pixel (x, y, 1) of one moment to its place in the middle frame. T is the number of moments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from basicsr.data.blur.light import Floats
from basicsr.data.blur.parameters import BlurParameters

# The random path (Boracchi & Foi 2012): a particle with inertia, started with speed 1
TRAJECTORY_STEPS = 1000  # positions in one exposure, far below one pixel apart
JERKS = 1.0  # mean number of sudden changes of velocity per unit of time
TREMOR = 1.5  # standard deviation of the velocity gained from Gaussian tremor in a unit of time
SPRING = 4.0  # acceleration back to the starting point, per unit of distance

SHAKE_STEPS = 256  # moments in one exposure of a camera with six degrees of freedom
LARGEST_MOTION = 0.2  # radians, or scene distances: larger motion would move the scene out of view

FRAMES_PER_PIXEL = 2  # frames averaged per pixel that the fastest part of the image travels
MOST_FRAMES = 200


def random_trajectory(
    rng: np.random.Generator, length: float, exposure: float = 1.0, steps: int = TRAJECTORY_STEPS
) -> Floats:
    """Draws the path of a shaken camera.

    A particle with inertia, driven by Gaussian tremor and occasional jerks, is pulled back to its starting point. It
    follows Boracchi & Foi, "Modeling the performance of image restoration from motion blur" (IEEE TIP 2012).

    Args:
        length: length of the path, in pixels.
        exposure: simulated time; longer paths wind more.

    Returns:
        (steps, 2): positions at equal intervals of time, in pixels, with mean (0, 0).
    """
    dt = exposure / steps
    tremor = TREMOR * np.sqrt(dt) * rng.standard_normal((steps, 2))
    jerked = (rng.random(steps) < JERKS * dt).tolist()
    jerks = 2 * rng.standard_normal((steps, 2))

    angle = rng.uniform(0, 2 * np.pi)
    paths = []
    # One axis at a time in Python floats: the same bits as arrays of two, but twenty times faster.
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
    """A moving camera, relative to its pose in the middle of the exposure."""

    angles: Floats  # (T, 3): rotation vectors about x (right), y (down) and the optical axis, in radians
    shifts: Floats  # (T, 3): translations, in units of the distance to the scene
    focal: float  # focal length, in pixels
    centre: tuple[float, float]  # (x, y) of the optical axis, in pixels

    def scaled(self, factor: float) -> Camera:
        return self._replace(angles=factor * self.angles, shifts=factor * self.shifts)

    def homographies(self, nearer: float = 1.0) -> Floats:
        """Homographies (T, 3, 3) of a plane perpendicular to the optical axis: K·(R − t·nᵀ/d)·K⁻¹ (Hartley & Zisserman,
        "Multiple View Geometry", 13.1).

        Args:
            nearer: distance to the scene divided by the distance d to the plane.
        """
        x, y = self.centre
        K = np.array([[self.focal, 0, x], [0, self.focal, y], [0, 0, 1]])
        moved = Rotation.from_rotvec(self.angles).as_matrix()
        moved[:, :, 2] -= nearer * self.shifts
        H = K @ moved @ np.linalg.inv(K)
        return H / H[:, 2:, 2:]


def transform(H: Floats, points: Floats) -> Floats:
    """Applies homographies (T, 3, 3) to points (P, 2) given as (x, y). Returns (T, P, 2)."""
    moved = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ H.transpose(0, 2, 1)
    return moved[:, :, :2] / moved[:, :, 2:]


def grid(left: float, top: float, width: float, height: float) -> Floats:
    """Returns the corners, edge midpoints and centre of a rectangle, (9, 2) as (x, y)."""
    x, y = np.meshgrid(left + width * np.array([0, 0.5, 1]), top + height * np.array([0, 0.5, 1]))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def step_lengths(positions: Floats) -> Floats:
    """Returns the distance that each point travels between moments: (T, P, 2) → (T − 1, P)."""
    return np.linalg.norm(np.diff(positions, axis=0), axis=-1)


def random_shake(rng: np.random.Generator, parameters: BlurParameters, width: float, height: float) -> Camera:
    """Draws the motion of a hand-held camera for an image of (width, height) pixels."""
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
    # Scale the motion until the image travels `length` on average. Pixel positions are almost linear in small angles;
    # the second pass is for large ones.
    factor = min(length / focal, largest)
    for _ in range(2 if length else 0):
        travelled = step_lengths(transform(camera.scaled(factor).homographies(), view)).sum(axis=0).mean()
        factor = min(factor * length / travelled, largest)
    return camera.scaled(factor)


def frames(H: Floats, points: Floats) -> tuple[Floats, Floats]:
    """Reduces moments to as few frames as a smooth average needs.

    Between two frames, no point moves much more than 1 / FRAMES_PER_PIXEL pixels, unless that takes more than
    MOST_FRAMES frames.

    Args:
        H: (T, 3, 3) at equal intervals of time.
        points: (P, 2), as (x, y).

    Returns:
        homographies (n, 3, 3), and the share of the exposure that each stands for, (n,).
    """
    steps = step_lengths(transform(H, points)).max(axis=1)
    arc = np.concatenate([[0.0], steps.cumsum()])
    count = min(int(np.ceil(FRAMES_PER_PIXEL * arc[-1])) + 1, MOST_FRAMES)
    places = (arc * (count / arc[-1])).astype(int).clip(max=count - 1) if arc[-1] > 0 else np.zeros(len(H), int)
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    moments = np.diff(starts, append=len(H))
    return np.add.reduceat(H, starts, axis=0) / moments[:, None, None], moments / len(H)


def video_frames(H: Floats, count: int) -> tuple[Floats, Floats]:
    """Like `frames`, but with `count` moments at equal intervals; for an odd `count`, one of them is the middle of the
    exposure."""
    middles = (np.arange(count) + 0.5) / count * len(H)
    return H[middles.astype(int)], np.full(count, 1 / count)
