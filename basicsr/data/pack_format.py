"""The pack format: decoded pairs of images in one file that is mapped into memory, and a JSON index."""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from natsort import natsorted

from basicsr.data.crops import Window, crop_windows, numbered
from basicsr.utils.errors import DataError

MAKER = 'python scripts/prepare_data.py'
PIXELS, INDEX = 'pixels.bin', 'index.json'
FORMAT = 1
_NUMBERS = ('channels', 'crop_size', 'stride', 'size')  # of a PackIndex
DTYPES: dict[str, np.dtype[Any]] = {'uint8': np.dtype('u1'), 'uint16': np.dtype('<u2')}


class StoredImage(NamedTuple):
    """Location of an image's pixels (height, width, channels) in the pack."""

    height: int
    width: int
    dtype: str  # a key of DTYPES
    offset: int  # in bytes
    crc32: int  # of the pixels' bytes


class StoredPair(NamedTuple):
    name: str
    lq: StoredImage
    gt: StoredImage  # of the same height and width

    def images(self) -> Iterator[tuple[str, StoredImage]]:
        yield from (('lq', self.lq), ('gt', self.gt))


class Crop(NamedTuple):
    """A training pair: a window in both images of a stored pair."""

    name: str
    pair: StoredPair
    window: Window


@dataclass(frozen=True)
class PackIndex:
    """The content of `index.json`."""

    channels: int
    crop_size: int | None  # None: every stored pair is one training pair
    stride: int | None
    size: int  # of pixels.bin, in bytes
    pairs: tuple[StoredPair, ...]

    @cached_property
    def crops(self) -> list[Crop]:
        """All training pairs, in the order that their names would have as files of a folder."""
        crops = [crop for pair in self.pairs for crop in self._crops_of(pair)]
        # FolderSource sorts file names first, as natural order has ties (01 and 1).
        return natsorted(sorted(crops, key=lambda crop: f'{crop.name}.png'), key=itemgetter(0))

    def _crops_of(self, pair: StoredPair) -> Iterator[Crop]:
        height, width = pair.lq.height, pair.lq.width
        if self.crop_size is None or self.stride is None:
            yield Crop(pair.name, pair, Window(0, 0, height, width))
            return
        windows = crop_windows(height, width, self.crop_size, self.stride)
        for name, window in numbered(pair.name, windows):
            yield Crop(name, pair, window)

    def summary(self) -> str:
        what = 'images' if all(pair.lq == pair.gt for pair in self.pairs) else 'pairs'
        return f'{len(self.pairs)} {what}, {len(self.crops)} training crops, {self.size / 1e9:.3g} GB'

    def encode(self) -> bytes:
        content: dict[str, Any] = {'format': FORMAT, **{key: getattr(self, key) for key in _NUMBERS}}
        content['pairs'] = [
            {'name': pair.name, **{kind: image._asdict() for kind, image in pair.images()}}
            for pair in self.pairs
        ]
        return json.dumps({**content, 'checksum': _checksum(content)}).encode()


def read_index(root: Path) -> PackIndex:
    """Raises DataError if `root` is not a pack or its index is damaged."""
    path = root / INDEX
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise DataError(f'{root}: cannot be read as a pack (made by {MAKER}): {error.strerror}') from None
    try:
        content = json.loads(encoded)
        found, checksum = content['format'], content.pop('checksum')
        if found == FORMAT and checksum != _checksum(content):
            raise ValueError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise DataError(f'{path}: is damaged; make the pack again with {MAKER}') from None
    if found != FORMAT:
        raise DataError(f'{path}: found format {found!r}; allowed: {FORMAT}, made by {MAKER}')
    pairs = (
        StoredPair(pair['name'], StoredImage(**pair['lq']), StoredImage(**pair['gt']))
        for pair in content['pairs']
    )
    return PackIndex(**{key: content[key] for key in _NUMBERS}, pairs=tuple(pairs))


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def open_pixels(root: Path, size: int) -> mmap.mmap:
    """Raises DataError if the pack's pixels cannot be read or are not `size` bytes."""
    path = root / PIXELS
    try:
        with path.open('rb') as file:
            found = os.fstat(file.fileno()).st_size
            if found == size:
                return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(f'{path}: cannot be read: {error.strerror}') from None
    # Reading mapped pages that a cut file lacks would kill the process.
    raise DataError(
        f'{path}: found {found} bytes; allowed: {size}, as in {INDEX}; make the pack again with {MAKER}'
    )
