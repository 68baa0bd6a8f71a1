"""The only table of tasks: their folders, and the weights they use when none are named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from basicsr.utils.errors import CheckpointError
from basicsr.utils.files import ROOT


@dataclass(frozen=True)
class Task:
    """`folder` is below the repository root. `published` and `shipped` are weights files in its
    `pretrained_models`: the one that a user may download, under its own licence, and the one that comes with
    the repository."""

    folder: str
    published: str
    shipped: str

    @property
    def shipped_file(self) -> Path:
        return ROOT / self.folder / 'pretrained_models' / self.shipped

    @property
    def name(self) -> str:
        """As on the command line, and as the folder of results."""
        return self.folder.lower()


TASKS = {
    'motion_deblurring': Task(
        folder='Motion_Deblurring', published='motion_deblurring.pth', shipped='motion_deblurring_compact.pth'
    ),
}


def find_task(name: str) -> Task:
    """In any letter case. Raises ValueError, naming what there is."""
    try:
        return TASKS[name.lower()]
    except KeyError:
        raise ValueError(f'task: found {name!r}; allowed: {", ".join(TASKS)}') from None


def default_weights(task: str) -> Path:
    """The published weights if they are there, else the shipped ones. Raises CheckpointError if neither is."""
    found = find_task(task)
    folder = found.shipped_file.parent
    for path in (folder / found.published, found.shipped_file):
        if path.is_file():
            return path
    raise CheckpointError(
        f'{folder} has neither {found.published} nor {found.shipped}: no weights for {found.name}; '
        f'python {found.folder}/download_data.py --data weights gets the first'
    )
