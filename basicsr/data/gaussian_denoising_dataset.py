"""Clean images, and Gaussian noise that is added on demand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from torch.utils.data import Dataset

from basicsr.data.named_images import NamedImages
from basicsr.data.packed_image_dataset import PackedImages
from basicsr.data.sampler import SampleKey
from basicsr.data.sources import IOBackend, open_sources
from basicsr.data.transforms import augmented, to_sample
from basicsr.data.types import Sample
from basicsr.utils.errors import DataError
from basicsr.utils.files import resolve
from basicsr.utils.registry import DATASET_REGISTRY

Sigma = Annotated[float, Field(ge=0, le=255)]


@DATASET_REGISTRY.register()
class Dataset_GaussianDenoising(Dataset[Sample]):
    """Clean images, with new Gaussian noise for every sample.

    `lq` is `gt` plus noise, independent in every pixel and channel: float32, neither clipped nor rounded. Standard
    deviations are in levels of 8 bits, 0 to 255. `dataset[SampleKey]` is a training sample that depends only on the
    key. `dataset[i]` is an image at full size with the published test noise: the start of NumPy's legacy stream of
    seed 0, (H, W, C), for every image.

    Args:
        dataroot_gt: folder of the clean images, or an LMDB, or a pack (`scripts/prepare_data.py` without --input_dir).
        dataroot_lq: no effect.
        io_backend: `{type: disk}` or `{type: lmdb}`.
        filename_tmpl: no effect.
        meta_info_file: text file with an image's file name at the start of each line: use only these.
        geometric_augs: training: one of the 8 flips and rotations, at random.
        sigma_type: training: constant; random: uniform between two numbers; choice: one of several.
        sigma_range: training: the standard deviation of the noise, or a list of them for random and choice.
        sigma_test: the standard deviation of the noise at full size.
        in_ch: 3 decodes to RGB, 1 to grey.
        in_memory: decode all images once, at the start, and keep them (small sets).

    Raises DataError on settings that do not fit each other, on empty folders, and on unreadable images.
    """

    without_effect = ('dataroot_lq', 'filename_tmpl')  # keys of published option files

    def __init__(
        self,
        dataroot_gt: str,
        dataroot_lq: str | None = None,
        io_backend: IOBackend = {'type': 'disk'},  # noqa: B006 - never changed
        filename_tmpl: str = '{}',
        meta_info_file: str | None = None,
        geometric_augs: bool = True,
        sigma_type: Literal['constant', 'random', 'choice'] = 'constant',
        sigma_range: Sigma | list[Sigma] | None = None,
        sigma_test: Sigma | None = None,
        in_ch: Literal[1, 3] = 3,
        in_memory: bool = False,
    ) -> None:
        self.geometric_augs, self.channels = geometric_augs, in_ch
        self.sigma_type, self.sigma_test = sigma_type, sigma_test
        self.sigmas = None if sigma_range is None else _sigmas(sigma_type, sigma_range)
        self.images: NamedImages | PackedImages
        if resolve(dataroot_gt).suffix == '.pack':
            self.images = PackedImages(dataroot_gt)
            if self.images.channels != in_ch:
                raise DataError(
                    f'in_ch: found {in_ch}; allowed: {self.images.channels}, as in {self.images.root}'
                )
            if meta_info_file:
                raise DataError(f'meta_info_file: found {meta_info_file!r} beside a pack; allowed: null')
        else:
            self.images = NamedImages(
                open_sources({'gt': dataroot_gt}, io_backend),
                meta_info_file=meta_info_file,
                channels=in_ch,
                in_memory=in_memory,
            )
        self.names = self.images.names

    def __len__(self) -> int:
        return len(self.names)

    def files(self, index: int) -> str:
        """The clean image, for messages."""
        return self.images.files(index)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        index = key.index if isinstance(key, SampleKey) else range(len(self))[key]
        gt = self.images.read(index)['gt']
        noise: np.ndarray
        if isinstance(key, SampleKey):
            generator = key.generator()
            gt = augmented({'gt': gt}, key.patch, generator, self.geometric_augs)['gt']
            sigma = np.float32(self._sigma(generator) / 255)
            noise = generator.standard_normal(gt.shape, np.float32) * sigma
        else:
            if self.sigma_test is None:
                raise DataError('sigma_test: found nothing; allowed: a number, for images at full size')
            noise = np.random.RandomState(0).normal(0, self.sigma_test / 255, gt.shape)
        clean = gt.astype(np.float32) / np.float32(np.iinfo(gt.dtype).max)
        return to_sample({'lq': (clean + noise).astype(np.float32), 'gt': gt}, self.names[index])

    def _sigma(self, generator: np.random.Generator) -> float:
        if self.sigmas is None:
            raise DataError('sigma_range: found nothing; allowed: a number or a list, to train')
        if self.sigma_type == 'random':
            low, high = self.sigmas
            return float(generator.uniform(low, high))
        return float(generator.choice(self.sigmas))


def _sigmas(sigma_type: str, sigma_range: float | Sequence[float]) -> Sequence[float]:
    """The numbers of sigma_range. Raises DataError if they do not fit sigma_type."""
    sigmas = [sigma_range] if isinstance(sigma_range, int | float) else sigma_range
    works, allowed = {
        'constant': (sigmas is not sigma_range, 'one number'),
        'random': (sigmas is sigma_range and len(sigmas) == 2 and sigmas[0] <= sigmas[1], 'a list [from, to]'),
        'choice': (sigmas is sigma_range and len(sigmas) > 0, 'a list of one number or more'),
    }[sigma_type]
    if not works:
        raise DataError(f'sigma_range: found {sigma_range}; allowed: {allowed}, for sigma_type {sigma_type}')
    return sigmas
