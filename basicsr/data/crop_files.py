"""Cuts the images of a paired set into crops, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from basicsr.data.crops import Window
from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.data.sources import FolderSource
from basicsr.images.reader import decode_image
from basicsr.images.writer import write_png
from basicsr.utils.errors import DataError, ImageFileError, InUseError
from basicsr.utils.files import lock_file, remove_leftovers
from basicsr.utils.parallel import in_parallel
from basicsr.utils.text import listed

# (name, height, width) of an image → the names and windows of its crops
CropsOf = Callable[[str, int, int], Iterable[tuple[str, Window]]]


def write_crops(
    pairs: Dataset_PairedImage, crops_of: CropsOf, folders: dict[str, Path], workers: int, title: str
) -> tuple[int, int]:
    """Writes the crops of every pair to `folders['lq']` and `folders['gt']`, beside each other, and returns the number
    of pairs of crops, and of files written: existing crops are kept.

    Raises DataError on unreadable images, on another image with the name of a crop, and on images in the folders that
    are no crops; UserError if a worker process dies.
    """
    place = folders['lq'].parent
    try:
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        with lock_file(place / '.cutting.lock'):
            try:
                done = in_parallel(Cutter(pairs, crops_of, folders), workers, title, lambda crops: crops)
            finally:
                for folder in folders.values():
                    remove_leftovers(folder)  # temporary files of processes that were killed
    except InUseError as error:
        raise DataError(f'{place}: {error}') from None
    except OSError as error:
        raise DataError(f'{place}: cannot be written: {error.strerror or error}') from None
    names = {name for crops, _ in done for name in crops}
    for folder in folders.values():
        others = [name for name in FolderSource(folder).names if name not in names]
        if others:
            raise DataError(
                f'{folder}: found {len(others)} image{"s" * (len(others) > 1)} that are not crops of these frames, and '
                f'training would use: {listed(others)}; move or delete them'
            )
    return sum(len(crops) for crops, _ in done), sum(written for _, written in done)


class Cutter:
    """`cutter[i]` writes the crops of a pair, and returns their names and the number of files written, or the DataError
    of a pair that cannot be read."""

    def __init__(self, pairs: Dataset_PairedImage, crops_of: CropsOf, folders: dict[str, Path]) -> None:
        self.pairs, self.crops_of, self.folders = pairs, crops_of, folders

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[list[str], int] | DataError:
        try:
            images = self.pairs.read(index)
        except DataError as error:
            return error
        height, width = images['lq'].shape[:2]
        names, written = [], 0
        for name, (top, left, rows, columns) in self.crops_of(self.pairs.names[index], height, width):
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
