"""Where encoded images come from: a folder, or an LMDB; and how they become arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from natsort import natsorted
from pydantic import ConfigDict
from typing_extensions import TypedDict

IMAGE_SUFFIXES = frozenset({'.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp'})


class DataError(ValueError):
    """A dataset that cannot be read. The message is one sentence, also when a loader's worker has wrapped it
    into the report of a traceback."""

    def __str__(self) -> str:
        return super().__str__().strip().rsplit(f'{type(self).__name__}: ', 1)[-1]


class IOBackend(TypedDict):
    __pydantic_config__ = ConfigDict(extra='forbid')  # type: ignore[misc]
    type: Literal['disk', 'lmdb']


class Source(Protocol):
    """Encoded images by name; a name has no suffix."""

    names: list[str]

    def read(self, name: str) -> bytes: ...

    def where(self, name: str) -> str:
        """For messages: which file this is."""
        ...


class FolderSource:
    """The images of one folder (not of its subfolders), in natural order."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f'{folder}: there is no such folder')
        self._paths: dict[str, Path] = {}
        for path in natsorted(folder.iterdir(), key=lambda path: path.name):
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.'):
                if path.stem in self._paths:
                    raise DataError(
                        f'{folder}: {self._paths[path.stem].name} and {path.name} have the same name'
                    )
                self._paths[path.stem] = path
        self.names = list(self._paths)
        self.folder = folder

    def read(self, name: str) -> bytes:
        try:
            return self._paths[name].read_bytes()
        except OSError as error:
            raise DataError(f'{self._paths[name]}: cannot be read: {error.strerror}') from None

    def where(self, name: str) -> str:
        return str(self._paths[name]) if name in self._paths else str(self.folder / name)


class LMDBSource:
    """An LMDB of encoded images, with the `meta_info.txt` that names its keys (`name.png (h,w,c) level`)."""

    def __init__(self, folder: Path) -> None:
        if folder.suffix != '.lmdb' or not folder.is_dir():
            raise DataError(f'{folder}: there is no such LMDB folder (its name ends in .lmdb)')
        self.names = [Path(name).stem for name in read_meta_info(folder / 'meta_info.txt')]
        self.folder = folder
        self._environment: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_environment': None}

    def read(self, name: str) -> bytes:
        import lmdb

        if self._environment is None:  # once in every worker: an open LMDB does not survive a fork
            try:
                self._environment = lmdb.open(
                    str(self.folder), readonly=True, lock=False, readahead=False, meminit=False
                )
            except lmdb.Error as error:
                raise DataError(f'{self.folder}: cannot be opened as an LMDB: {error}') from None
        with self._environment.begin() as transaction:
            encoded = transaction.get(name.encode())
        if encoded is None:
            raise DataError(f'{self.where(name)}: meta_info.txt names this key, but the LMDB does not hold it')
        return encoded

    def where(self, name: str) -> str:
        return f'{self.folder}:{name}'


def read_meta_info(path: Path) -> list[str]:
    """The first word of every line: a file name."""
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError):
        raise DataError(f'{path}: there is no such meta-info file, or it is not text') from None
    return [line.split()[0] for line in lines if line.strip()]


def open_source(root: Path, backend: IOBackend) -> Source:
    return LMDBSource(root) if backend['type'] == 'lmdb' else FolderSource(root)


def decode(encoded: bytes, where: str, channels: int) -> np.ndarray:
    """(H, W, channels) uint8 or uint16, RGB order, upright. Raises DataError if it is no whole image."""
    flags = (cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE) | cv2.IMREAD_ANYDEPTH
    try:
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags) if encoded else None
    except cv2.error:
        pixels = None
    if pixels is None:
        raise DataError(f'{where}: is empty, cut short, or not an image')
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f'{where}: found pixels of type {pixels.dtype}; allowed: 8 or 16 bit')
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if channels == 3 else pixels[:, :, None]
