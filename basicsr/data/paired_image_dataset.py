"""Pairs of degraded and clean image files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from natsort import natsorted
from torch.utils.data import Dataset

from basicsr.data.sampler import SampleKey
from basicsr.data.sources import IOBackend, open_source, read_all, read_meta_info
from basicsr.data.transforms import make_sample
from basicsr.data.types import Sample
from basicsr.images.reader import decode_image
from basicsr.utils.errors import DataError
from basicsr.utils.files import resolve
from basicsr.utils.registry import DATASET_REGISTRY
from basicsr.utils.text import listed


@DATASET_REGISTRY.register()
class Dataset_PairedImage(Dataset[Sample]):
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
    ) -> None:
        if filename_tmpl.count('{}') != 1:
            raise DataError(f"filename_tmpl: found {filename_tmpl!r}; allowed: a name with one '{{}}' in it")
        roots = {'lq': dataroot_lq, **({'gt': dataroot_gt} if dataroot_gt else {})}
        self.sources = {kind: open_source(resolve(root), io_backend) for kind, root in roots.items()}
        self.geometric_augs = geometric_augs
        self.channels = channels
        # Without ground truth the names are those of the degraded images.
        self.filename_tmpl = filename_tmpl if dataroot_gt else '{}'
        self.names = self.sources['gt' if dataroot_gt else 'lq'].names
        if meta_info_file:
            self.names = _chosen(self.names, resolve(meta_info_file))
        self._check_partners(restricted=bool(meta_info_file))
        self._kept: list[dict[str, np.ndarray]] = []
        if in_memory:
            self._kept = read_all(self._read, self.names)

    def _check_partners(self, restricted: bool) -> None:
        lq = self.sources['lq']
        partners = {self._source_name('lq', name): name for name in self.names}
        lonely = {
            'degraded': [] if restricted else [lq.where(name) for name in lq.names if name not in partners],
            'clean': [self._where('gt', partners[name]) for name in partners.keys() - {*lq.names}],
        }
        problems = [
            f'{len(files)} {kind} image{"s have" if len(files) > 1 else " has"} no partner of the same name: '
            f'{listed(natsorted(files))}'
            for kind, files in lonely.items()
            if files
        ]
        if problems:
            raise DataError('; '.join(problems))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        index = key.index if isinstance(key, SampleKey) else key
        return make_sample(self.read(index), self.names[index], key, self.geometric_augs)

    def files(self, index: int) -> str:
        """The degraded file of a pair, for messages."""
        return self._where('lq', self.names[index])

    def read(self, index: int) -> dict[str, np.ndarray]:
        """The images of a pair as in the files, (H, W, C) uint8 or uint16; do not write to them."""
        return self._kept[index] if self._kept else self._read(self.names[index])

    def _read(self, name: str) -> dict[str, np.ndarray]:
        images, failures = {}, []
        for kind, source in self.sources.items():
            try:
                encoded, where = source.read(self._source_name(kind, name)), self._where(kind, name)
                images[kind] = decode_image(encoded, where, self.channels).pixels
            except DataError as error:
                failures.append(error)
        if failures:
            raise DataError('; '.join(map(str, failures)))
        for kind, image in images.items():
            if image.shape != images['lq'].shape:
                raise DataError(
                    f'{self._where(kind, name)}: found {_size(image)}; allowed: the size of its partner '
                    f'{self._where("lq", name)}, {_size(images["lq"])}'
                )
        return images

    def _source_name(self, kind: str, name: str) -> str:
        return self.filename_tmpl.replace('{}', name) if kind == 'lq' else name

    def _where(self, kind: str, name: str) -> str:
        return self.sources[kind].where(self._source_name(kind, name))


def _chosen(names: list[str], meta_info_file: Path) -> list[str]:
    wanted = set(read_meta_info(meta_info_file))
    if not wanted:
        raise DataError(f'{meta_info_file}: names no images')
    missing = wanted.difference(names)
    if missing:
        raise DataError(f'{meta_info_file}: names images that do not exist: {listed(sorted(missing))}')
    return [name for name in names if name in wanted]


def _size(image: np.ndarray) -> str:
    return f'{image.shape[1]}x{image.shape[0]}'
