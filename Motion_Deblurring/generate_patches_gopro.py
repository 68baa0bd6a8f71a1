"""Cuts the GoPro frames into the crops that the paper trains on, and those that it validates on, as PNG files.

    python Motion_Deblurring/generate_patches_gopro.py             # train/GoPro/{input_crops,target_crops}
    python Motion_Deblurring/generate_patches_gopro.py --val       # also val/GoPro/{input_crops,target_crops}
    python Motion_Deblurring/generate_patches_gopro.py --only_val  # only those

All of it in Motion_Deblurring/Datasets, of the frames that download_data.py has put there: train/GoPro/{input,target}
and, to validate, test/GoPro/{input,target}. A training frame becomes <frame>-<n>.png, n from 1, 512×512 pixels
every 256 and those at the last row and column, row by row; a test frame becomes <frame>.png, the 256×256 pixels in
its middle.

Started again, it goes on where it was ended: a crop that is there and whole is not written again, and another image
under a crop's name is never replaced. Exit status: 0 if all crops are there, and nothing else; 1 if not; 2 on a wrong
argument, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

# Run as a script, Python looks for modules in Motion_Deblurring/, and the package may not be installed.
if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from basicsr.utils.arguments import too_small
from basicsr.utils.console import print_any_name
from basicsr.utils.errors import InUseError
from basicsr.utils.files import ROOT, absolute, lock_file, remove_leftovers
from basicsr.utils.signals import ending_cleanly

if TYPE_CHECKING:
    import numpy as np

    from basicsr.data.crops import Window
    from basicsr.data.paired_image_dataset import Dataset_PairedImage

DATASETS = ROOT / 'Motion_Deblurring' / 'Datasets'
KINDS = {'lq': 'input', 'gt': 'target'}  # folders of the frames; of the crops: <folder>_crops
CENTRE = 256  # pixels of the validation crops


class Task(NamedTuple):
    """`source` and `place` are below the folder of data sets; without a stride only the centre is cut out."""

    source: str
    place: str
    data: str  # for download_data.py
    size: int
    stride: int | None = None

    def crops_of(self, name: str, height: int, width: int) -> Iterator[tuple[str, Window]]:
        from basicsr.data.crops import centre_window, named_crops

        if self.stride is None:
            yield name, centre_window(height, width, self.size)
        else:
            yield from named_crops(name, height, width, self.size, self.stride)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description='Cut the GoPro frames into the crops to train and to validate on.')
    p.add_argument(
        '--datasets',
        type=Path,
        default=DATASETS,
        metavar='FOLDER',
        help='the folder of data sets; default: Motion_Deblurring/Datasets of the repository',
    )
    p.add_argument(
        '--crop_size', type=int, default=512, metavar='N', help='of the training crops; default: %(default)s'
    )
    p.add_argument(
        '--stride', type=int, default=256, metavar='N', help='pixels between them; default: %(default)s'
    )
    val = p.add_mutually_exclusive_group()
    val.add_argument('--val', action='store_true', help='also cut the validation crops')
    val.add_argument('--only_val', action='store_true', help='cut only these: for training on a pack')
    p.add_argument(
        '--workers',
        type=int,
        default=os.cpu_count() or 1,
        metavar='N',
        help='processes that cut; 0: cut in this one; default: as many as there are processors',
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser()
    args = arguments.parse_args(argv)
    if mistake := too_small(args, crop_size=1, stride=1, workers=0):
        arguments.error(mistake)
    print_any_name()
    try:
        with ending_cleanly():
            return cut_all(args)
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a process that cuts has died
        arguments.exit(1, f'{arguments.prog}: {" ".join(str(error).splitlines())}\n')
    except KeyboardInterrupt:
        return 130


def cut_all(args: argparse.Namespace) -> int:
    datasets = absolute(args.datasets)
    train = Task('train/GoPro', 'train/GoPro', 'train', args.crop_size, args.stride)
    val = Task('test/GoPro', 'val/GoPro', 'GoPro', CENTRE)
    tasks = [val] if args.only_val else [train, val] if args.val else [train]
    frames = [frames_of(datasets, task) for task in tasks]  # all of them, before any work
    for task, pairs in zip(tasks, frames, strict=True):
        print(cut(datasets, task, pairs, args.workers), flush=True)
    if train in tasks:
        print(f'A pack of the same crops takes no more room and is read without decoding: {packing(args)}')
    return 0


def packing(args: argparse.Namespace) -> str:
    folder = args.datasets / 'train' / 'GoPro'
    if args.datasets == DATASETS:
        folder = folder.relative_to(ROOT)  # as in the README, from the root of the repository
    how = f'python scripts/prepare_data.py --crop_size {args.crop_size} --stride {args.stride}'
    where = ['--input_dir', folder / 'input', '--target_dir', folder / 'target', '--output', f'{folder}.pack']
    return f'{how} {shlex.join(map(str, where))}'


def frames_of(datasets: Path, task: Task) -> Dataset_PairedImage:
    """Raises DataError if there are none, or not in pairs."""
    from basicsr.data.paired_image_dataset import Dataset_PairedImage
    from basicsr.utils.errors import DataError

    folders = {kind: datasets / task.source / folder for kind, folder in KINDS.items()}
    for folder in folders.values():
        if not folder.is_dir():
            raise DataError(
                f'{folder}: found no such folder; allowed: the frames, which '
                f'python Motion_Deblurring/download_data.py --data {task.data} gets'
            )
    return Dataset_PairedImage(str(folders['lq']), str(folders['gt']))


# --- cutting ------------------------------------------------------------------------------------------------


def cut(datasets: Path, task: Task, pairs: Dataset_PairedImage, workers: int) -> str:
    """What to say of the crops when all are there. Raises DataError, or RuntimeError if a process dies."""
    from basicsr.utils.errors import DataError
    from basicsr.utils.parallel import in_parallel

    place = datasets / task.place
    folders = {kind: place / f'{folder}_crops' for kind, folder in KINDS.items()}
    try:
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        with lock_file(place / '.cutting.lock'):
            try:
                for folder in folders.values():
                    remove_leftovers(folder)
                done = in_parallel(
                    Cutter(pairs, task, folders), workers, f'cutting {task.place}', lambda crops: crops
                )
            finally:
                for folder in folders.values():
                    remove_leftovers(folder)  # of processes that were ended
    except InUseError as error:
        raise DataError(f'{place}: {error}') from None
    except OSError as error:
        raise DataError(f'{place}: cannot be written: {error.strerror or error}') from None
    for folder in folders.values():
        refuse_others(folder, {name for names, _ in done for name in names})
    count, written = sum(len(names) for names, _ in done), sum(written for _, written in done)
    files = 2 * count
    kept = '' if written == files else f' ({files - written:,} of the {files:,} files were there already)'
    return f'{place}: {count:,} pairs of crops, of {len(pairs):,} pairs of frames{kept}'


def refuse_others(folder: Path, names: set[str]) -> None:
    """Raises DataError on images that are no crops: they would be trained on."""
    from basicsr.data.sources import FolderSource
    from basicsr.utils.errors import DataError
    from basicsr.utils.text import listed

    others = [name for name in FolderSource(folder).names if name not in names]
    if others:
        raise DataError(
            f'{folder}: found {len(others)} image{"s" * (len(others) > 1)} that {"are" if len(others) > 1 else "is"} '
            f'none of these crops: {listed(others)}; allowed: these alone'
        )


class Cutter:
    """`cutter[i]` writes the crops of a pair of frames: their names, and how many files were not there."""

    def __init__(self, pairs: Dataset_PairedImage, task: Task, folders: dict[str, Path]) -> None:
        self.pairs, self.task, self.folders = pairs, task, folders

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[list[str], int]:
        frames = self.pairs.read(index)
        height, width = frames['lq'].shape[:2]
        crops = list(self.task.crops_of(self.pairs.names[index], height, width))
        written = 0
        for name, (top, left, rows, columns) in crops:
            for kind, frame in frames.items():
                path = self.folders[kind] / f'{name}.png'
                written += write(path, frame[top : top + rows, left : left + columns])
        return [name for name, _ in crops], written


def write(path: Path, pixels: np.ndarray) -> bool:
    """Whether it was not there. Raises DataError."""
    from basicsr.images.writer import write_png
    from basicsr.utils.errors import DataError, ImageFileError

    if is_there(path, pixels):
        return False
    try:
        write_png(path, pixels)
    except ImageFileError as error:
        raise DataError(str(error)) from None
    return True


def is_there(path: Path, pixels: np.ndarray) -> bool:
    """False also where a file is no whole image: that of a disk that failed. Raises DataError on another image."""
    import numpy as np

    from basicsr.images.decode import decode
    from basicsr.utils.errors import DataError

    try:
        encoded = path.read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DataError(f'{path}: cannot be read: {error.strerror}') from None
    try:
        found = decode(encoded, str(path), channels=3)
    except DataError:
        return False
    if found.dtype != pixels.dtype or not np.array_equal(found, pixels):
        raise DataError(
            f'{path}: found another image; allowed: this crop of the frame, or nothing; remove the crops of other '
            'frames or other settings first'
        )
    return True


if __name__ == '__main__':
    sys.exit(main())
