"""Make a small set of blurred and sharp pairs, without downloading anything: the real photographs inside the
scikit-image wheel, blurred by synthetic camera shake. It is for trying the training out; it is no benchmark.

    python scripts/synthesize_blur.py                      # → datasets/synthetic_blur in the repository
    python scripts/synthesize_blur.py --output my_set --blur_length 10 20 --per_image 20

The set is `<output>/{train,val}/{input,target}/<photograph>-<n>.png` (n from 1; input is the blurred image),
and `<output>/settings.json`, written last, says how it was made. The same settings give the same bytes; a
larger --per_image adds pairs and leaves the first ones as they were.

No photograph is in both train and val, but blur is: pair n of every photograph has kernel n, as in the
benchmark of Levin et al. (CVPR 2009; 4 photographs × 8 kernels). So a few kernels make a set that a small
network learns in minutes, and the score on val tells how it does on new photographs, not on new blur.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import skimage
from numpy.typing import NDArray
from tqdm import tqdm

# Files that the wheels of scikit-image 0.22 to 0.26 hold; the grey ones become RGB.
# A scene stands on one side only: motorcycle_left and motorcycle_right are the two views of a stereo pair.
PHOTOGRAPHS = {
    'train': (
        'astronaut.png',
        'brick.png',
        'camera.png',
        'grass.png',
        'gravel.png',
        'motorcycle_left.png',
        'motorcycle_right.png',
        'rocket.jpg',
    ),
    'val': ('chelsea.png', 'coffee.png'),
}
DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / 'datasets' / 'synthetic_blur'
SETTINGS_FILE = 'settings.json'
RECIPE = 1  # raise it when the same arguments no longer give the same bytes, so that older sets are noticed

TRAJECTORY_STEPS = 1000  # positions in one exposure; far below a pixel apart for any sensible blur
JERKS = 1.0  # sudden changes of direction, on average, in one exposure
TREMOR = 1.5  # random acceleration over one exposure, relative to the first speed
SPRING = 4.0  # pull back to the first position: the hand tries to hold still


class Pair(NamedTuple):
    split: str
    photograph: str
    number: int

    @property
    def name(self) -> str:
        return f'{Path(self.photograph).stem}-{self.number}.png'


# --- blur ---------------------------------------------------------------------------------------------------


def random_trajectory(rng: np.random.Generator, length: float) -> NDArray[np.float64]:
    """Positions (steps, 2), in pixels, of a shaken camera at equal intervals of time; the path's length is
    `length` and its mean position is (0, 0).

    In the manner of Boracchi & Foi, "Modeling the performance of image restoration from motion blur" (IEEE
    TIP 2012): a particle that has inertia is driven by Gaussian tremor and rare jerks and pulled back to where
    it started. Where it lingers the kernel is bright.
    """
    dt = 1 / TRAJECTORY_STEPS
    tremor = TREMOR * np.sqrt(dt) * rng.standard_normal((TRAJECTORY_STEPS, 2))
    jerked = rng.random(TRAJECTORY_STEPS) < JERKS * dt
    jerks = 2 * rng.standard_normal((TRAJECTORY_STEPS, 2))

    angle = rng.uniform(0, 2 * np.pi)
    velocity = np.array([np.cos(angle), np.sin(angle)])
    position = np.zeros(2)
    positions = np.empty((TRAJECTORY_STEPS, 2))
    for step in range(TRAJECTORY_STEPS):
        positions[step] = position
        velocity = velocity + tremor[step] - SPRING * dt * position
        if jerked[step]:
            velocity = velocity + jerks[step]
        position = position + dt * velocity

    travelled = np.linalg.norm(np.diff(positions, axis=0), axis=1).sum()
    positions *= length / travelled
    return positions - positions.mean(axis=0)


def rasterise(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kernel (k, k), k odd, sum 1, of equally long stays at positions (n, 2) = (y, x) from its centre.

    Every stay is shared by the four pixels around it, bilinearly, which keeps its centre of gravity: positions
    of mean (0, 0) give a kernel whose centroid is its middle pixel, so it blurs without moving the image.
    """
    radius = int(np.ceil(np.abs(positions).max()))
    size = 2 * radius + 1
    corner = np.floor(positions).astype(int)
    fraction = positions - corner
    kernel = np.zeros((size + 1, size + 1))  # one more: the far neighbour of a stay at the edge, of weight 0
    for dy in (0, 1):
        for dx in (0, 1):
            share = np.abs(1 - dy - fraction[:, 0]) * np.abs(1 - dx - fraction[:, 1])
            np.add.at(kernel, (corner[:, 0] + radius + dy, corner[:, 1] + radius + dx), share)
    return kernel[:size, :size] / len(positions)


