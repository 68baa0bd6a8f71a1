"""Training pairs of sharp photographs and motion blur that is synthesized on demand."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from basicsr.data.blur.light import Image
from basicsr.data.blur.parameters import BlurParameters
from basicsr.data.blur.render import blurred_pair
from basicsr.data.sampler import SampleKey
from basicsr.data.sources import open_source, read_all
from basicsr.data.transforms import random_flip_or_rotation, to_sample
from basicsr.data.types import Sample
from basicsr.images.reader import decode_image
from basicsr.utils.errors import DataError
from basicsr.utils.files import resolve
from basicsr.utils.registry import DATASET_REGISTRY
from basicsr.utils.text import show


@DATASET_REGISTRY.register()
@dataclass(kw_only=True, eq=False)
class Dataset_SyntheticBlur(BlurParameters, Dataset[Sample]):
    """Sharp photographs, with new motion blur for every sample.

    `dataset[SampleKey]` is a training sample that depends only on the key: the same key gives the same bytes in every
    process. `dataset[i]` is a pair at full size, whose blur depends only on i. Images are (3, H, W), uint8. Raises
    DataError on folders without images and on unreadable images, ValueError on invalid parameters.

    Args:
        dataroot_gt: folder of sharp photographs, or a list of folders.
        geometric_augs: training: one of the 8 flips and rotations, at random.
        in_memory: decode all photographs once, at the start, and keep them.
    """

    dataroot_gt: str | list[str]
    geometric_augs: bool = True
    in_memory: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.channels = 3
        roots = [self.dataroot_gt] if isinstance(self.dataroot_gt, str) else self.dataroot_gt
        if not roots:
            raise DataError('dataroot_gt: found an empty list; allowed: one folder or more')
        for root in roots:
            if not resolve(root).is_dir():
                raise DataError(
                    f'dataroot_gt: found {show(root)}, which is not a folder; allowed: a folder of photographs'
                )
        sources = [open_source(resolve(root), {'type': 'disk'}) for root in roots]
        self.photographs = [(source, name) for source in sources for name in source.names]
        # Restored images are written under these names, which several folders may share.
        often = Counter(name for _, name in self.photographs)
        self.names = []
        for index, (_, name) in enumerate(self.photographs):
            own = name if often[name] == 1 else f'{name}-{index}'
            while own != name and own in often:
                own += '-'
            self.names.append(own)
        self._kept: list[Image] = []
        if self.in_memory:
            self._kept = read_all(self._read, range(len(self)))

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        if isinstance(key, SampleKey):
            index, generator, patch = key.index, key.generator(), key.patch
        else:
            index, patch = range(len(self))[key], None
            generator = np.random.default_rng(index)
        photograph = self.read(index)

        def another(generator: np.random.Generator) -> Image:
            """The same photograph every second time, as it need not be decoded."""
            return photograph if generator.random() < 0.5 else self.read(int(generator.integers(len(self))))

        images = dict(zip(('lq', 'gt'), blurred_pair(photograph, generator, self, patch, another), strict=True))
        if patch and self.geometric_augs:
            images = random_flip_or_rotation(images, generator)
        return to_sample(images, self.names[index])

    def files(self, index: int) -> str:
        """The photograph of a pair, for messages."""
        source, name = self.photographs[index]
        return source.where(name)

    def read(self, index: int) -> Image:
        """A photograph, (H, W, 3) uint8; do not write to it."""
        return self._kept[index] if self._kept else self._read(index)

    def _read(self, index: int) -> Image:
        source, name = self.photographs[index]
        pixels = decode_image(source.read(name), source.where(name), channels=3).pixels
        return pixels if pixels.dtype == np.uint8 else (pixels / 257).round().astype(np.uint8)


# Option files and their schema take descriptions of all keys from here.
Dataset_SyntheticBlur.__doc__ = (
    inspect.cleandoc(Dataset_SyntheticBlur.__doc__ or '')
    + inspect.cleandoc(BlurParameters.__doc__ or '').partition('\nArgs:')[2]
)
