"""Files and archives that a task can download, and how to recognise them."""

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
    """A set of images, as many in each of the folders `kinds`, with the same names."""

    place: str  # below the task's Datasets: <train, val or test>/<name>
    pairs: int
    kinds: tuple[str, ...] = ('input', 'target')

    @property
    def group(self) -> str:
        return self.place.split('/')[0]

    @property
    def name(self) -> str:
        return self.place.split('/')[1]


class Archive(NamedTuple):
    """A zip archive on Google Drive. If it holds several sets, each stands in a folder of its name."""

    drive_id: str
    sets: tuple[DataSet, ...]

    @property
    def name(self) -> str:
        first = self.sets[0]
        return f'{first.name}_{first.group}.zip' if len(self.sets) == 1 else f'{first.group}.zip'
