"""Encoded images from a folder or an LMDB."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar
from weakref import WeakValueDictionary

import lmdb
from natsort import natsorted
from pydantic import with_config
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from basicsr.images.reader import IMAGE_SUFFIXES
from basicsr.utils.errors import DataError
from basicsr.utils.files import resolve
from basicsr.utils.text import listed

Key = TypeVar('Key')
Image = TypeVar('Image')

# The shortest start of a line that ends like an image file, as names may contain spaces and dots.
_FILE_NAME = re.compile(rf'\s*(\S.*?)(?:{"|".join(map(re.escape, IMAGE_SUFFIXES))})(?!\S)', flags=re.IGNORECASE)


@with_config({'extra': 'forbid'})
class IOBackend(TypedDict):
    type: Literal['disk', 'lmdb']


class Source(Protocol):
    """Encoded images by name, without suffix, in natural order (2 before 10)."""

    root: Path
    names: list[str]

    def read(self, name: str) -> bytes: ...

    def where(self, name: str) -> str:
        """The file of an image, for messages."""
        ...


def open_source(root: Path, backend: IOBackend) -> Source:
    if root.suffix == '.pack':
        raise DataError(
            f'{root}: found a pack; allowed: a folder of images or an LMDB, for this type of dataset'
        )
    source: Source = LMDBSource(root) if backend['type'] == 'lmdb' else FolderSource(root)
    if not source.names:
        raise DataError(f'{root}: contains no images')
    return source


def open_sources(roots: Mapping[str, str | None], backend: IOBackend) -> dict[str, Source]:
    """Kind → its source, for the kinds that have a root."""
    return {kind: open_source(resolve(root), backend) for kind, root in roots.items() if root}


def read_all(read: Callable[[Key], Image], keys: Iterable[Key]) -> list[Image]:
    """`read` of each key. Raises DataError that names every image that cannot be read."""
    images, failures = [], []
    for key in keys:
        try:
            images.append(read(key))
        except DataError as error:
            failures.append(error)
    DataError.raise_all(failures)
    return images


class FileSource:
    """`files`: (name, file below `root`) of images. Raises DataError if two have the same name."""

    def __init__(self, root: Path, files: Iterable[tuple[str, str]]) -> None:
        self.root = root
        self._files: dict[str, str] = {}
        repeated = []
        for name, file in files:
            if name in self._files:
                repeated.append(f'{self._files[name]} and {file}')
            self._files[name] = file
        if repeated:
            raise DataError(f'{root}: {listed(repeated)} have the same name')
        self.names: list[str] = natsorted(self._files)

    def read(self, name: str) -> bytes:
        path = self.root / self._files[name]
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f'{path}: cannot be read: {error.strerror}') from None

    def where(self, name: str) -> str:
        return str(self.root / self._files.get(name, name))


class FolderSource(FileSource):
    """The images of a folder, without subfolders and hidden files."""

    def __init__(self, root: Path) -> None:
        try:
            with os.scandir(root) as entries:
                files = sorted(entry.name for entry in entries if _is_image(entry))
        except OSError as error:
            raise DataError(f'{root}: cannot be read as a folder: {error.strerror}') from None
        super().__init__(root, ((Path(file).stem, file) for file in files))


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.name.startswith('.') and entry.is_file()


class LMDBSource:
    """An LMDB of encoded images, with a `meta_info.txt` that names its keys (`name.png (h,w,c) level`)."""

    def __init__(self, root: Path) -> None:
        if root.suffix != '.lmdb' or not root.is_dir():
            raise DataError(f'{root}: is not an LMDB folder; allowed: a folder named NAME.lmdb')
        self.root = root
        self.names: list[str] = natsorted(sorted(read_meta_info(root / 'meta_info.txt')))
        self._environment: lmdb.Environment | None = None
        try:
            with self._open().begin() as transaction, transaction.cursor() as cursor:
                missing = [name for name in self.names if not cursor.set_key(name.encode())]
        except lmdb.Error as error:
            raise DataError(f'{root}: cannot be read as an LMDB: {error}') from None
        if missing:
            raise DataError(f'{root}: meta_info.txt names keys that the LMDB does not have: {listed(missing)}')

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
            raise DataError(f'{self.where(name)}: was removed from the LMDB')
        return encoded

    def where(self, name: str) -> str:
        return f'{self.root}:{name}'


# A process can open an LMDB only once, and several datasets may use it.
_open_environments: WeakValueDictionary[Path, lmdb.Environment] = WeakValueDictionary()


def _open_lmdb(root: Path) -> lmdb.Environment:
    """Opens an LMDB for reading, without locks: then it is only a mapping, which forked workers inherit."""
    root = root.resolve()
    environment = _open_environments.get(root)
    if environment is None:
        environment = lmdb.open(str(root), readonly=True, lock=False, readahead=False, meminit=False)
        counts = environment.stat()
        # Reading mapped pages that a cut file lacks would kill the process. Two pages are the header.
        pages = 2 + counts['branch_pages'] + counts['leaf_pages'] + counts['overflow_pages']
        if (root / 'data.mdb').stat().st_size < pages * counts['psize']:
            environment.close()
            raise lmdb.CorruptedError('data.mdb is cut short')
        _open_environments[root] = environment
    return environment


def read_meta_info(path: Path) -> list[str]:
    """The image named at the start of each line, without its suffix. Raises DataError on duplicates."""
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError):
        raise DataError(f'{path}: no such meta-info file, or it is not text in UTF-8') from None
    names = [
        found[1] if (found := _FILE_NAME.match(line)) else line.split()[0] for line in lines if line.strip()
    ]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f'{path}: names images more than once: {listed(repeated)}')
    return names
