"""Files and archives to download, and the files they must hold."""

from __future__ import annotations

from typing import NamedTuple


class RemoteFile(NamedTuple):
    url: str
    sha256: str | None = None  # None: unknown
    size: int | None = None  # in bytes

    @property
    def name(self) -> str:
        return self.url.rpartition('/')[2]

    @property
    def stem(self) -> str:
        return self.name.rpartition('.')[0]


class DataSet(NamedTuple):
    """The files of a data set.

    Args:
        key: <train, val or test>/<name>.
        number: of files of each part with a `*`; None: unknown, any number above 0.
        parts: the files, below the folder of the set. `*` stands for any text; without a suffix, for images only.
        same_names: the texts of `*` must be the same in all parts; else only their number.
        folder: below the task's Datasets; '': the key.
        optional: further files, if the archive has them.
        excess: names of images in the archive that do not belong to the set.
    """

    key: str
    number: int | None = None
    parts: tuple[str, ...] = ('input/*', 'target/*')
    same_names: bool = True
    folder: str = ''
    optional: tuple[str, ...] = ()
    excess: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        return self.key.split('/')[0]

    @property
    def name(self) -> str:
        return self.key.split('/')[1]

    @property
    def place(self) -> str:
        return self.folder or self.key


class Archive(NamedTuple):
    """A zip archive on Google Drive. If it holds several sets, each stands in a folder of its name."""

    drive_id: str
    sets: tuple[DataSet, ...]

    @property
    def name(self) -> str:
        first = self.sets[0]
        return f'{first.name}_{first.group}.zip' if len(self.sets) == 1 else f'{first.group}.zip'
