"""Compare the blur of sets of pairs, for example of a synthetic and a real set.

    python scripts/blur_statistics.py datasets/synthetic_blur/train Motion_Deblurring/Datasets/test/GoPro
    python scripts/blur_statistics.py SET SET SET --json > statistics.json

A set is a folder with `input` (blurred) and `target` (sharp), whose images have the same names. The table has means and
quantiles of:

- PSNR of the blurred image, in dB; at most 100.
- Level: mean of the blurred minus mean of the sharp image, in levels of 0 to 255. Averaging in linear light makes it
  positive, averaging in sRGB does not.
- Extent of the blur, in pixels: the standard deviation of the Gaussian after which the sharp image has as much gradient
  energy as the blurred one, up to 16. It needs no alignment; an edge that moves by L pixels has L/(2√π) = 0.28·L. It is
  measured in tiles of about 128 pixels, without those whose sharp gradient is below 2 levels; "within an image" is the
  mean over images of the standard deviation over tiles.
- Gradients of luma between neighbouring pixels, by magnitude in levels, in % of pixels.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('scripts.blur_statistics'))

import argparse
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.metrics.psnr_ssim import calculate_psnr
from basicsr.utils.cli import at_least
from basicsr.utils.errors import DataError
from basicsr.utils.files import absolute, as_json
from basicsr.utils.parallel import in_parallel

Floats = NDArray[np.floating[Any]]

TILE = 128  # pixels; a smaller image is one tile
LEAST_GRADIENT = 2.0  # root mean square over a tile, in levels; below, there is no texture to measure blur by
SIGMAS = np.concatenate([[0.0], np.geomspace(0.2, 16, 24)])  # pixels; interpolated in between
BINS = {'0–1': 0, '1–2': 1, '2–4': 2, '4–8': 4, '8–16': 8, '16–32': 16, '32–64': 32, '64–128': 64, '128–': 128}
QUANTILES = (10, 25, 50, 75, 90)
TITLES = {
    'psnr': 'PSNR of the blurred image, dB',
    'level': 'level, blurred less sharp',
    'extent': 'extent of the blur, pixels',
    'blurred_gradients': 'gradients of blurred images, %',
    'sharp_gradients': 'gradients of sharp images, %',
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description='Compare the blur of sets of pairs.')
    p.add_argument('sets', type=Path, nargs='+', metavar='SET', help='folder with input/ and target/')
    p.add_argument('--json', action='store_true', help='print JSON instead of a table')
    p.add_argument('--workers', type=at_least(0), default=0, help='worker processes; 0: none')
    return p


def main(args: argparse.Namespace) -> None:
    sets = {str(folder): statistics(folder, args.workers) for folder in args.sets}
    if args.json:
        return print(as_json(sets))
    for number, (folder, values) in enumerate(sets.items(), 1):
        print(f'[{number}] {folder}: {values["pairs"]} pairs')
    print('\n' + ' ' * 34 + ''.join(f'{f"[{number}]":>9}' for number in range(1, len(sets) + 1)))
    for key, title in TITLES.items():
        print(title)
        for row in next(iter(sets.values()))[key]:
            print(f'  {row:32}' + ''.join(f'{values[key][row]:9.2f}' for values in sets.values()))


def statistics(folder: Path, workers: int = 0) -> dict[str, Any]:
    """Returns the number of pairs in `folder`, and by key of TITLES the figures by row. Raises DataError."""
    roots = {
        f'dataroot_{kind}': str(absolute(folder) / name) for kind, name in (('lq', 'input'), ('gt', 'target'))
    }
    pairs = in_parallel(Measured(Dataset_PairedImage(**roots)), workers, str(folder), lambda pair: pair)
    by_key = {key: [pair[key] for pair in pairs] for key in TITLES}
    spreads = [tiles.std() for tiles in by_key['extent'] if len(tiles) > 1]
    result: dict[str, Any] = {'pairs': len(pairs)}
    for key, values in by_key.items():
        if key.endswith('gradients'):
            result[key] = dict(zip(BINS, (100 * np.mean(values, axis=0)).tolist(), strict=True))
        else:
            every = np.concatenate(values) if any(map(len, values)) else np.array([np.nan])
            quantiles = {f'{share} %': float(np.percentile(every, share)) for share in QUANTILES}
            result[key] = {'mean': float(every.mean()), **quantiles}
    result['extent']['within an image'] = float(np.mean(spreads)) if spreads else 0.0
    return result


class Measured:
    """`measured[i]` holds the figures of pair i, by key of TITLES."""

    def __init__(self, pairs: Dataset_PairedImage) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Floats]:
        images = self.pairs.read(index)
        lq, gt = (
            np.ascontiguousarray((image / 257).round() if image.dtype == np.uint16 else image, np.uint8)
            for image in (images['lq'], images['gt'])
        )
        if min(gt.shape[:2]) < 2:
            height, width = gt.shape[:2]
            raise DataError(f'{self.pairs.files(index)}: found {width}x{height} pixels; allowed: 2x2 or more')
        blurred, sharp = luma(lq), luma(gt)
        return {
            'psnr': np.array([min(calculate_psnr(lq, gt, crop_border=0), 100.0)]),  # infinite for equal images
            'level': np.array([float(blurred.mean() - sharp.mean())]),
            'extent': extents(blurred, sharp),
            'blurred_gradients': histogram(blurred),
            'sharp_gradients': histogram(sharp),
        }


def luma(image: NDArray[np.uint8]) -> Floats:
    """(H, W, 3) → (H, W), 0 to 255, not rounded (ITU-R BT.601)."""
    return image @ np.array([0.299, 0.587, 0.114], np.float32)


def gradient_energy(grey: Floats) -> Floats:
    """(H, W) → (H − 1, W − 1): squared magnitude of the differences to the pixels on the right and below."""
    right, below = grey[:-1, 1:] - grey[:-1, :-1], grey[1:, :-1] - grey[:-1, :-1]
    return right**2 + below**2


def histogram(grey: Floats) -> Floats:
    """Returns the share of pixels whose gradient is in each of BINS."""
    counts, _ = np.histogram(np.sqrt(gradient_energy(grey)), bins=[*BINS.values(), np.inf])
    return counts / counts.sum()


def extents(blurred: Floats, sharp: Floats) -> Floats:
    """Returns the extent of the blur in each tile with texture, (n,)."""
    shape = [max(side // TILE, 1) for side in sharp.shape[::-1]]

    def of_tiles(grey: Floats) -> Floats:
        return cv2.resize(gradient_energy(grey), shape, interpolation=cv2.INTER_AREA).ravel()

    energies = [
        of_tiles(cv2.GaussianBlur(sharp, (0, 0), sigma, borderType=cv2.BORDER_REFLECT) if sigma else sharp)
        for sigma in SIGMAS
    ]
    # Blur reduces the energy, except in tiles that light from outside spreads into; np.interp needs sorted values.
    reduced = np.minimum.accumulate(energies)
    found = of_tiles(blurred)
    return np.array(
        [
            np.interp(-np.log(found[tile] + 1e-9), -np.log(reduced[:, tile] + 1e-9), SIGMAS)
            for tile in np.flatnonzero(energies[0] >= LEAST_GRADIENT**2)
        ]
    )
