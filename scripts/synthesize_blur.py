"""Make a set of blurred and sharp pairs by synthetic camera shake, without downloading anything: of the real
photographs inside the scikit-image wheel, to try the training out (it is no benchmark), or of your own.

    python scripts/synthesize_blur.py                      # → datasets/synthetic_blur in the repository
    python scripts/synthesize_blur.py --output my_set --blur_length 10 20 --per_image 20
    python scripts/synthesize_blur.py --output my_set --model shake6d --sharp_dir PHOTOGRAPHS --sheet look.png

The set is `<output>/{train,val}/{input,target}/<photograph>-<n>.png` (n from 1; input is the blurred image),
and `<output>/settings.json` says how it was made, or is being made. The same settings give the same bytes, and the same
command goes on where it was ended; a larger --per_image adds pairs and leaves the first ones as they are. With
--sharp_dir all is in `train`.

`--model kernel` blurs a whole photograph with one kernel. No built-in photograph is in both train and val, but
blur is: pair n of every photograph has kernel n, as in the benchmark of Levin et al. (CVPR 2009; 4 photographs
× 8 kernels). So a few kernels make a set that a small network learns in minutes, and the score on val tells how
it does on new photographs, not on new blur.

`--model shake6d` moves a camera, and objects before it, through the scene, anew for each pair; this is much more
like real blur (basicsr/data/blur/render.py). Dataset_SyntheticBlur makes such pairs while it trains, without a
set on the disk; --parameters takes its keys, as `--parameters video=1 'exposure=[0.05, 1]'`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

# Run as a script, Python looks for modules in scripts/, and the package may not be installed.
if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import skimage
from numpy.typing import NDArray

from basicsr.data.blur.light import to_linear, to_srgb
from basicsr.data.blur.motion import random_trajectory
from basicsr.data.blur.parameters import BlurParameters
from basicsr.data.blur.render import blurred_pair
from basicsr.data.sources import FolderSource
from basicsr.images.decode import decode
from basicsr.options.option_file import yaml_value
from basicsr.utils.console import print_any_name
from basicsr.utils.errors import DataError, InUseError, OptionError
from basicsr.utils.files import absolute, atomic_write, expanded, lock_file, made_folder, remove_leftovers
from basicsr.utils.parallel import in_parallel
from basicsr.utils.signals import ending_cleanly

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
UNFINISHED = 'unfinished'  # a key of the settings, until all pairs are there
# Raise a number when the same arguments no longer give the same bytes, so that older sets are noticed.
RECIPE = 1
SHAKE_RECIPE = 2
MODELS = ('kernel', 'shake6d')
BLUR_LENGTH, NOISE = (8.0, 12.0), 1.0  # of kernels

SHEET_SUFFIXES = ('.png', '.jpg')
SHEET_SIDE, SHEET_PAIRS, SHEET_ROW = 256, 12, 2  # pixels of a picture; pairs; pairs in a row


class Pair(NamedTuple):
    split: str
    photograph: str
    number: int

    @property
    def name(self) -> str:
        return f'{Path(self.photograph).stem}-{self.number}.png'


# --- blur ---------------------------------------------------------------------------------------------------


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


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Raises DataError."""
    encoded, data = cv2.imencode(path.suffix, image)
    assert encoded
    try:
        atomic_write(path, data.tobytes())  # a pair that is there is whole, whatever ends the command
    except OSError as error:  # in a sentence, as it may come from another process
        raise DataError(f'{path}: cannot be written: {error.strerror or error}') from None


