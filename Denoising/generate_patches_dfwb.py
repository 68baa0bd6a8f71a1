"""Cuts the images of DIV2K, Flickr2K, WaterlooED and BSD400 into the crops that the paper trains Gaussian denoising on.

    python Denoising/generate_patches_dfwb.py                        # train/DFWB
    python Denoising/generate_patches_dfwb.py --sets DIV2K BSD400    # without the other two

All paths are in Denoising/Datasets, where download_data.py puts the images: Downloads/<set>. An image whose sides are
both longer than 800 pixels is cut into 512×512 pixels every 416 and along the last row and column, row by row:
<set>-<image>-<n>.png, n from 1. Others are not cut: <set>-<image>.png.

Repeating the command writes what is missing; another image with the name of a crop is never replaced. Exit status: 0 if
the folder holds exactly the crops of these sets, 1 if not, 2 on a wrong argument, 130 after Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('Denoising.generate_patches_dfwb'))

import argparse
from collections.abc import Iterable
from functools import partial

import numpy as np

from basicsr.data import crop_files
from basicsr.data.crop_files import grid_crops, shape_of
from basicsr.data.crops import Window
from basicsr.data.layout import files_of
from basicsr.data.named_images import NamedImages
from basicsr.data.sources import FileSource
from basicsr.tasks import GAUSSIAN_COLOR_DENOISING
from basicsr.utils.cli import at_least
from basicsr.utils.errors import DataError
from basicsr.utils.files import absolute

SETS = ['DIV2K', 'Flickr2K', 'WaterlooED', 'BSD400']


def parser() -> argparse.ArgumentParser:
    description = 'Cut the images of four sets into the crops to train on.'
    p = crop_files.parser(description, GAUSSIAN_COLOR_DENOISING.datasets, 512, 416)
    p.add_argument(
        '--sets',
        nargs='+',
        choices=SETS,
        default=SETS,
        help='only these, in a folder without crops of others; default: all of them',
    )
    p.add_argument(
        '--max_whole',
        type=at_least(0),
        default=800,
        metavar='N',
        help='do not cut images with a side of N pixels or fewer; default: %(default)s',
    )
    return p


def main(args: argparse.Namespace) -> None:
    datasets = absolute(args.datasets)
    downloads = datasets / 'Downloads'
    found = {name: files_of(downloads / name, '*') for name in SETS if name in args.sets}
    if missing := ' '.join(name for name, files in found.items() if not files):
        raise DataError(
            f'{downloads}: found no images of {missing}; allowed: those that python Denoising/download_data.py --data '
            f'{missing} gets; or choose others with --sets'
        )
    paths = ((name, path) for name, files in found.items() for _, path in files)
    named = ((f'{name}-{path.stem}', str(path.relative_to(downloads))) for name, path in paths)
    images = NamedImages({'gt': FileSource(downloads, named)})
    crops_of = partial(large_crops, size=args.crop_size, stride=args.stride, max_whole=args.max_whole)
    crop_files.cut(images, crops_of, {'gt': datasets / 'train' / 'DFWB'}, args.workers)


def large_crops(
    name: str, images: dict[str, np.ndarray], size: int, stride: int, max_whole: int
) -> Iterable[tuple[str, Window]]:
    height, width = shape_of(images)
    if min(height, width) > max_whole:
        return grid_crops(name, images, size, stride)
    return [(name, Window(0, 0, height, width))]
