"""Make pairs of blurred and sharp images by synthetic camera shake: from the photographs inside the scikit-image wheel,
to try out training (not a benchmark), or from your own photographs.

    python scripts/synthesize_blur.py                      # → datasets/synthetic_blur in the repository
    python scripts/synthesize_blur.py --output my_set --blur_length 10 20 --per_image 20
    python scripts/synthesize_blur.py --output my_set --model shake6d --sharp_dir PHOTOGRAPHS --sheet look.png

Writes `<output>/{train,val}/{input,target}/<photograph>-<n>.png`, with n from 1 and the blurred images in `input`, and
the settings in `<output>/settings.json`. The output folder appears once it is complete. The same settings give the same
bytes, whatever the number of workers. With --sharp_dir, all pairs are in `train`.

`--model kernel` blurs an entire photograph with one kernel. Train and val share no built-in photograph, but they share
kernels: pair n of every photograph uses kernel n, as in the benchmark of Levin et al. (CVPR 2009; 4 photographs ×
8 kernels). A few kernels make a set that a small network learns in minutes; its score on val measures how it
generalises to new photographs, not to new blur.

`--model shake6d` moves a camera through the scene, and objects in front of it, anew for each pair. This is much closer
to real blur (basicsr/data/blur/render.py). Dataset_SyntheticBlur makes such pairs during training, without writing
them; --parameters accepts its keys, such as `--parameters video=1 'exposure=[0.05, 1]'`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('scripts.synthesize_blur'))

import argparse
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import skimage

from basicsr.data.blur.kernel import blur, random_kernel
from basicsr.data.blur.light import Image
from basicsr.data.blur.parameters import BlurParameters
from basicsr.data.blur.render import blurred_pair
from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.options.option_file import yaml_value
from basicsr.utils.cli import at_least, file_or_folder, usage_errors
from basicsr.utils.errors import DataError, OptionError, UsageError
from basicsr.utils.files import ROOT, absolute, atomic_write, made_folder, scratch_folder
from basicsr.utils.parallel import in_parallel

# Files in the wheels of scikit-image 0.22 to 0.26; grey ones become RGB. The splits share no scene (motorcycle_left and
# motorcycle_right are two views of one).
PHOTOGRAPHS = {
    'train': (
        'astronaut.png', 'brick.png', 'camera.png', 'grass.png', 'gravel.png', 'motorcycle_left.png',
        'motorcycle_right.png', 'rocket.jpg',
    ),
    'val': ('chelsea.png', 'coffee.png'),
}  # fmt: skip
SETTINGS_FILE = 'settings.json'
# Increase a number when the same arguments give other bytes than before.
RECIPE = 1
SHAKE_RECIPE = 2
BLUR_LENGTH, NOISE = (8.0, 12.0), 1.0  # defaults of --model kernel

SHEET_SUFFIXES = ('.png', '.jpg')
SHEET_SIDE, SHEET_PAIRS, SHEET_COLUMNS = 256, 12, 4  # pixels of a tile, number of pairs, tiles in a row


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__.partition('\n\n')[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument(
        '--output', type=file_or_folder, default=ROOT / 'datasets' / 'synthetic_blur', help='new folder'
    )
    p.add_argument('--sharp_dir', type=file_or_folder, help='folder of photographs; None: the built-in ones')
    p.add_argument('--model', choices=('kernel', 'shake6d'), default='kernel', help='kind of blur')
    p.add_argument('--seed', type=at_least(0), default=0, help='seed of all randomness')
    p.add_argument('--per_image', type=at_least(1), default=2, help='pairs per photograph')
    p.add_argument(
        '--blur_length', type=float, nargs=2, metavar=('LO', 'HI'),
        help=f"kernel: length of the camera's path in pixels; None: {BLUR_LENGTH[0]:g} {BLUR_LENGTH[1]:g}",
    )  # fmt: skip
    p.add_argument(
        '--noise', type=float,
        help=f'kernel: standard deviation of noise, in levels of 0 to 255; None: {NOISE:g}',
    )  # fmt: skip
    p.add_argument(
        '--shake', type=float, nargs=2, metavar=('LO', 'HI'),
        help="shake6d: length of the camera's path, in %% of an image's longer side; None: "
        + ' '.join(f'{value:g}' for value in BlurParameters().shake),
    )  # fmt: skip
    p.add_argument(
        '--parameters', type=parameter, nargs='+', action='extend', metavar='KEY=VALUE', default=[],
        help='shake6d: other keys of Dataset_SyntheticBlur; options/schema.json describes them',
    )  # fmt: skip
    p.add_argument('--workers', type=at_least(0), default=0, help='worker processes; 0: none')
    p.add_argument(
        '--sheet',
        type=file_or_folder,
        help='also write a .png or .jpg of sharp and blurred images side by side',
    )
    p.add_argument('--overwrite', action='store_true', help='replace an earlier set of this program')
    return p


def parameter(setting: str) -> tuple[str, Any]:
    """Parses KEY=VALUE, with VALUE in YAML."""
    key, equals, text = setting.partition('=')
    try:
        value = yaml_value(text)
    except OptionError:
        value = None
    if not (key and equals) or value is None:
        raise argparse.ArgumentTypeError(f"found {setting}; allowed: KEY=VALUE, as video=1 or 'shake=[0, 3]'")
    return key, value


def main(args: argparse.Namespace) -> None:
    images, parameters = blur_model(args)
    if args.sheet is not None and args.sheet.suffix not in SHEET_SUFFIXES:
        raise UsageError(
            f'--sheet: found {args.sheet}; allowed: a file ending in {" or ".join(SHEET_SUFFIXES)}'
        )
    output = absolute(args.output).resolve()
    check_output(output, args)
    photographs = Photographs.open(args.sharp_dir)
    pairs = [
        Pair(split, name, number)
        for split, names in photographs.splits.items()
        for name in names
        for number in range(1, args.per_image + 1)
    ]
    settings = {
        'recipe': RECIPE,
        'photographs': photographs.splits,
        'seed': args.seed,
        'per_image': args.per_image,
        **parameters,
        **({'sharp_dir': str(absolute(args.sharp_dir))} if args.sharp_dir else {}),
    }
    with made_folder(output.parent), scratch_folder(output.parent) as scratch:
        folder = scratch / output.name
        for split in photographs.splits:
            for role in ('input', 'target'):
                (folder / split / role).mkdir(parents=True)
        writer = PairWriter(folder, photographs, images, args.seed, pairs)
        in_parallel(writer, args.workers, 'synthesize_blur', lambda _: None)
        atomic_write(folder / SETTINGS_FILE, (json.dumps(settings, indent=2) + '\n').encode())
        if args.overwrite and output.exists():
            output.rename(scratch / 'replaced')
        folder.rename(output)  # fails if another process has filled it meanwhile
    if args.sheet is not None:
        write_image(absolute(args.sheet), sheet(output, pairs))
    print(f'{args.output}: {len(pairs)} pairs written')


def check_output(output: Path, args: argparse.Namespace) -> None:
    if args.sharp_dir and output in (sharp := absolute(args.sharp_dir).resolve(), *sharp.parents):
        raise UsageError(f'--sharp_dir: found {args.sharp_dir}, inside --output; allowed: another folder')
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not args.overwrite:
        raise UsageError(f'--output: {args.output} is not empty; pass --overwrite to replace it')
    others = (
        {path.name for path in output.iterdir()} - {*PHOTOGRAPHS, SETTINGS_FILE} if output.is_dir() else {''}
    )
    if others or not (output / SETTINGS_FILE).exists():
        raise UsageError(f'--output: {args.output} is not a set made by this program, so --overwrite keeps it')


# --- photographs and blur -----------------------------------------------------------------------------------


def read_photograph(name: str) -> Image:
    """Reads a file inside the scikit-image package, (H, W, 3) in BGR order. Nothing is downloaded."""
    path = Path(skimage.__file__).parent / 'data' / name
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(
            f'scikit-image {skimage.__version__} has no readable photograph {path}; '
            'the wheels of scikit-image 0.22 to 0.26 have it'
        )
    return np.asarray(image, np.uint8)


class Photographs(NamedTuple):
    """The built-in photographs, or those of a folder, by file name."""

    splits: dict[str, tuple[str, ...]]
    folder: Dataset_PairedImage | None = None

    @classmethod
    def open(cls, sharp_dir: Path | None) -> Photographs:
        """Raises DataError if the folder has no photographs."""
        if sharp_dir is None:
            return cls(PHOTOGRAPHS)
        folder = Dataset_PairedImage(str(absolute(sharp_dir)))
        return cls({'train': tuple(Path(folder.files(index)).name for index in range(len(folder)))}, folder)

    def read(self, name: str) -> Image:
        """Returns (H, W, 3) in BGR order."""
        if self.folder is None:
            return read_photograph(name)
        pixels = self.folder.read(self.folder.names.index(Path(name).stem))['lq'][:, :, ::-1]
        return (pixels / 257).round().astype(np.uint8) if pixels.dtype == np.uint16 else pixels


class Pair(NamedTuple):
    split: str
    photograph: str
    number: int

    def path(self, folder: Path, role: str) -> Path:
        return folder / self.split / role / f'{Path(self.photograph).stem}-{self.number}.png'


# Makes the blurred and the sharp image of a pair, in BGR order, with a seed.
Images = Callable[[Photographs, Pair, int], tuple[Image, Image]]


def kernel_images(
    blur_length: tuple[float, float], noise: float, photographs: Photographs, pair: Pair, seed: int
) -> tuple[Image, Image]:
    # A random stream for each kernel and for each pair, so that none depends on which others are made.
    kernel_rng = np.random.default_rng([seed, pair.number])
    kernel = random_kernel(kernel_rng, kernel_rng.uniform(*blur_length))
    noise_rng = np.random.default_rng([seed, pair.number, *pair.photograph.encode()])
    sharp = photographs.read(pair.photograph)
    return blur(sharp, kernel, noise, noise_rng), sharp


def shake_images(
    parameters: BlurParameters, photographs: Photographs, pair: Pair, seed: int
) -> tuple[Image, Image]:
    def other(rng: np.random.Generator) -> Image:
        names = photographs.splits[pair.split]
        return photographs.read(names[int(rng.integers(len(names)))])[:, :, ::-1]

    rng = np.random.default_rng([seed, pair.number, *pair.photograph.encode()])
    sharp = photographs.read(pair.photograph)[:, :, ::-1]
    blurred, sharp = blurred_pair(sharp, rng, parameters, other=other)
    return blurred[:, :, ::-1], sharp[:, :, ::-1]


def blur_model(args: argparse.Namespace) -> tuple[Images, dict[str, Any]]:
    """Returns how to make pairs, and the settings to record. Raises UsageError on wrong values, and on arguments of the
    other model."""
    foreign = {'kernel': ('shake', 'parameters'), 'shake6d': ('blur_length', 'noise')}[args.model]
    for name in foreign:
        if getattr(args, name) not in (None, []):
            raise UsageError(f'--{name}: not allowed with --model {args.model}')
    if args.model == 'shake6d':
        parameters = shake_parameters(args)
        values = {
            name: float(value) if isinstance(value, int | float) else [float(each) for each in value]
            for name, value in asdict(parameters).items()
        }
        settings = {'model': 'shake6d', 'shake_recipe': SHAKE_RECIPE, 'parameters': values}
        return partial(shake_images, parameters), settings
    low, high = BLUR_LENGTH if args.blur_length is None else args.blur_length
    noise = NOISE if args.noise is None else args.noise
    if not 0 <= low <= high < 1000:
        raise UsageError(f'--blur_length: found {low:g} {high:g}; allowed: 0 ≤ lo ≤ hi < 1000 pixels')
    if not 0 <= noise <= 255:
        raise UsageError(f'--noise: found {noise:g}; allowed: 0 to 255')
    return partial(kernel_images, (low, high), noise), {'blur_length': (low, high), 'noise': noise}


def shake_parameters(args: argparse.Namespace) -> BlurParameters:
    known = [option.name for option in fields(BlurParameters)]
    given = [*args.parameters, *([('shake', args.shake)] if args.shake else [])]
    for key, count in Counter(key for key, _ in given).items():
        if key not in known:
            raise UsageError(f'--parameters: found {key}; allowed: {", ".join(known)}')
        if count > 1:
            raise UsageError(f'--parameters: found {key} {count} times; allowed: once')
    with usage_errors():
        return BlurParameters(**dict(given))


# --- files --------------------------------------------------------------------------------------------------


@dataclass
class PairWriter:
    """`writer[i]` writes pair i, or returns the DataError of a photograph that cannot be read."""

    folder: Path
    photographs: Photographs
    images: Images
    seed: int
    pairs: list[Pair]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> DataError | None:
        pair = self.pairs[index]
        try:
            images = self.images(self.photographs, pair, self.seed)
        except DataError as error:
            return error
        for role, image in zip(('input', 'target'), images, strict=True):
            write_image(pair.path(self.folder, role), image)
        return None


def write_image(path: Path, image: Image) -> None:
    """Raises DataError, which a worker process can pass on."""
    encoded, data = cv2.imencode(path.suffix, image)
    assert encoded
    try:
        atomic_write(path, data.tobytes())
    except OSError as error:
        raise DataError(f'{path}: cannot be written: {error.strerror or error}') from None


def sheet(folder: Path, pairs: list[Pair]) -> Image:
    """Returns the centres of some sharp and blurred images, side by side."""
    chosen = np.linspace(0, len(pairs) - 1, min(len(pairs), SHEET_PAIRS)).astype(int)
    tiles = [_centre(pairs[index].path(folder, role)) for index in chosen for role in ('target', 'input')]
    columns = min(SHEET_COLUMNS, len(tiles))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)])


def _centre(path: Path) -> Image:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert image is not None
    tile = np.zeros((SHEET_SIDE, SHEET_SIDE, 3), np.uint8)
    height, width = (min(side, SHEET_SIDE) for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    tile[:height, :width] = image[top : top + height, left : left + width]
    return tile