class Photographs(NamedTuple):
    """The built-in ones, or those of a folder; (H, W, 3) in OpenCV's channel order, by file name."""

    splits: dict[str, tuple[str, ...]]
    folder: FolderSource | None = None

    @classmethod
    def of(cls, sharp_dir: Path | None) -> Photographs:
        """Raises DataError, and FileNotFoundError, if one is absent."""
        if sharp_dir is None:
            for names in PHOTOGRAPHS.values():
                for name in names:
                    read_photograph(name)
            return cls(PHOTOGRAPHS)
        folder = FolderSource(absolute(sharp_dir))
        if not folder.names:
            raise DataError(f'{sharp_dir}: there is no image in it')
        return cls({'train': tuple(Path(folder.where(name)).name for name in folder.names)}, folder)

    def read(self, name: str) -> NDArray[np.uint8]:
        if self.folder is None:
            return read_photograph(name)
        stem = Path(name).stem
        pixels = decode(self.folder.read(stem), self.folder.where(stem), channels=3)[:, :, ::-1]
        return (pixels / 257).round().astype(np.uint8) if pixels.dtype == np.uint16 else pixels

    def pairs(self, per_image: int) -> list[Pair]:
        return [
            Pair(split, photograph, number)
            for split, photographs in self.splits.items()
            for photograph in photographs
            for number in range(1, per_image + 1)
        ]


