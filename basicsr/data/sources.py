"""Where encoded images come from: a folder, or an LMDB; and how they become arrays."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol
from weakref import WeakValueDictionary

import cv2
import lmdb
import numpy as np
import PIL.Image
from natsort import natsorted
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.bmp', '.tif', '.tiff', '.webp')

# The shortest start of a line that ends like an image: names may have spaces and dots in them.
_FILE_NAME = re.compile(rf'\s*(\S.*?)(?:{"|".join(map(re.escape, IMAGE_SUFFIXES))})(?!\S)', flags=re.IGNORECASE)
_TIFF_STARTS = (b'II', b'MM')
_TIFF_BITS = 258  # the tag


class DataError(ValueError):
    """A dataset that cannot be read. The message is one sentence."""

    def __init__(self, message: str) -> None:
        # DataLoader raises the error of a worker anew, with the whole report of its traceback for a message.
        report = re.fullmatch(rf'(?s)Caught .*\n\S*{type(self).__name__}: (.*?)\n*', message)
        super().__init__(report[1] if report else message)


class IOBackend(TypedDict):
    __pydantic_config__ = {'extra': 'forbid'}  # type: ignore[misc]  # noqa: RUF012
    type: Literal['disk', 'lmdb']


class Source(Protocol):
    """Encoded images by name, in natural order (2 before 10); a name has no suffix."""

    root: Path
    names: list[str]

    def read(self, name: str) -> bytes: ...

    def where(self, name: str) -> str:
        """For messages: which file this is."""
        ...


def open_source(root: Path, backend: IOBackend) -> Source:
    source = LMDBSource(root) if backend['type'] == 'lmdb' else FolderSource(root)
    if not source.names:
        raise DataError(f'{root}: there is no image in it')
    return source


class FolderSource:
    """The images of one folder, not of its subfolders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, str] = {}
        try:
            with os.scandir(root) as entries:
                files = sorted(entry.name for entry in entries if _is_image(entry))
        except OSError as error:
            raise DataError(f'{root}: cannot be read as a folder: {error.strerror}') from None
        for file in files:
            name = Path(file).stem
            if name in self._files:
                raise DataError(f'{root}: {self._files[name]} and {file} have the same name')
            self._files[name] = file
        self.names = natsorted(self._files)

    def read(self, name: str) -> bytes:
        path = self.root / self._files[name]
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f'{path}: cannot be read: {error.strerror}') from None

    def where(self, name: str) -> str:
        return str(self.root / self._files.get(name, name))


def _is_image(entry: os.DirEntry[str]) -> bool:
    is_named_so = Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith('.')
    return is_named_so and entry.is_file()


class LMDBSource:
    """An LMDB of encoded images, with the `meta_info.txt` that names its keys (`name.png (h,w,c) level`)."""

    def __init__(self, root: Path) -> None:
        if root.suffix != '.lmdb' or not root.is_dir():
            raise DataError(f'{root}: there is no such LMDB folder (its name ends in .lmdb)')
        self.root = root
        self.names = natsorted(sorted(read_meta_info(root / 'meta_info.txt')))
        self._environment: lmdb.Environment | None = None
        try:
            with self._open().begin() as transaction, transaction.cursor() as cursor:
                missing = [name for name in self.names if not cursor.set_key(name.encode())]
        except lmdb.Error as error:
            raise DataError(f'{root}: cannot be read as an LMDB: {error}') from None
        if missing:
            raise DataError(f'{root}: meta_info.txt names keys that are not in it: {listed(missing)}')

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_environment': None}

    def _open(self) -> lmdb.Environment:
        if self._environment is None:
            self._environment = _open_lmdb(self.root)
        return self._environment

    def read(self, name: str) -> bytes:
        try:
            with self._open().begin() as transaction:
                encoded = transaction.get(name.encode())
        except lmdb.Error as error:
            raise DataError(f'{self.where(name)}: cannot be read: {error}') from None
        if encoded is None:
            raise DataError(f'{self.where(name)}: is not there any more')
        return encoded

    def where(self, name: str) -> str:
        return f'{self.root}:{name}'


# py-lmdb opens a file once in a process, and several datasets may be made of it.
_open_environments: WeakValueDictionary[Path, lmdb.Environment] = WeakValueDictionary()


def _open_lmdb(root: Path) -> lmdb.Environment:
    """For reading. Without locks it is no more than a mapping, which a fork (of a worker) takes along."""
    root = root.resolve()
    environment = _open_environments.get(root)
    if environment is None:
        environment = lmdb.open(str(root), readonly=True, lock=False, readahead=False, meminit=False)
        counts = environment.stat()
        # Reading what is mapped and not there would kill the process. Two pages are the header.
        pages = 2 + counts['branch_pages'] + counts['leaf_pages'] + counts['overflow_pages']
        if (root / 'data.mdb').stat().st_size < pages * counts['psize']:
            environment.close()
            raise lmdb.CorruptedError('data.mdb is cut short')
        _open_environments[root] = environment
    return environment


def read_meta_info(path: Path) -> list[str]:
    """The image named at the start of every line, without its suffix. Raises DataError if one comes twice."""
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError):
        raise DataError(f'{path}: there is no such meta-info file, or it is not text') from None
    names = [_name_of(line) for line in lines if line.strip()]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f'{path}: names images more than once: {listed(repeated)}')
    return names


def _name_of(line: str) -> str:
    found = _FILE_NAME.match(line)
    return found[1] if found else line.split()[0]


def listed(names: Iterable[str], most: int = 8) -> str:
    """For messages."""
    names = list(names)
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


def decode(encoded: bytes, where: str, channels: int) -> np.ndarray:
    """(H, W, channels) uint8 or uint16, upright, RGB order, without alpha. A view: not contiguous.
    Raises DataError if it is no whole image."""
    # Not IMREAD_GRAYSCALE: each file format has weights of its own for that.
    colour = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_ANYCOLOR
    try:
        pixels = _decode_tiff_with_alpha(encoded)
        if pixels is None:
            pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), colour | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise DataError(f'{where}: cannot be decoded in the memory there is') from None
        pixels = None
    if pixels is None or _is_cut_jpeg(encoded):
        raise DataError(f'{where}: is empty, cut short, or not an image')
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f'{where}: found pixels of type {pixels.dtype}; allowed: 8 or 16 bit')
    if channels == 3:
        return pixels[:, :, ::-1]
    return (pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))[:, :, None]


def _decode_tiff_with_alpha(encoded: bytes) -> np.ndarray | None:
    """(H, W, 3) in BGR order if it is an 8-bit TIFF with alpha, by which OpenCV would multiply the colours."""
    if encoded[:2] not in _TIFF_STARTS:
        return None
    with contextlib.suppress(Exception), PIL.Image.open(io.BytesIO(encoded), formats=['TIFF']) as image:
        if image.mode == 'RGBA' and max(image.tag_v2[_TIFF_BITS]) == 8:
            return np.asarray(image.convert('RGB'))[:, :, ::-1]
    return None  # whatever is wrong with the file, OpenCV will say


def _is_cut_jpeg(encoded: bytes) -> bool:
    """Whether the mark at the end of the pixels is missing. OpenCV 4 does not mind, and fills with grey."""
    if not encoded.startswith(b'\xff\xd8'):
        return False
    place = 2
    while (mark := encoded[place : place + 2]) not in (b'\xff\xda', b''):  # where the pixels begin
        is_filler = mark == b'\xff\xff'
        place += 1 if is_filler else 2 + int.from_bytes(encoded[place + 2 : place + 4], 'big')
    return encoded.rfind(b'\xff\xd9', place) < 0
