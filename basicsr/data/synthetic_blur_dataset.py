"""Training pairs that are made when they are asked for; and sets of several kinds in one."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from basicsr.data.blur.light import Image
from basicsr.data.blur.parameters import BlurParameters
from basicsr.data.blur.render import blurred_pair
from basicsr.data.sampler import SampleKey
from basicsr.data.sources import FolderSource
from basicsr.data.transforms import random_flip_or_rotation, to_tensor
from basicsr.images.decode import decode
from basicsr.utils.errors import DataError
from basicsr.utils.files import resolve
from basicsr.utils.registry import DATASET_REGISTRY
from basicsr.utils.text import show


@DATASET_REGISTRY.register()
@dataclass(kw_only=True, eq=False)
class Dataset_SyntheticBlur(BlurParameters, Dataset):
    """Sharp photographs, and motion blur that is made anew for every sample.

    `dataset[SampleKey]` is a training sample, all of whose randomness is the key's: the same key gives the same
    bytes in every process. `dataset[i]` is a whole pair, whose blur depends on i alone. Both are {'lq', 'gt',
    'name'}, images (3, H, W), uint8. Raises DataError on folders without images and on unreadable ones, ValueError
    on parameters that make no sense.

    Args:
        dataroot_gt: folder of sharp photographs, or several.
        geometric_augs: training: one of the 8 flips and rotations, at random.
        in_memory: decode every photograph once, at the start, and keep it.
    """

    dataroot_gt: str | list[str]
    geometric_augs: bool = True
    in_memory: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.channels = 3
        roots = [self.dataroot_gt] if isinstance(self.dataroot_gt, str) else list(self.dataroot_gt)
        if not roots:
            raise DataError('dataroot_gt: found an empty list; allowed: one folder or more')
        for root in roots:
            if not resolve(root).is_dir():
                raise DataError(
                    f'dataroot_gt: found {show(root)}, where there is no folder; allowed: folders of sharp '
                    'photographs'
                )
        sources = [FolderSource(resolve(root)) for root in roots]
        for source in sources:
            if not source.names:
                raise DataError(f'{source.root}: there is no image in it')
        self.photographs = [(source, name) for source in sources for name in source.names]
        often = Counter(name for _, name in self.photographs)
        # Several folders may have the same names, and restored images are written under these.
        self.names = []
        for index, (_, name) in enumerate(self.photographs):
            own = name if often[name] == 1 else f'{name}-{index}'
            while own != name and own in often:
                own += '-'
            self.names.append(own)
        self._kept: list[Image] = []
        if self.in_memory:
            self._kept = [self._read(index) for index in range(len(self))]

    def __len__(self) -> int:
        return len(self.photographs)

    def files(self, index: int) -> str:
        """For messages: the photograph of a pair."""
        source, name = self.photographs[index]
        return source.where(name)

    def read(self, index: int) -> Image:
        """A photograph, (H, W, 3); not to be written to."""
        return self._kept[index] if self._kept else self._read(index)

    def _read(self, index: int) -> Image:
        source, name = self.photographs[index]
        pixels = decode(source.read(name), source.where(name), channels=3)
        if pixels.dtype == np.uint16:
            pixels = (pixels / 257).round().astype(np.uint8)
        return np.ascontiguousarray(pixels)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        is_sample = isinstance(key, SampleKey)
        index = key.index if is_sample else range(len(self))[key]
        generator = key.generator() if is_sample else np.random.default_rng(index)
        photograph = self.read(index)

        def another(generator: np.random.Generator) -> Image:
            """Every second time the same one: it need not be decoded."""
            return photograph if generator.random() < 0.5 else self.read(int(generator.integers(len(self))))

        patch = key.patch if is_sample else None
        images = dict(zip(('lq', 'gt'), blurred_pair(photograph, generator, self, patch, another), strict=True))
        if is_sample and self.geometric_augs:
            images = random_flip_or_rotation(images, generator)
        name = self.names[index]
        return {**{kind: to_tensor(image) for kind, image in images.items()}, 'name': name}


# The keys beside `type:` are described where they are defined, and here for the schema of option files.
Dataset_SyntheticBlur.__doc__ = (
    inspect.cleandoc(Dataset_SyntheticBlur.__doc__ or '')
    + inspect.cleandoc(BlurParameters.__doc__ or '').partition('\nArgs:')[2]
)
