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
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from basicsr.data.crop_files import write_crops
from basicsr.data.crops import Window, centre_window, named_crops
from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.tasks import MOTION_DEBLURRING
from basicsr.utils.cli import at_least, file_or_folder
from basicsr.utils.errors import DataError
from basicsr.utils.files import ROOT, absolute
from basicsr.utils.parallel import processors

DATASETS = MOTION_DEBLURRING.datasets
KINDS = {'lq': 'input', 'gt': 'target'}  # folders of frames; the crops go to <folder>_crops
CENTRE = 256  # pixels of the validation crops


class Crops(NamedTuple):
    """`source` and `place` are below the folder of data sets; without a stride, only the centre is cut out."""

    source: str
    place: str
    data: str  # for download_data.py
    size: int
    stride: int | None = None

    def windows(self, name: str, height: int, width: int) -> Iterator[tuple[str, Window]]:
        if self.stride is None:
            yield name, centre_window(height, width, self.size)
        else:
            yield from named_crops(name, height, width, self.size, self.stride)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description='Cut the GoPro frames into the crops to train and to validate on.')
    p.add_argument(
        '--datasets',
        type=file_or_folder,
        default=DATASETS,
        metavar='FOLDER',
        help='the folder of data sets; default: Motion_Deblurring/Datasets of the repository',
    )
    number = partial(p.add_argument, metavar='N')
    number('--crop_size', type=at_least(1), default=512, help='of the training crops; default: %(default)s')
    number('--stride', type=at_least(1), default=256, help='pixels between them; default: %(default)s')
    val = p.add_mutually_exclusive_group()
    val.add_argument('--val', action='store_true', help='also cut the validation crops')
    val.add_argument('--only_val', action='store_true', help='cut only these: for training on a pack')
    number(
        '--workers',
        type=at_least(0),
        default=processors(),
        help='processes that cut; 0: none but this one; default: one for each processor',
    )
    return p


def main(args: argparse.Namespace) -> None:
    datasets = absolute(args.datasets)
    train = Crops('train/GoPro', 'train/GoPro', 'train', args.crop_size, args.stride)
    val = Crops('test/GoPro', 'val/GoPro', 'GoPro', CENTRE)
    chosen = [val] if args.only_val else [train, val] if args.val else [train]
    frames = [frames_of(datasets, crops) for crops in chosen]  # all of them, before any work
    for crops, pairs in zip(chosen, frames, strict=True):
        place = datasets / crops.place
        folders = {kind: place / f'{folder}_crops' for kind, folder in KINDS.items()}
        count, written = write_crops(pairs, crops.windows, folders, args.workers, f'cutting {crops.place}')
        files = 2 * count
        kept = '' if written == files else f' ({files - written:,} of the {files:,} files existed already)'
        print(f'{place}: {count:,} pairs of crops, of {len(pairs):,} pairs of frames{kept}', flush=True)
    if train in chosen:
        print(f'A pack of the same crops takes no more room and is read without decoding: {packing(args)}')


def frames_of(datasets: Path, crops: Crops) -> Dataset_PairedImage:
    """Raises DataError without frames, or if they are not in pairs."""
    folders = {kind: datasets / crops.source / folder for kind, folder in KINDS.items()}
    for folder in folders.values():
        if not folder.is_dir():
            raise DataError(
                f'{folder}: found no such folder; allowed: the frames, which '
                f'python Motion_Deblurring/download_data.py --data {crops.data} gets'
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
