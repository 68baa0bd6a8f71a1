"""Both views of a dual-pixel camera, and the clean image."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from basicsr.data.named_images import NamedImages, Pairing
from basicsr.data.sampler import SampleKey
from basicsr.data.sources import IOBackend, open_sources
from basicsr.data.transforms import augmented, to_float, to_sample, to_tensor
from basicsr.data.types import Sample
from basicsr.utils.registry import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class Dataset_DefocusDeblur_DualPixel_16bit(NamedImages, Dataset[Sample]):
    """Left view, right view and clean image, matched by name, in natural order: a folder each, or an LMDB each.

    `lq` is (6, H, W), left RGB before right RGB; `gt` is (3, H, W). 16-bit files keep their depth.

    Args:
        dataroot_lqL: folder (or LMDB) of the left views.
        dataroot_lqR: folder (or LMDB) of the right views.
        dataroot_gt: folder (or LMDB) of the clean images; without it there is no ground truth (testing only).
        io_backend: `{type: disk}` or `{type: lmdb}`.
        filename_tmpl: name of both views without suffix; `{}` stands for the name of the clean image.
        meta_info_file: text file with a clean image's file name at the start of each line: use only these.
        geometric_augs: training: one of the 8 flips and rotations, at random.
        in_memory: decode all images once, at the start, and keep them (small sets).
        pairing: name; or order: the n-th image of each folder, in natural order, as many in each.

    Raises DataError as Dataset_PairedImage does.
    """

    channels, lq_channels = 3, 6

    def __init__(
        self,
        *,
        dataroot_lqL: str,
        dataroot_lqR: str,
        dataroot_gt: str | None = None,
        io_backend: IOBackend = {'type': 'disk'},  # noqa: B006 - never changed
        filename_tmpl: str = '{}',
        meta_info_file: str | None = None,
        geometric_augs: bool = True,
        in_memory: bool = False,
        pairing: Pairing = 'name',
    ) -> None:
        super().__init__(
            open_sources({'lqL': dataroot_lqL, 'lqR': dataroot_lqR, 'gt': dataroot_gt}, io_backend),
            filename_tmpl=filename_tmpl,
            pairing=pairing,
            meta_info_file=meta_info_file,
            in_memory=in_memory,
        )
        self.geometric_augs = geometric_augs

    def __getitem__(self, key: int | SampleKey) -> Sample:
        index = key.index if isinstance(key, SampleKey) else key
        images = dict(self.read(index))
        if isinstance(key, SampleKey):
            images = augmented(images, key.patch, key.generator(), self.geometric_augs)
        views = [to_tensor(images.pop(kind)) for kind in ('lqL', 'lqR')]
        if views[0].dtype != views[1].dtype:  # one of 8 bits, one of 16
            views = [to_float(view) for view in views]
        return {**to_sample(images, self.names[index]), 'lq': torch.cat(views)}
