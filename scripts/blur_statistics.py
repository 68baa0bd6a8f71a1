"""What the blur of sets of pairs is like, side by side: does a synthetic set resemble a real one?

    python scripts/blur_statistics.py datasets/synthetic_blur/train Motion_Deblurring/Datasets/test/GoPro
    python scripts/blur_statistics.py SET SET SET --json > statistics.json

A set is a folder with the folders `input` (blurred) and `target` (sharp), whose images have the same names.

- **PSNR** of the blurred image against the sharp one, in dB: mean and quantiles over the images.
- **Level**: mean of the blurred image less that of the sharp one, in levels of 0 to 255. Averaging in linear light
  makes pictures brighter, the more so the more contrast it takes away; averaging as they are shown does not.
- **Extent of the blur**, in pixels: the standard deviation of the Gaussian that leaves as much of the sharp image's
  gradient (its energy, the mean of the squared magnitude) as there is in the blurred one. It needs no alignment, and
  is not changed by a shift; noise and compression make it a little smaller. An edge that moves by L
  pixels across itself, at constant speed, has L/(2√π) = 0.28·L. It is taken in tiles of about 128 pixels, those whose
  sharp gradient is under 2 levels left out: mean and quantiles over tiles, and the mean over images of the standard
  deviation of their tiles, which is small where the blur is the same everywhere. It ends at 16 pixels, and a tile
  beside a much stronger edge says little: blur brings that edge's light into it.
- **Gradients** of blurred and sharp images: the share of pixels, in %, by the magnitude of the gradient of luma (levels
  of 0 to 255 between neighbouring pixels). Sharp ones tell whether the scenes are alike.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Run as a script, Python looks for modules in scripts/, and the package may not be installed.
if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
from numpy.typing import NDArray

from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.metrics.psnr_ssim import calculate_psnr
from basicsr.utils.arguments import too_small
from basicsr.utils.console import print_any_name
from basicsr.utils.errors import DataError
from basicsr.utils.files import absolute, as_json
from basicsr.utils.parallel import in_parallel
from basicsr.utils.signals import ending_cleanly

Floats = NDArray[np.floating[Any]]

TILE = 128  # pixels; smaller images are one tile
LEAST_GRADIENT = 2.0  # levels, root of the mean square over a tile: less is no texture that could be blurred
SIGMAS = np.concatenate([[0.0], np.geomspace(0.2, 16, 24)])  # tried, in pixels; in between by interpolation
MAGNITUDES = (0, 1, 2, 4, 8, 16, 32, 64, 128)  # where the classes of the histogram begin


class Statistics:
    """`statistics[i]` is what a pair is like."""

    def __init__(self, pairs: Dataset_PairedImage) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        images = {kind: _eight_bit(image) for kind, image in self.pairs.read(index).items()}
        height, width = images['gt'].shape[:2]
        if min(height, width) < 2:
            raise DataError(
                f'{self.pairs.files(index)}: found {width}x{height} pixels; allowed: 2x2 or more, as gradients are '
                'between neighbours'
            )
        blurred, sharp = luma(images['lq']), luma(images['gt'])
        return {
            'psnr': float(calculate_psnr(images['lq'], images['gt'], crop_border=0)),
            'level': float(blurred.mean() - sharp.mean()),
            'extents': extents(blurred, sharp),
            'blurred_gradients': histogram(blurred),
            'sharp_gradients': histogram(sharp),
        }


def _eight_bit(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.dtype == np.uint16:
        image = (image / 257).round().astype(np.uint8)
    return np.ascontiguousarray(image)


def luma(image: NDArray[np.uint8]) -> Floats:
    """(H, W, 3) → (H, W), 0 to 255, not rounded."""
    return image @ np.array([0.299, 0.587, 0.114], np.float32)


def gradient_energy(grey: Floats) -> Floats:
    """(H, W) → (H − 1, W − 1): the squared magnitude of the difference to the pixels on the right and below."""
    right, below = grey[:-1, 1:] - grey[:-1, :-1], grey[1:, :-1] - grey[:-1, :-1]
    return right**2 + below**2


def histogram(grey: Floats) -> Floats:
    """Shares of pixels whose gradient is in each of MAGNITUDES' classes."""
    counts, _ = np.histogram(np.sqrt(gradient_energy(grey)), bins=[*MAGNITUDES, np.inf])
    return counts / counts.sum()


