"""Pairs of degraded and clean images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from basicsr.data.sources import DataError, IOBackend, Source, decode, open_source, read_meta_info
from basicsr.data.stages import SampleKey
from basicsr.utils.files import resolve
from basicsr.utils.registry import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class Dataset_PairedImage(Dataset):
    """Pairs matched by name: a folder each, or an LMDB each.

    Args:
        dataroot_lq: folder (or LMDB) of the degraded images.
        dataroot_gt: folder (or LMDB) of the clean images; none: there is no ground truth (testing alone).
        io_backend: `{type: disk}` or `{type: lmdb}`.
        filename_tmpl: name of a degraded image, without suffix; `{}` stands for the name of the clean one.
        meta_info_file: text file, a clean image's file name at the start of each line: only these are used.
        geometric_augs: training: one of the 8 flips and rotations, at random.
        channels: 3 decodes to RGB, 1 to grey.
        in_memory: decode every image once, at the start, and keep it (small sets).

    `dataset[i]` is the whole pair: {'lq', 'gt' (if any), 'name'}, images (C, H, W), uint8, or float32 in [0, 1]
    where the file has 16 bit. `dataset[SampleKey]` is a training sample, cropped and augmented.
    Raises DataError on images without a partner, on none at all, and on unreadable ones.
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
    ) -> None:
        if filename_tmpl.count('{}') != 1:
            raise DataError(f"filename_tmpl: found {filename_tmpl!r}; allowed: a name with one '{{}}' in it")
        self.lq: Source = open_source(resolve(dataroot_lq), io_backend)
        self.gt: Source | None = open_source(resolve(dataroot_gt), io_backend) if dataroot_gt else None
        self.geometric_augs = geometric_augs
        self.channels = channels
        names = (self.gt or self.lq).names
        if meta_info_file:
            names = _chosen(names, resolve(meta_info_file))
        # Without ground truth there is nothing to translate from: the names are the degraded images' own.
        self.pairs = [(filename_tmpl.format(name) if self.gt else name, name) for name in names]
        self._check_partners(restricted=bool(meta_info_file))
        self._decoded: dict[tuple[int, str], np.ndarray] = {}
        if in_memory:
            for lq_name, gt_name in self.pairs:
                self._decoded[id(self.lq), lq_name] = self._image(self.lq, lq_name)
                if self.gt:
                    self._decoded[id(self.gt), gt_name] = self._image(self.gt, gt_name)

    def _check_partners(self, restricted: bool) -> None:
        if not self.pairs:
            raise DataError(f'{self.lq.where("")}: there is no image in it')
        if self.gt is None:
            return
        there = set(self.lq.names)
        wanted = {lq_name for lq_name, _ in self.pairs}
        lonely_gt = [self.gt.where(gt_name) for lq_name, gt_name in self.pairs if lq_name not in there]
        lonely_lq = [] if restricted else [self.lq.where(name) for name in self.lq.names if name not in wanted]
        problems = [
            f'{len(lonely)} {kind} image{"s have" if len(lonely) > 1 else " has"} no partner of the same name: '
            f'{_listed(lonely)}'
            for kind, lonely in (('degraded', lonely_lq), ('clean', lonely_gt))
            if lonely
        ]
        if problems:
            raise DataError('; '.join(problems))

    def __len__(self) -> int:
        return len(self.pairs)

    def files(self, index: int) -> str:
        """For messages: the degraded file of a pair."""
        return self.lq.where(self.pairs[index][0])

    def _image(self, source: Source, name: str) -> np.ndarray:
        kept = self._decoded.get((id(source), name)) if self._decoded else None
        return decode(source.read(name), source.where(name), self.channels) if kept is None else kept

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        index = key.index if isinstance(key, SampleKey) else key
        lq_name, gt_name = self.pairs[index]
        images = {'lq': self._image(self.lq, lq_name)}
        if self.gt is not None:
            images['gt'] = self._image(self.gt, gt_name)
            if images['gt'].shape != images['lq'].shape:
                raise DataError(
                    f'{self.gt.where(gt_name)}: found {_size(images["gt"])}; allowed: the size of its partner '
                    f'{self.lq.where(lq_name)}, {_size(images["lq"])}'
                )
        if isinstance(key, SampleKey):
            generator = key.generator()
            images = random_crop(images, key.patch, generator)
            if self.geometric_augs:
                images = random_flip_or_rotation(images, generator)
        return {**{name: to_tensor(image) for name, image in images.items()}, 'name': gt_name}


def random_crop(
    images: dict[str, np.ndarray], patch: int, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """The same square of every (H, W, C) image, each position equally likely, the last one included.
    Images smaller than the patch are reflected at the right and bottom first (as often as it takes)."""
    height, width = images['lq'].shape[:2]
    if height < patch or width < patch:
        padding = ((0, max(0, patch - height)), (0, max(0, patch - width)), (0, 0))
        images = {name: np.pad(image, padding, mode='reflect') for name, image in images.items()}
        height, width = images['lq'].shape[:2]
    top = int(generator.integers(height - patch + 1))
    left = int(generator.integers(width - patch + 1))
    return {name: image[top : top + patch, left : left + patch] for name, image in images.items()}


def random_flip_or_rotation(
    images: dict[str, np.ndarray], generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """One of the 8 symmetries of the square, the same for every image."""
    symmetry = int(generator.integers(8))
    return {
        name: np.rot90(image[:, ::-1] if symmetry >= 4 else image, symmetry % 4)
        for name, image in images.items()
    }


def to_tensor(image_HWC: np.ndarray) -> Tensor:
    """(H, W, C) → (C, H, W): uint8 as it is, uint16 as float32 in [0, 1]."""
    tensor = torch.from_numpy(np.array(image_HWC.transpose(2, 0, 1), order='C'))  # a copy: crops are views
    return tensor if tensor.dtype == torch.uint8 else to_float(tensor)


def to_float(image: Tensor) -> Tensor:
    """To float32 in [0, 1]; floating point stays as it is."""
    if image.is_floating_point():
        return image
    return image.float() / (255.0 if image.dtype == torch.uint8 else 65535.0)


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch. Bytes travel as bytes, and become floating point on the device; a batch that mixes 8 and 16 bit
    becomes floating point here."""
    batch: dict[str, Any] = {'name': [sample['name'] for sample in samples]}
    for kind in samples[0].keys() - {'name'}:
        tensors = [sample[kind] for sample in samples]
        if any(tensor.dtype != torch.uint8 for tensor in tensors):
            tensors = [to_float(tensor) for tensor in tensors]
        batch[kind] = torch.stack(tensors)
    return batch


def _chosen(names: list[str], meta_info_file: Path) -> list[str]:
    wanted = [Path(line).stem for line in read_meta_info(meta_info_file)]
    missing = sorted(set(wanted) - set(names))
    if missing:
        raise DataError(f'{meta_info_file}: names images that are not there: {_listed(missing)}')
    return wanted


def _size(image: np.ndarray) -> str:
    return f'{image.shape[1]}x{image.shape[0]}'


def _listed(names: list[str], most: int = 8) -> str:
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')
