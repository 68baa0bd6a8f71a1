"""Cuts images into crops, as PNG files: the common part of the generate_patches_*.py of the task folders."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from basicsr.data.crops import Window, centre_window, crop_windows, numbered
from basicsr.data.named_images import NamedImages
from basicsr.data.sources import FolderSource
from basicsr.images.reader import decode_image
from basicsr.images.writer import write_png
from basicsr.utils.cli import at_least, file_or_folder
from basicsr.utils.errors import DataError, ImageFileError, InUseError
from basicsr.utils.files import ROOT, lock_file, remove_leftovers
from basicsr.utils.parallel import in_parallel, processors
from basicsr.utils.text import listed

# (name of the images, images by kind) → the names and windows of their crops
CropsOf = Callable[[str, dict[str, np.ndarray]], Iterable[tuple[str, Window]]]


def grid_crops(
    name: str, images: dict[str, np.ndarray], size: int, stride: int
) -> Iterable[tuple[str, Window]]:
    """The windows of `crop_windows`, numbered."""
    return numbered(name, crop_windows(*shape_of(images), size, stride))


def centre_crop(name: str, images: dict[str, np.ndarray], size: int) -> Iterable[tuple[str, Window]]:
    return [(name, centre_window(*shape_of(images), size))]


def shape_of(images: dict[str, np.ndarray]) -> tuple[int, int]:
    """Height and width."""
    height, width = next(iter(images.values())).shape[:2]
    return height, width


def parser(description: str, datasets: Path, size: int, stride: int) -> argparse.ArgumentParser:
    """`datasets`: default folder of data sets. `size`, `stride`: defaults of the training crops."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument(
        '--datasets',
        type=file_or_folder,
        default=datasets,
        metavar='FOLDER',
        help=f'the folder of data sets; default: {datasets.relative_to(ROOT)} of the repository',
    )
    number = partial(p.add_argument, metavar='N')
    number('--crop_size', type=at_least(1), default=size, help='of the training crops; default: %(default)s')
    number('--stride', type=at_least(1), default=stride, help='pixels between them; default: %(default)s')
    number(
        '--workers',
        type=at_least(0),
        default=processors(),
        help='processes that cut; 0: cut in this one; default: one for each processor',
    )
    return p


def cut(images: NamedImages, crops_of: CropsOf, folders: dict[str, Path], workers: int) -> None:
    """Writes crops as `write_crops` does, and prints their number."""
    first = next(iter(folders.values()))
    place = first.parent if len(folders) > 1 else first
    count, written = write_crops(
        images, crops_of, folders, workers, f'cutting {place.parent.name}/{place.name}'
    )
    files = len(folders) * count
    kept = '' if written == files else f' ({files - written:,} of the {files:,} files existed already)'
    each = {1: '', 2: 'pairs of '}.get(len(folders), f'sets of {len(folders)} ')
    print(f'{place}: {count:,} {each}crops, of {len(images):,} {each}images{kept}', flush=True)


def write_crops(
    images: NamedImages, crops_of: CropsOf, folders: dict[str, Path], workers: int, title: str
) -> tuple[int, int]:
    """Writes the crops of all images to the folder of their kind; all folders have the same parent. Returns the number
    of crops of a kind, and of files written: existing crops are kept.

    Raises DataError on unreadable images, on another image with the name of a crop, and on images in the folders that
    are no crops; UserError if a worker process dies.
    """
    place = next(iter(folders.values())).parent
    try:
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        with lock_file(place / '.cutting.lock'):
            try:
                done = in_parallel(Cutter(images, crops_of, folders), workers, title, lambda crops: crops)
            finally:
                for folder in folders.values():
                    remove_leftovers(folder)  # temporary files of processes that were killed
    except InUseError as error:
        raise DataError(f'{place}: {error}') from None
    except OSError as error:
        raise DataError(f'{place}: cannot be written: {error.strerror or error}') from None
    names = Counter(name for crops, _ in done for name in crops)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise DataError(
            f'{place}: found several crops of the same name: {listed(repeated)}; rename their images'
        )
    for folder in folders.values():
        others = [name for name in FolderSource(folder).names if name not in names]
        if others:
            raise DataError(
                f'{folder}: found {len(others)} image{"s" * (len(others) > 1)} that are not crops of these frames, and '
                f'training would use: {listed(others)}; move or delete them'
            )
    return len(names), sum(written for _, written in done)


class Cutter:
    """`cutter[i]` writes the crops of the images `i`, and returns their names and the number of files written, or the
    DataError of images that cannot be read."""

    def __init__(self, images: NamedImages, crops_of: CropsOf, folders: dict[str, Path]) -> None:
        self.images, self.crops_of, self.folders = images, crops_of, folders

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[list[str], int] | DataError:
        try:
            images = self.images.read(index)
        except DataError as error:
            return error
        names, written = [], 0
        for name, (top, left, rows, columns) in self.crops_of(self.images.names[index], images):
            names.append(name)
            for kind, image in images.items():
                crop = image[top : top + rows, left : left + columns]
                path = self.folders[kind] / f'{name}.png'
                if not is_written(path, crop):
                    write_png(path, crop)
                    written += 1
        return names, written


def is_written(path: Path, crop: np.ndarray) -> bool:
    """Whether a file holds the crop; False for a damaged file. Raises DataError if it holds another image."""
    try:
        found = decode_image(path.read_bytes(), str(path), channels=3).pixels
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DataError(f'{path}: cannot be read: {error.strerror}') from None
    except ImageFileError:
        return False
    if found.dtype != crop.dtype or not np.array_equal(found, crop):
        raise DataError(
            f'{path}: differs from this crop of the frame; delete the crops of other frames or settings, and run the '
            'command again'
        )
    return True
