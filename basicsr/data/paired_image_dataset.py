"""Pairs of degraded and clean image files."""

from __future__ import annotations

from typing import Literal

from torch.utils.data import Dataset

from basicsr.data.named_images import NamedImages, Pairing
from basicsr.data.sampler import SampleKey
from basicsr.data.sources import IOBackend, open_sources
from basicsr.data.transforms import make_sample
from basicsr.data.types import Sample
from basicsr.utils.registry import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class Dataset_PairedImage(NamedImages, Dataset[Sample]):
    """Pairs matched by name, in natural order: a folder each, or an LMDB each.

    Args:
        dataroot_lq: folder (or LMDB) of the degraded images.
        dataroot_gt: folder (or LMDB) of the clean images; without it there is no ground truth (testing only).
        io_backend: `{type: disk}` or `{type: lmdb}`.
        filename_tmpl: name of a degraded image without suffix; `{}` stands for the name of the clean one.
        meta_info_file: text file with a clean image's file name at the start of each line: use only these.
        geometric_augs: training: one of the 8 flips and rotations, at random.
        channels: 3 decodes to RGB, 1 to grey.
        in_memory: decode all images once, at the start, and keep them (small sets).
        pairing: name; or order: the n-th degraded with the n-th clean image, in natural order, as many of each.
        bits: 8 keeps the high byte of 16-bit images, degraded and clean, as published for single-image defocus
            deblurring (for a pack: `scripts/prepare_data.py --bits 8`); null keeps 16 bits.

    Raises DataError on images without a partner, on empty folders, and on unreadable images. The message names both
    images of a pair, or with `in_memory` those of all pairs.
    """

    def __init__(
        self,
        dataroot_lq: str,
        dataroot_gt: str | None = None,
        io_backend: IOBackend = {'type': 'disk'},  # noqa: B006 - never changed
        filename_tmpl: str = '{}',
        meta_info_file: str | None = None,
        geometric_augs: bool = True,
        channels: Literal[1, 3] = 3,
        in_memory: bool = False,
        pairing: Pairing = 'name',
        bits: Literal[8] | None = None,
    ) -> None:
        super().__init__(
            open_sources({'lq': dataroot_lq, 'gt': dataroot_gt}, io_backend),
            filename_tmpl=filename_tmpl,
            pairing=pairing,
            meta_info_file=meta_info_file,
            channels=channels,
            bits=bits,
            in_memory=in_memory,
        )
        self.geometric_augs = geometric_augs

    def __getitem__(self, key: int | SampleKey) -> Sample:
        index = key.index if isinstance(key, SampleKey) else key
        return make_sample(self.read(index), self.names[index], key, self.geometric_augs)
