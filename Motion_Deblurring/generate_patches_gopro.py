"""Cuts the GoPro frames into the crops that the paper trains on, and those that it validates on, as PNG files.

    python Motion_Deblurring/generate_patches_gopro.py             # train/GoPro/{input_crops,target_crops}
    python Motion_Deblurring/generate_patches_gopro.py --val       # also val/GoPro/{input_crops,target_crops}
    python Motion_Deblurring/generate_patches_gopro.py --only_val  # only those

All paths are in Motion_Deblurring/Datasets, where download_data.py puts the frames: train/GoPro/{input,target}, and for
validation test/GoPro/{input,target}. A training frame gives <frame>-<n>.png, n from 1: 512×512 pixels every 256 and
along the last row and column, row by row. A test frame gives <frame>.png: the 256×256 pixels in its centre.

Repeating the command writes what is missing; another image with the name of a crop is never replaced. Exit status: 0 if
the folders hold exactly these crops, 1 if not, 2 on a wrong argument, 130 after Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('Motion_Deblurring.generate_patches_gopro'))

import argparse
import shlex
from functools import partial

from basicsr.data import crop_files
from basicsr.data.crop_files import centre_crop, grid_crops
from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.tasks import MOTION_DEBLURRING
from basicsr.utils.errors import DataError
from basicsr.utils.files import ROOT, absolute

DATASETS = MOTION_DEBLURRING.datasets
KINDS = {'lq': 'input', 'gt': 'target'}  # folders of frames; the crops go to <folder>_crops
CENTRE = 256  # pixels of the validation crops


def parser() -> argparse.ArgumentParser:
    p = crop_files.parser(
        'Cut the GoPro frames into the crops to train and to validate on.', DATASETS, 512, 256
    )
    val = p.add_mutually_exclusive_group()
    val.add_argument('--val', action='store_true', help='also cut the validation crops')
    val.add_argument('--only_val', action='store_true', help='cut only these: for training on a pack')
    return p


def main(args: argparse.Namespace) -> None:
    datasets = absolute(args.datasets)
    train = 'train', 'train', partial(grid_crops, size=args.crop_size, stride=args.stride)
    val = 'test', 'val', partial(centre_crop, size=CENTRE)
    chosen = [val] if args.only_val else [train, val] if args.val else [train]
    frames = [frames_of(datasets / source / 'GoPro') for source, _, _ in chosen]  # open all before any work
    for pairs, (_, group, crops_of) in zip(frames, chosen, strict=True):
        folders = {kind: datasets / group / 'GoPro' / f'{folder}_crops' for kind, folder in KINDS.items()}
        crop_files.cut(pairs, crops_of, folders, args.workers)
    if train in chosen:
        print(f'A pack of the same crops takes no more room and is read without decoding: {packing(args)}')


def frames_of(place: Path) -> Dataset_PairedImage:
    """Raises DataError without frames, or if they are not in pairs."""
    folders = {kind: place / folder for kind, folder in KINDS.items()}
    for folder in folders.values():
        if not folder.is_dir():
            data = 'train' if place.parent.name == 'train' else 'GoPro'
            raise DataError(
                f'{folder}: found no such folder; allowed: the frames, which '
                f'python Motion_Deblurring/download_data.py --data {data} gets'
            )
    return Dataset_PairedImage(str(folders['lq']), str(folders['gt']))


def packing(args: argparse.Namespace) -> str:
    """The command that packs the frames."""
    folder = args.datasets / 'train' / 'GoPro'
    if args.datasets == DATASETS:
        folder = folder.relative_to(ROOT)  # the README's commands start at the root of the repository
    how = f'python scripts/prepare_data.py --crop_size {args.crop_size} --stride {args.stride}'
    where = ['--input_dir', folder / 'input', '--target_dir', folder / 'target', '--output', f'{folder}.pack']
    return f'{how} {shlex.join(map(str, where))}'
