"""Cuts the SIDD photographs into the crops that the paper trains real denoising on, as PNG files.

    python Denoising/generate_patches_sidd.py    # train/SIDD/{input_crops,target_crops}

All paths are in Denoising/Datasets. download_data.py puts the photographs into Downloads/SIDD/<scene>: noisy ones with
NOISY in their names, and their partners with GT in its place. Each pair is cut into 512×512 pixels every 384 and along
the last row and column, row by row: <noisy photograph>-<n>.png, n from 1. The validation crops, val/SIDD, are
downloaded.

Repeating the command writes what is missing; another image with the name of a crop is never replaced. Exit status: 0 if
the folders hold exactly these crops, 1 if not, 2 on a wrong argument, 130 after Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('Denoising.generate_patches_sidd'))

import argparse
from functools import partial

from basicsr.data import crop_files
from basicsr.data.crop_files import grid_crops
from basicsr.data.layout import files_of
from basicsr.data.named_images import NamedImages
from basicsr.data.sources import FileSource
from basicsr.tasks import REAL_DENOISING
from basicsr.utils.errors import DataError
from basicsr.utils.files import absolute

PARTS = {'input': '*/*NOISY*', 'target': '*/*GT*'}


def parser() -> argparse.ArgumentParser:
    description = 'Cut the SIDD photographs into the crops to train on.'
    return crop_files.parser(description, REAL_DENOISING.datasets, 512, 384)


def photographs(folder: Path) -> dict[str, FileSource]:
    """The noisy and the clean photographs, both by the names of the noisy ones. Raises DataError."""
    found = {kind: files_of(folder, part) for kind, part in PARTS.items()}
    names = {texts: path.stem for texts, path in found['input']}
    if not names:
        raise DataError(f'{folder}: found no photographs {PARTS["input"]}')
    return {
        kind: FileSource(
            folder, ((names.get(texts, path.stem), str(path.relative_to(folder))) for texts, path in files)
        )
        for kind, files in found.items()
    }


def main(args: argparse.Namespace) -> None:
    datasets = absolute(args.datasets)
    try:
        images = NamedImages(photographs(datasets / 'Downloads' / 'SIDD'))
    except DataError as error:
        how = 'python Denoising/download_data.py --data train/SIDD'
        raise DataError(f'{error}; {how} gets the photographs') from None
    crops_of = partial(grid_crops, size=args.crop_size, stride=args.stride)
    folders = {kind: datasets / 'train' / 'SIDD' / f'{kind}_crops' for kind in PARTS}
    crop_files.cut(images, crops_of, folders, args.workers)
