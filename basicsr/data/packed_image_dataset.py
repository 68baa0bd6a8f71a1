"""Pairs of degraded and clean images from one file that is mapped into memory: nothing is decoded in training."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from basicsr.data.crops import Window
from basicsr.data.pack_format import DTYPES, StoredImage, open_pixels, read_index
from basicsr.data.sampler import SampleKey
from basicsr.data.transforms import make_sample
from basicsr.data.types import Sample
from basicsr.utils.errors import DataError
from basicsr.utils.files import resolve
from basicsr.utils.registry import DATASET_REGISTRY


class PackedImages:
    """The pairs of a pack, a folder NAME.pack. Raises DataError on anything but a pack of the right size."""

    def __init__(self, dataroot: str) -> None:
        self.root = resolve(dataroot)
        index = read_index(self.root)
        self.channels, self.size, self.crops = index.channels, index.size, index.crops
        self.names = [crop.name for crop in self.crops]
        self._pixels: mmap.mmap | None = open_pixels(self.root, self.size)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_pixels': None}

    def __len__(self) -> int:
        return len(self.crops)

    def files(self, index: int) -> str:
        """The pair's place in the pack, for messages."""
        return f'{self.root}:{self.names[index]}'

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Both images of a pair, (H, W, C) uint8 or uint16: read-only views of the mapped file."""
        if self._pixels is None:
            self._pixels = open_pixels(self.root, self.size)
        _, pair, window = self.crops[index]
        return {kind: self._view(self._pixels, image, window) for kind, image in pair.images()}

    def _view(self, pixels: mmap.mmap, image: StoredImage, window: Window) -> np.ndarray:
        dtype = DTYPES[image.dtype]
        pixel = self.channels * dtype.itemsize
        row = image.width * pixel
        return np.ndarray(
            (window.height, window.width, self.channels),
            dtype,
            pixels,
            offset=image.offset + window.top * row + window.left * pixel,
            strides=(row, pixel, dtype.itemsize),
        )


@DATASET_REGISTRY.register()
class Dataset_PackedImage(PackedImages, Dataset[Sample]):
    """Pairs packed by `scripts/prepare_data.py`: the samples of Dataset_PairedImage on a folder of the same crops,
    without decoding.

    Args:
        dataroot: the pack, a folder NAME.pack.
        geometric_augs: training: one of the 8 flips and rotations, at random.

    Raises DataError on anything but a pack of pairs of the right size; `prepare_data.py --verify` checks the pixels.
    """

    def __init__(self, dataroot: str, geometric_augs: bool = True) -> None:
        super().__init__(dataroot)
        self.geometric_augs = geometric_augs
        if all(crop.pair.lq == crop.pair.gt for crop in self.crops):
            raise DataError(
                f'{self.root}: found clean images alone; allowed: a pack of pairs, or these as dataroot_gt of '
                'Dataset_GaussianDenoising'
            )

    def __getitem__(self, key: int | SampleKey) -> Sample:
        index = key.index if isinstance(key, SampleKey) else key
        return make_sample(self.read(index), self.names[index], key, self.geometric_augs)
