"""Pairs, or larger groups, of images: a folder or an LMDB for each kind, such as degraded and clean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from natsort import natsorted

from basicsr.data.sources import Source, read_all, read_meta_info
from basicsr.images.listing import Pairing
from basicsr.images.reader import decode_image
from basicsr.utils.errors import DataError
from basicsr.utils.files import resolve
from basicsr.utils.text import listed


class NamedImages:
    """One image of every kind for each name, in natural order. The names are those of the clean images, `gt`; without
    them, those of the first kind.

    Args:
        sources: kind → its images.
        filename_tmpl: name of the image of another kind, without suffix; `{}` stands for the name.
        pairing: 'name'; or 'order': the n-th image of each kind, in natural order, with equal counts.
        meta_info_file: text file with a file name at the start of each line: use only these.
        channels: 3 decodes to RGB, 1 to grey.
        bits: 8 keeps the high byte of 16-bit images; None keeps 16 bits.
        in_memory: decode all images once, at the start, and keep them.

    Raises DataError on images without a partner and on unreadable images. The message names all images of a name, or
    with `in_memory` those of all names.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        filename_tmpl: str = '{}',
        pairing: Pairing = 'name',
        meta_info_file: str | None = None,
        channels: Literal[1, 3] = 3,
        bits: Literal[8] | None = None,
        in_memory: bool = False,
    ) -> None:
        if filename_tmpl.count('{}') != 1:
            raise DataError(f"filename_tmpl: found {filename_tmpl!r}; allowed: a name with one '{{}}' in it")
        self.sources = sources
        self.channels, self.bits = channels, bits
        first = 'gt' if 'gt' in sources else next(iter(sources))
        names = self.sources[first].names
        self.names = _chosen(names, resolve(meta_info_file)) if meta_info_file else names
        wanted = set(self.names)
        self._own_names: dict[str, dict[str, str]] = {}  # kind → name → name in its source
        for kind, source in self.sources.items():
            own = names
            if kind != first and pairing == 'order':
                own = _in_order(source, self.sources[first])
            elif kind != first and first == 'gt':
                own = [filename_tmpl.replace('{}', name) for name in names]
            self._own_names[kind] = {
                name: each for name, each in zip(names, own, strict=True) if name in wanted
            }
        if pairing == 'name':
            self._check_partners(first, restricted=bool(meta_info_file))
        self._kept: list[dict[str, np.ndarray]] = []
        if in_memory:
            self._kept = read_all(self._read, self.names)

    def _check_partners(self, first: str, restricted: bool) -> None:
        unpaired: dict[str, set[str]] = {kind: set() for kind in self.sources}
        for kind, source in self.sources.items():
            existing, own = set(source.names), self._own_names[kind]
            if not restricted:
                unpaired[kind].update(source.where(name) for name in existing - {*own.values()})
            unpaired[first].update(self._where(first, name) for name in own if own[name] not in existing)
        problems = [
            f'{len(files)} image{"s have" if len(files) > 1 else " has"} no partner of the same name: '
            f'{listed(natsorted(files))}'
            for files in unpaired.values()
            if files
        ]
        if problems:
            raise DataError('; '.join(problems))

    def __len__(self) -> int:
        return len(self.names)

    def files(self, index: int) -> str:
        """The file of the first kind, for messages."""
        return self._where(next(iter(self.sources)), self.names[index])

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Kind → image as in its file, (H, W, C) uint8 or uint16, all of one size; do not write to them."""
        return self._kept[index] if self._kept else self._read(self.names[index])

    def _read(self, name: str) -> dict[str, np.ndarray]:
        images, failures = {}, []
        for kind, source in self.sources.items():
            try:
                encoded, where = source.read(self._own_names[kind][name]), self._where(kind, name)
                pixels = decode_image(encoded, where, self.channels).pixels
            except DataError as error:
                failures.append(error)
                continue
            is_cut = self.bits == 8 and pixels.dtype == np.uint16
            images[kind] = (pixels >> 8).astype(np.uint8) if is_cut else pixels
        if failures:
            raise DataError('; '.join(map(str, failures)))
        (first, partner), *others = images.items()
        for kind, image in others:
            if image.shape != partner.shape:
                raise DataError(
                    f'{self._where(kind, name)}: found {_size(image)}; allowed: the size of its partner '
                    f'{self._where(first, name)}, {_size(partner)}'
                )
        return images

    def _where(self, kind: str, name: str) -> str:
        return self.sources[kind].where(self._own_names[kind][name])


def _chosen(names: list[str], meta_info_file: Path) -> list[str]:
    wanted = set(read_meta_info(meta_info_file))
    if not wanted:
        raise DataError(f'{meta_info_file}: names no images')
    missing = wanted.difference(names)
    if missing:
        raise DataError(f'{meta_info_file}: names images that do not exist: {listed(sorted(missing))}')
    return [name for name in names if name in wanted]


def _in_order(source: Source, first: Source) -> list[str]:
    if len(source.names) != len(first.names):
        raise DataError(
            f'{source.root}: found {len(source.names)} images; allowed: {len(first.names)}, as in {first.root}, to '
            'pair them in order'
        )
    return source.names


def _size(image: np.ndarray) -> str:
    return f'{image.shape[1]}x{image.shape[0]}'
