"""SIDD and DND: test images in MATLAB files, and MATLAB files of results to upload."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch

from basicsr.utils.errors import DataError
from basicsr.utils.files import atomic_write, check_room, check_writable
from basicsr.utils.text import listed


class MatBlocks:
    """SIDD's blocks: arrays (scenes, blocks, H, W, 3), uint8 or float in [0, 1]. Block 2 of scene 1 is the image
    `0001_02`.

    Args:
        variables: kind of image ('lq', 'gt') → a file of MATLAB 7 or older, and the array's name.

    Raises DataError on a file without this array, or arrays of different shapes.
    """

    def __init__(self, variables: Mapping[str, tuple[Path, str]]) -> None:
        self.path = variables['lq'][0]
        self.arrays = {kind: _array(*variable) for kind, variable in variables.items()}
        self.shape = self.arrays['lq'].shape
        for kind, array in self.arrays.items():
            if array.shape != self.shape:
                raise DataError(
                    f'{variables[kind][0]}: found shape {array.shape}; allowed: {self.shape}, as in {self.path}'
                )
        scenes, blocks = self.shape[:2]
        self.names = [f'{1 + scene:04d}_{1 + block:02d}' for scene in range(scenes) for block in range(blocks)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = divmod(index, self.shape[1])
        blocks = {kind: array[place].transpose(2, 0, 1) for kind, array in self.arrays.items()}
        return {
            **{kind: torch.from_numpy(block.copy(order='C')) for kind, block in blocks.items()},
            'name': self.names[index],
        }

    def files(self, index: int) -> str:
        return f'{self.path}, block {self.names[index]}'

    def uploads(self, folder: Path) -> Uploads:
        """Idenoised.mat: float32, in the shape of the blocks. Raises OSError, before hours of work."""

        def content(images_HWC: Sequence[np.ndarray]) -> dict[str, object]:
            return {'Idenoised': np.stack(images_HWC).reshape(self.shape)}

        uploads = Uploads([folder / 'Idenoised.mat'], len(self), content)
        check_room(folder, 4 * self.arrays['lq'].size)
        return uploads


def _array(path: Path, name: str) -> np.ndarray:
    try:
        with path.open('rb') as file:
            content = scipy.io.loadmat(file, variable_names=[name])
    except MemoryError:
        raise DataError(f'{path}: does not fit into memory') from None
    except Exception as error:  # SciPy raises anything, depending on the bytes
        reason = ' '.join((getattr(error, 'strerror', None) or str(error)).split())
        raise DataError(f'{path}: cannot be read as a file of MATLAB 7 or older ({reason})') from None
    if name not in content:
        raise DataError(f'{path}: found no variable {name}')
    array = content[name]
    if array.ndim != 5 or array.shape[4] != 3 or array.dtype not in (np.uint8, np.float32):
        raise DataError(
            f'{path}: found {name} of {array.dtype}, shape {array.shape}; allowed: uint8 or single, '
            '(scenes, blocks, H, W, 3)'
        )
    return array


class DNDBoxes:
    """DND's boxes; their ground truth is not public. Box 2 of image 1 is the image `0001_02`.

    Args:
        info: info.mat, whose boxes (y1, x1, y2, x2) count from 1 and include their ends.
        images: folder of 0001.mat and so on; both are HDF5, which the package h5py reads.

    Raises DataError on files that are missing or cannot be read.
    """

    def __init__(self, info: Path, images: Path) -> None:
        with _hdf5(info) as file:
            references = file['info/boundingboxes'][()].ravel()
            boxes = [np.array(file[reference]).T for reference in references]
        self.boxes = [box.astype(int) for box in boxes if box.ndim == 2]
        self.count = len(self.boxes[0]) if self.boxes else 0
        if not self.count or any(box.shape != (self.count, 4) for box in boxes):
            raise DataError(
                f'{info}: found boxes of shapes {listed(dict.fromkeys(str(box.shape) for box in boxes)) or "none"}; '
                'allowed: as many for each image, of 4 numbers'
            )
        self.paths = [images / f'{1 + number:04d}.mat' for number in range(len(self.boxes))]
        if missing := [path.name for path in self.paths if not path.is_file()]:
            raise DataError(f'{images}: misses {listed(missing)}')
        self.names = [f'{path.stem}_{1 + box:02d}' for path in self.paths for box in range(self.count)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, box = divmod(index, self.count)
        top, left, bottom, right = (int(edge) for edge in self.boxes[image][box])
        with _hdf5(self.paths[image]) as file:
            pixels_CWH = file['InoisySRGB']
            if not (1 <= left <= right <= pixels_CWH.shape[1] and 1 <= top <= bottom <= pixels_CWH.shape[2]):
                raise DataError(f'{self.files(index)}: is not within the image')
            cut = np.float32(pixels_CWH[:, left - 1 : right, top - 1 : bottom])
        return {'lq': torch.from_numpy(cut.transpose(0, 2, 1).copy()), 'name': self.names[index]}

    def files(self, index: int) -> str:
        return f'{self.paths[index // self.count]}, box {1 + index % self.count}'

    def uploads(self, folder: Path) -> Uploads:
        """mat/0001.mat and so on, each with the boxes of an image. Raises OSError."""
        return Uploads([folder / 'mat' / path.name for path in self.paths], self.count, _boxes)


def _boxes(images_HWC: Sequence[np.ndarray]) -> dict[str, object]:
    cell = np.empty(len(images_HWC), object)
    for index, image in enumerate(images_HWC):
        cell[index] = image
    return {'Idenoised': cell, 'israw': False, 'eval_version': '1.0'}


@contextlib.contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    """Raises DataError."""
    try:
        import h5py
    except ImportError:
        raise DataError(
            f'{path}: needs the package h5py, which is not installed; `pip install h5py` gets it'
        ) from None
    try:
        with h5py.File(path, 'r') as file:
            yield file
    except (OSError, KeyError, AttributeError, IndexError, TypeError) as error:  # damaged, or without a name
        raise DataError(f'{path}: cannot be read as a file of DND ({" ".join(str(error).split())})') from None


class Uploads:
    """Writes results to files, each as soon as all of its results are known.

    Args:
        files: each takes the next `count` results.
        content: results of a file, (H, W, 3) float32 → its MATLAB variables.

    Raises OSError if their folders cannot be written.
    """

    def __init__(
        self, files: Sequence[Path], count: int, content: Callable[[Sequence[np.ndarray]], dict[str, object]]
    ) -> None:
        self.files, self.count, self.content = files, count, content
        self.waiting: dict[Path, dict[int, np.ndarray]] = {path: {} for path in files}
        for folder in {path.parent for path in files}:
            folder.mkdir(parents=True, exist_ok=True)
            check_writable(folder)

    def __call__(self, index: int, image_HWC: np.ndarray) -> None:
        """Raises OSError."""
        path = self.files[index // self.count]
        results = self.waiting[path]
        results[index % self.count] = image_HWC
        if len(results) == self.count:
            del self.waiting[path]
            variables = self.content([results.pop(number) for number in range(self.count)])
            atomic_write(path, lambda file: scipy.io.savemat(file, variables))

    @property
    def unfinished(self) -> list[Path]:
        """The files that were not written."""
        return [*self.waiting]