def random_kernel(rng: np.random.Generator, length: float) -> NDArray[np.float64]:
    """Camera-shake kernel (k, k), k odd, not negative, sum 1, centroid in the middle.

    `length` is how far the camera's view travels during the exposure, in pixels, along its path; 0 is no blur.
    """
    return rasterise(random_trajectory(rng, length))


def to_linear(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """sRGB in 0…255 → linear light in [0, 1] (IEC 61966-2-1)."""
    srgb = np.arange(256) / 255
    table = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return table[image]


def to_srgb(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear light in [0, 1] → sRGB in [0, 255], not rounded."""
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def blur(
    image: NDArray[np.uint8], kernel: NDArray[np.float64], noise: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Image (H, W, C) as a camera would have recorded it while its view moved by `kernel` (k, k).

    Light adds up on the sensor, so the convolution is one of linear light; the image goes on by reflection
    beyond its border. `noise` is the standard deviation of the Gaussian noise added to the result, in steps of
    1/255; rounding to 8 bits comes after it.
    """
    # filter2D correlates: a convolution wants the kernel turned by 180°.
    blurred = cv2.filter2D(to_linear(image), -1, kernel[::-1, ::-1].copy(), borderType=cv2.BORDER_REFLECT)
    srgb = to_srgb(blurred.reshape(image.shape))  # OpenCV drops a channel axis of one
    if noise:
        srgb = srgb + noise * rng.standard_normal(image.shape)
    return srgb.round().clip(0, 255).astype(np.uint8)


# --- files --------------------------------------------------------------------------------------------------


def read_photograph(name: str) -> NDArray[np.uint8]:
    """(H, W, 3) in OpenCV's channel order, of a file inside the scikit-image package; nothing is downloaded."""
    path = Path(skimage.__file__).parent / 'data' / name
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise FileNotFoundError(
            f'scikit-image {skimage.__version__} has no readable photograph {path}; '
            'the wheels of scikit-image 0.22 to 0.26 hold it'
        )
    return image


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    encoded, data = cv2.imencode('.png', image)
    assert encoded
    path.write_bytes(data.tobytes())  # cv2.imwrite returns False when the disk is full; this raises


def all_pairs(per_image: int) -> list[Pair]:
    return [
        Pair(split, photograph, number)
        for split, photographs in PHOTOGRAPHS.items()
        for photograph in photographs
        for number in range(1, per_image + 1)
    ]


def image_folders(output: Path) -> Iterator[Path]:
    for split in PHOTOGRAPHS:
        yield output / split / 'input'
        yield output / split / 'target'


def is_complete(output: Path, pairs: list[Pair]) -> bool:
    return all(
        (output / pair.split / role / pair.name).is_file() for pair in pairs for role in ('input', 'target')
    )


def clear(output: Path) -> None:
    """Delete an earlier set. Raises FileExistsError, and deletes nothing, if its folders hold anything else."""
    stems = {Path(name).stem for names in PHOTOGRAPHS.values() for name in names}
    found = [path for folder in image_folders(output) if folder.is_dir() for path in sorted(folder.iterdir())]
    for path in found:
        stem, _, number = path.stem.rpartition('-')
        if not (path.is_file() and path.suffix == '.png' and stem in stems and number.isdecimal()):
            raise FileExistsError(f'{path} is not from this script; choose another --output or move it away')
    (output / SETTINGS_FILE).unlink(missing_ok=True)  # first: what is left of a set is no set
    for path in found:
        path.unlink()


def synthesize(
    output: str | Path = DEFAULT_OUTPUT,
    seed: int = 0,
    per_image: int = 2,
    blur_length: tuple[float, float] = (8.0, 12.0),
    noise: float = 1.0,
    overwrite: bool = False,
) -> dict[str, int]:
    """Make the set, or leave it alone if it is there with the same settings.

    Args:
        output: folder of the set.
        seed: of kernels and noise.
        per_image: number of kernels, and so of blurred versions of every photograph.
        blur_length: least and largest length of the camera's path, in pixels; uniform between them.
        noise: standard deviation in steps of 1/255.
        overwrite: replace a set that has other settings.

    Returns the number of pairs written, {'train': n, 'val': m}; both are 0 if the set was there already.
    Raises FileExistsError if there is a set with other settings (unless `overwrite`) or someone's own images,
    ValueError on arguments that make no sense.
    """
    low, high = blur_length
    if not 0 <= low <= high < 1000:
        raise ValueError(f'blur_length: found {low:g} {high:g}; allowed: 0 ≤ lo ≤ hi < 1000 pixels')
    if not 0 <= noise <= 255:
        raise ValueError(f'noise: found {noise:g}; allowed: 0 to 255')
    if per_image < 1:
        raise ValueError(f'per_image: found {per_image}; allowed: 1 or more')
    if seed < 0:
        raise ValueError(f'seed: found {seed}; allowed: 0 or more')

    output = Path(output)
    settings = {
        'recipe': RECIPE,
        'photographs': {split: list(names) for split, names in PHOTOGRAPHS.items()},
        'seed': seed,
        'per_image': per_image,
        'blur_length': [float(low), float(high)],
        'noise': float(noise),
    }
    pairs = all_pairs(per_image)
    settings_path = output / SETTINGS_FILE
    if settings_path.is_file() and not overwrite:
        if json.loads(settings_path.read_text(encoding='utf-8')) != settings:
            raise FileExistsError(f'{output} holds a set made with other settings; --overwrite replaces it')
        if is_complete(output, pairs):
            return dict.fromkeys(PHOTOGRAPHS, 0)

    photographs = {name: read_photograph(name) for names in PHOTOGRAPHS.values() for name in names}
    clear(output)
    for folder in image_folders(output):
        folder.mkdir(parents=True, exist_ok=True)
    for pair in tqdm(pairs, desc='synthesize_blur', unit='pair'):
        # A random stream for each kernel and each pair, so that none depends on which others are made.
        kernel_rng = np.random.default_rng([seed, pair.number])
        kernel = random_kernel(kernel_rng, kernel_rng.uniform(low, high))
        noise_rng = np.random.default_rng([seed, pair.number, *pair.photograph.encode()])
        sharp = photographs[pair.photograph]
        write_png(output / pair.split / 'input' / pair.name, blur(sharp, kernel, noise, noise_rng))
        write_png(output / pair.split / 'target' / pair.name, sharp)

    unfinished = settings_path.with_suffix('.tmp')
    unfinished.write_text(json.dumps(settings, indent=2) + '\n', encoding='utf-8')
    unfinished.replace(settings_path)
    return {split: sum(pair.split == split for pair in pairs) for split in PHOTOGRAPHS}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n\n')[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--output', type=Path, default=DEFAULT_OUTPUT, help='folder of the set')
    parser.add_argument('--seed', type=int, default=0, help='of kernels and noise')
    parser.add_argument('--per_image', type=int, default=2, help='kernels, and pairs from each photograph')
    parser.add_argument(
        '--blur_length', type=float, nargs=2, default=(8.0, 12.0), metavar=('LO', 'HI'),
        help="length of the camera's path in pixels",
    )  # fmt: skip
    parser.add_argument('--noise', type=float, default=1.0, help='standard deviation, in steps of 1/255')
    parser.add_argument('--overwrite', action='store_true', help='replace a set made with other settings')
    args = parser.parse_args(arguments)
    try:
        counts = synthesize(**vars(args))
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        parser.exit(1, f'{parser.prog}: {error}\n')
    if any(counts.values()):
        print(f'{args.output}: {counts["train"]} training and {counts["val"]} validation pairs')
    else:
        print(f'{args.output}: already there with these settings, nothing to do')


if __name__ == '__main__':
    main()