def extents(blurred: Floats, sharp: Floats) -> Floats:
    """The extent of the blur in every tile with texture, (n,)."""
    shape = [max(side // TILE, 1) for side in sharp.shape[::-1]]

    def of_tiles(grey: Floats) -> Floats:
        return cv2.resize(gradient_energy(grey), shape, interpolation=cv2.INTER_AREA).ravel()

    energies = [
        of_tiles(cv2.GaussianBlur(sharp, (0, 0), sigma, borderType=cv2.BORDER_REFLECT) if sigma else sharp)
        for sigma in SIGMAS
    ]
    left, has_texture = of_tiles(blurred), energies[0] >= LEAST_GRADIENT**2
    # Blurring takes away, so that energies fall as sigma grows. Not always in a tile, into which what is outside
    # spreads; and interp wants what rises.
    fallen = np.minimum.accumulate(energies)
    return np.array(
        [
            np.interp(-np.log(left[tile] + 1e-9), -np.log(fallen[:, tile] + 1e-9), SIGMAS)
            for tile in np.flatnonzero(has_texture)
        ]
    )


def summary(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a set is like, of what its pairs are like."""
    psnrs = np.array([min(pair['psnr'], 100.0) for pair in pairs])  # of equal images it is infinite
    tiles = [pair['extents'] for pair in pairs]
    spreads = [np.std(each) for each in tiles if len(each) > 1]
    return {
        'pairs': len(pairs),
        'psnr': _distribution(psnrs),
        'level': _distribution(np.array([pair['level'] for pair in pairs])),
        'extent': {
            **_distribution(np.concatenate(tiles)),
            'within an image': float(np.mean(spreads)) if spreads else 0.0,
        },
        **{
            kind: {_class_name(place): 100 * float(share) for place, share in enumerate(shares)}
            for kind in ('blurred_gradients', 'sharp_gradients')
            for shares in [np.mean([pair[kind] for pair in pairs], axis=0)]
        },
    }


def _distribution(values: Floats) -> dict[str, float]:
    if not len(values):
        return dict.fromkeys(('mean', '10 %', '25 %', '50 %', '75 %', '90 %'), float('nan'))
    quantiles = {f'{share} %': float(np.percentile(values, share)) for share in (10, 25, 50, 75, 90)}
    return {'mean': float(values.mean()), **quantiles}


def _class_name(place: int) -> str:
    ends = [*MAGNITUDES[1:], None]
    return f'{MAGNITUDES[place]}–{ends[place]}' if ends[place] else f'{MAGNITUDES[place]}–'


def statistics(folder: Path, workers: int = 0) -> dict[str, Any]:
    """Of the pairs in `folder`. Raises DataError."""
    roots = {kind: str(absolute(folder) / name) for kind, name in (('lq', 'input'), ('gt', 'target'))}
    pairs = Dataset_PairedImage(dataroot_lq=roots['lq'], dataroot_gt=roots['gt'])
    return summary(in_parallel(Statistics(pairs), workers, str(folder), lambda pair: pair))


TITLES = {
    'psnr': 'PSNR of the blurred image, dB',
    'level': 'level, blurred less sharp',
    'extent': 'extent of the blur, pixels',
    'blurred_gradients': 'gradients of blurred images, %',
    'sharp_gradients': 'gradients of sharp images, %',
}


def table(sets: dict[str, dict[str, Any]]) -> str:
    """One column for each set."""
    names = [f'[{number}]' for number, _ in enumerate(sets, 1)]
    lines = [
        f'{name} {folder}: {values["pairs"]} pairs'
        for name, (folder, values) in zip(names, sets.items(), strict=True)
    ]
    lines += ['', f'{"":34}' + ''.join(f'{name:>9}' for name in names)]
    for key, title in TITLES.items():
        lines.append(title)
        for row in next(iter(sets.values()))[key]:
            lines.append(f'  {row:32}' + ''.join(f'{values[key][row]:9.2f}' for values in sets.values()))
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Compare the blur of sets of pairs.')
    parser.add_argument('sets', type=Path, nargs='+', metavar='SET', help='folder with input/ and target/')
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    parser.add_argument('--workers', type=int, default=0, help='processes; 0: this one alone')
    args = parser.parse_args(argv)
    if mistake := too_small(args, workers=0):
        parser.error(mistake)
    print_any_name()
    try:
        with ending_cleanly():
            sets = {str(folder): statistics(folder, args.workers) for folder in args.sets}
    except (DataError, RuntimeError) as error:  # RuntimeError: a process has died
        parser.exit(1, f'{parser.prog}: error: {" ".join(str(error).splitlines())}\n')
    except KeyboardInterrupt:
        return 130
    print(as_json(sets) if args.json else table(sets))
    return 0


if __name__ == '__main__':
    sys.exit(main())