class KernelBlur(NamedTuple):
    blur_length: tuple[float, float]
    noise: float

    def pair(
        self, photographs: Photographs, pair: Pair, seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        # A random stream for each kernel and each pair, so that none depends on which others are made.
        kernel_rng = np.random.default_rng([seed, pair.number])
        kernel = random_kernel(kernel_rng, kernel_rng.uniform(*self.blur_length))
        noise_rng = np.random.default_rng([seed, pair.number, *pair.photograph.encode()])
        sharp = photographs.read(pair.photograph)
        return blur(sharp, kernel, self.noise, noise_rng), sharp

    def settings(self) -> dict[str, Any]:
        return {'blur_length': [float(value) for value in self.blur_length], 'noise': float(self.noise)}


class ShakeBlur(NamedTuple):
    parameters: BlurParameters

    def pair(
        self, photographs: Photographs, pair: Pair, seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        def another(rng: np.random.Generator) -> NDArray[np.uint8]:
            """Of the same split."""
            names = photographs.splits[pair.split]
            return photographs.read(names[int(rng.integers(len(names)))])[:, :, ::-1]

        rng = np.random.default_rng([seed, pair.number, *pair.photograph.encode()])
        sharp = photographs.read(pair.photograph)[:, :, ::-1]
        blurred, sharp = blurred_pair(sharp, rng, self.parameters, other=another)
        return blurred[:, :, ::-1], sharp[:, :, ::-1]

    def settings(self) -> dict[str, Any]:
        values = {name: _listed(value) for name, value in asdict(self.parameters).items()}
        return {'model': 'shake6d', 'shake_recipe': SHAKE_RECIPE, 'parameters': values}


def _listed(value: Any) -> Any:
    return [float(each) for each in value] if isinstance(value, tuple | list) else float(value)


class Written:
    """`written[i]` writes the pair `missing[i]`."""

    def __init__(
        self, output: Path, photographs: Photographs, model: KernelBlur | ShakeBlur, per_image: int, seed: int
    ) -> None:
        self.output, self.photographs, self.model, self.seed = output, photographs, model, seed
        self.pairs = photographs.pairs(per_image)
        self.missing = self.pairs

    def __len__(self) -> int:
        return len(self.missing)

    def __getitem__(self, index: int) -> None:
        pair = self.missing[index]
        blurred, sharp = self.model.pair(self.photographs, pair, self.seed)
        for role, image in (('input', blurred), ('target', sharp)):
            write_image(self.output / pair.split / role / pair.name, image)


def is_there(output: Path, pair: Pair) -> bool:
    files = (output / pair.split / role / pair.name for role in ('input', 'target'))
    return all(path.is_file() and path.stat().st_size for path in files)  # empty: after a power cut


def folders_of(output: Path, splits: Iterable[str]) -> list[Path]:
    return [output / split / role for split in splits for role in ('input', 'target')]


def settings_of(output: Path) -> dict[str, Any] | None:
    """Of the set that is there; none: there is none. Raises DataError if they cannot be read."""
    path = output / SETTINGS_FILE
    try:
        settings = json.loads(path.read_bytes())
        photographs = settings['photographs']
        named = all(
            split in PHOTOGRAPHS and [*map(str, names)] == names for split, names in photographs.items()
        )
        if named and isinstance(settings['per_image'], int):
            return settings
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise DataError(
        f'{path}: found no settings of a set; allowed: those of this script; --overwrite replaces them'
    )


def own_files(output: Path, splits: Mapping[str, Iterable[str]]) -> list[Path]:
    """What is in the folders of a set of photographs by split. Raises FileExistsError if anything else is."""
    stems = {Path(name).stem for names in splits.values() for name in names}
    folders = [folder for folder in folders_of(output, splits) if folder.is_dir()]
    for folder in folders:
        remove_leftovers(folder)
    found = [path for folder in folders for path in sorted(folder.iterdir())]
    for path in found:
        stem, _, number = path.stem.rpartition('-')
        if not (path.is_file() and path.suffix == '.png' and stem in stems and number.isdecimal()):
            raise FileExistsError(f'{path} is not from this script; choose another --output or move it away')
    return found


def clear(output: Path, splits: Mapping[str, Iterable[str]]) -> None:
    """Delete an earlier set, of photographs by split. Raises FileExistsError, and deletes none of it, if its folders
    hold anything else."""
    for path in own_files(output, splits):
        path.unlink()
    (output / SETTINGS_FILE).unlink(missing_ok=True)  # last: it says which files are the set's
    # An empty folder looks like a set.
    for folder in [*folders_of(output, splits), *(output / split for split in splits)]:
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()


def write_sheet(path: Path, output: Path, pairs: list[Pair]) -> None:
    """The middles of some pairs, sharp and then blurred, in rows."""
    chosen = [
        pairs[place] for place in np.linspace(0, len(pairs) - 1, min(len(pairs), SHEET_PAIRS)).astype(int)
    ]
    pictures = [
        _middle(decode(picture.read_bytes(), str(picture), channels=3)[:, :, ::-1])
        for pair in chosen
        for picture in (output / pair.split / role / pair.name for role in ('target', 'input'))
    ]
    in_row = min(2 * SHEET_ROW, len(pictures))
    pictures += [np.zeros_like(pictures[0])] * (-len(pictures) % in_row)
    rows = [np.hstack(pictures[start : start + in_row]) for start in range(0, len(pictures), in_row)]
    write_image(path, np.vstack(rows))


def _middle(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    square = np.zeros((SHEET_SIDE, SHEET_SIDE, 3), np.uint8)
    height, width = (min(side, SHEET_SIDE) for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    square[:height, :width] = image[top : top + height, left : left + width]
    return square


def blur_model(
    model: str,
    blur_length: tuple[float, float] | None,
    noise: float | None,
    shake: tuple[float, float] | None,
    parameters: Mapping[str, Any] | None,
) -> KernelBlur | ShakeBlur:
    """Raises ValueError on arguments that make no sense, or belong to another model."""
    if model not in MODELS:
        raise ValueError(f'model: found {model}; allowed: {", ".join(MODELS)}')
    foreign: dict[str, Any] = {'shake': shake, 'parameters': parameters}
    if model == 'shake6d':
        foreign = {'blur_length': blur_length, 'noise': noise}
    for name, value in foreign.items():
        if value is not None:
            raise ValueError(f'{name}: found {value}; allowed: nothing, with the model {model}')
    if model == 'shake6d':
        given = dict(parameters or {})
        if shake is not None:
            if 'shake' in given:
                raise ValueError(
                    f'parameters: found shake={given["shake"]} beside shake {shake}; allowed: one of them'
                )
            given['shake'] = tuple(shake)
        known = [option.name for option in fields(BlurParameters)]
        for name in given:
            if name not in known:
                raise ValueError(f'parameters: found {name}; allowed: {", ".join(known)}')
        return ShakeBlur(BlurParameters(**given))
    low, high = BLUR_LENGTH if blur_length is None else blur_length
    noise = NOISE if noise is None else noise
    if not 0 <= low <= high < 1000:
        raise ValueError(f'blur_length: found {low:g} {high:g}; allowed: 0 ≤ lo ≤ hi < 1000 pixels')
    if not 0 <= noise <= 255:
        raise ValueError(f'noise: found {noise:g}; allowed: 0 to 255')
    return KernelBlur((low, high), noise)


def synthesize(
    output: str | Path = DEFAULT_OUTPUT,
    seed: int = 0,
    per_image: int = 2,
    blur_length: tuple[float, float] | None = None,
    noise: float | None = None,
    overwrite: bool = False,
    sharp_dir: str | Path | None = None,
    model: str = 'kernel',
    shake: tuple[float, float] | None = None,
    parameters: Mapping[str, Any] | None = None,
    workers: int = 0,
    sheet: str | Path | None = None,
) -> dict[str, int]:
    """Make the set, or what is missing of it.

    Args:
        output: folder of the set.
        seed: of all that is random.
        per_image: blurred versions of every photograph; with kernels: their number.
        blur_length: kernels: least and largest length of the camera's path, in pixels, uniform between them; none:
            BLUR_LENGTH.
        noise: kernels: standard deviation in steps of 1/255; none: NOISE.
        overwrite: replace a set that is finished, or has other settings.
        sharp_dir: folder of photographs; none: the built-in ones.
        model: one of MODELS.
        shake: shake6d: least and largest length of the camera's path, in % of a picture's longer side; none: that of
            BlurParameters.
        parameters: shake6d: fields of BlurParameters that are not to be as they are by default.
        workers: processes; 0: this one alone. The bytes do not depend on it.
        sheet: picture to write, of some sharp and blurred pictures side by side.

    Returns the number of pairs written, {'train': n, 'val': m}; all are 0 if the set was there already.
    Raises FileExistsError if there is a set with other settings, finished or not, or a set that does not say its
    settings (unless `overwrite`), or someone's own images; ValueError on arguments that make no sense, on photographs
    that cannot be read and on what cannot be written.
    """
    blurring = blur_model(model, blur_length, noise, shake, parameters)
    if per_image < 1:
        raise ValueError(f'per_image: found {per_image}; allowed: 1 or more')
    if seed < 0:
        raise ValueError(f'seed: found {seed}; allowed: 0 or more')
    if workers < 0:
        raise ValueError(f'workers: found {workers}; allowed: 0 or more')
    if sheet is not None and Path(sheet).suffix not in SHEET_SUFFIXES:
        raise ValueError(f'sheet: found {sheet}; allowed: a file ending in {" or ".join(SHEET_SUFFIXES)}')

    output = Path(output)
    photographs = Photographs.of(None if sharp_dir is None else Path(sharp_dir))
    settings = {
        'recipe': RECIPE,
        'photographs': {split: list(names) for split, names in photographs.splits.items()},
        'seed': seed,
        'per_image': per_image,
        **blurring.settings(),
        **({} if photographs.folder is None else {'sharp_dir': str(photographs.folder.root)}),
    }
    if photographs.folder is not None:
        of_the_set = [folder.resolve() for folder in folders_of(output, PHOTOGRAPHS)]
        if photographs.folder.root.resolve() in of_the_set:
            raise ValueError(
                f'sharp_dir: found {sharp_dir}, a folder of the set to be made; allowed: another one'
            )
    written = Written(output, photographs, blurring, per_image, seed)
    try:
        with made_folder(output), lock_file(output / '.lock'):
            _make_alone(output, settings, written, workers, overwrite)
    except InUseError as error:
        raise DataError(f'{output}: {error}') from None
    if sheet is not None:
        write_sheet(Path(sheet), output, written.pairs)
    splits = [pair.split for pair in written.missing]
    return {split: splits.count(split) for split in photographs.splits}


def _make_alone(
    output: Path, settings: dict[str, Any], written: Written, workers: int, overwrite: bool
) -> None:
    try:
        before = settings_of(output)
    except DataError:
        if not overwrite:
            raise
        before = None
    goes_on = before is not None and _goes_on(before, settings)
    if not overwrite:
        if before is None:
            found = [path for folder in folders_of(output, PHOTOGRAPHS) for path in folder.glob('*')]
            if found:
                raise FileExistsError(
                    f'{output} holds {found[0].relative_to(output)} and no {SETTINGS_FILE}, which would say that it is '
                    'from this script; --overwrite replaces what has the name of a pair to be made'
                )
        elif not goes_on:
            kind = 'an unfinished set' if UNFINISHED in before else 'a set'
            raise FileExistsError(f'{output} holds {kind} made with other settings; --overwrite replaces it')
    splits: dict[str, list[str]] = {}
    for each in (before, settings):
        for split, names in each['photographs'].items() if each else ():
            splits.setdefault(split, []).extend(names)
    if overwrite and not (goes_on and UNFINISHED in before):
        clear(output, splits)
    else:
        written.missing = [pair for pair in written.pairs if not is_there(output, pair)]
        if not written.missing and before == settings:
            return
        own_files(output, splits)
    for folder in folders_of(output, written.photographs.splits):
        folder.mkdir(parents=True, exist_ok=True)
    write_settings(output, {UNFINISHED: True, **settings})  # so that another run knows whose the images are
    in_parallel(written, workers, 'synthesize_blur', lambda _: None)
    write_settings(output, settings)


def _goes_on(before: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether a set is a part of the one to be made."""
    apart = ('per_image', UNFINISHED)
    alike = [{key: value for key, value in each.items() if key not in apart} for each in (before, settings)]
    return alike[0] == alike[1] and before['per_image'] <= settings['per_image']


def write_settings(output: Path, settings: dict[str, Any]) -> None:
    atomic_write(output / SETTINGS_FILE, (json.dumps(settings, indent=2) + '\n').encode())


def parameter(setting: str) -> tuple[str, Any]:
    """KEY=VALUE, whose value is YAML. Raises argparse.ArgumentTypeError."""
    key, equals, text = setting.partition('=')
    try:
        value = yaml_value(text)
    except OptionError:
        value = None
    if not (key and equals) or value is None:
        raise argparse.ArgumentTypeError(f"found {setting}; allowed: KEY=VALUE, as video=1 or 'shake=[0, 3]'")
    return key, value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n\n')[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--output', type=expanded, default=DEFAULT_OUTPUT, help='folder of the set')
    parser.add_argument('--sharp_dir', type=expanded, help='folder of photographs; none: built-in ones')
    parser.add_argument('--model', choices=MODELS, default='kernel', help='how to blur')
    parser.add_argument('--seed', type=int, default=0, help='of all that is random')
    parser.add_argument('--per_image', type=int, default=2, help='pairs from each photograph')
    parser.add_argument(
        '--blur_length', type=float, nargs=2, metavar=('LO', 'HI'),
        help=f"kernel: length of the camera's path in pixels; none: {BLUR_LENGTH[0]:g} {BLUR_LENGTH[1]:g}",
    )  # fmt: skip
    parser.add_argument(
        '--noise', type=float, help=f'kernel: standard deviation, in steps of 1/255; none: {NOISE:g}'
    )
    parser.add_argument(
        '--shake', type=float, nargs=2, metavar=('LO', 'HI'),
        help="shake6d: length of the camera's path, in %% of a picture's longer side; none: "
        + ' '.join(f'{value:g}' for value in BlurParameters().shake),
    )  # fmt: skip
    parser.add_argument(
        '--parameters', type=parameter, nargs='+', action='extend', metavar='KEY=VALUE',
        help='shake6d: other keys of Dataset_SyntheticBlur; options/schema.json says what each means',
    )  # fmt: skip
    parser.add_argument('--workers', type=int, default=0, help='processes; 0: this one alone')
    parser.add_argument(
        '--sheet', type=expanded, help='.png or .jpg to write: sharp and blurred pictures side by side'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace a set that is finished, or has other settings'
    )
    args = parser.parse_args(arguments)
    if args.parameters is not None:
        keys = [key for key, _ in args.parameters]
        for key in keys:
            if keys.count(key) > 1:
                parser.error(f'--parameters: found {key} {keys.count(key)} times; allowed: once')
        args.parameters = dict(args.parameters)
    print_any_name()
    try:
        with ending_cleanly():
            counts = synthesize(**vars(args))
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a process has died
        parser.exit(1, f'{parser.prog}: {" ".join(str(error).splitlines())}\n')
    except KeyboardInterrupt:
        return 130
    if any(counts.values()):
        titles = {'train': 'training', 'val': 'validation'}
        print(
            f'{args.output}: {" and ".join(f"{n} {titles[split]}" for split, n in counts.items())} pairs written'
        )
    else:
        print(f'{args.output}: already there with these settings, nothing to do')
    return 0


if __name__ == '__main__':
    sys.exit(main())
