"""`experiments/<name>`: what a run leaves on disk, and how it finds its way back after a kill.

A checkpoint is written in this order: what was logged, the weights, the training state. The state is the
last, and each file appears whole or not at all; so everything that a state refers to is there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from basicsr.utils.checkpoint import read_checkpoint
from basicsr.utils.errors import CheckpointError, RunError
from basicsr.utils.files import as_json, atomic_write, lock, remove_leftovers
from basicsr.utils.logger import get_logger

STATES_KEPT = 2  # the newest, and the one to fall back to


class RunDirectory:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.models = root / 'models'
        self.states = root / 'training_states'
        self.visualization = root / 'visualization'
        self.tensorboard = root / 'tb_logger'
        self.log = root / 'train.log'
        self._history = root / 'history.jsonl'

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folders and holds them. The lock is gone with the process, however that ends.
        Raises RunError if another process holds it."""
        for folder in (self.models, self.states):
            folder.mkdir(parents=True, exist_ok=True)
        with (self.root / '.lock').open('w') as file:
            if not lock(file):
                raise RunError(f'{self.root}: another process is training in this folder')
            for folder in (self.root, self.models, self.states):
                remove_leftovers(folder)  # of a save that a kill interrupted
            yield

    # -------------------------------------------------------------- training states

    def state_file(self, iteration: int) -> Path:
        return self.states / f'{iteration}.state'

    def has_state(self, path: Path) -> bool:
        """Whether a state is one of this run."""
        return path.parent.resolve() == self.states.resolve()

    def save_state(self, iteration: int, state: dict[str, Any]) -> None:
        if self._history.exists():  # what it says must not be lost by a power cut that the state outlasts
            with self._history.open('rb') as file:
                os.fsync(file.fileno())
        atomic_write(self.state_file(iteration), lambda file: torch.save(state, file))

    def _numbered(self, folder: Path, pattern: str) -> list[tuple[int, Path]]:
        """Files of a folder by iteration, newest first."""
        prefix, suffix = pattern.split('*')
        found = [
            (int(number), path)
            for path in folder.glob(pattern)
            if (number := path.name.removeprefix(prefix).removesuffix(suffix)).isdecimal()
        ]
        return sorted(found, reverse=True)

    def refuse_newer_states(self, iteration: int) -> None:
        """Raises RunError if the folder holds states from after `iteration`: they would be mixed up."""
        newer = [path for number, path in self._numbered(self.states, '*.state') if number > iteration]
        if newer:
            raise RunError(
                f'{newer[0]} is from after iteration {iteration}, where path.resume_state would go on; '
                'choose another name for the run, or use --auto_resume to go on with this one'
            )

    def newest_state(self) -> dict[str, Any] | None:
        """The newest state that is whole; None if there is none at all. Says which ones are damaged.
        Raises RunError if there are states, and all are damaged."""
        states = self._numbered(self.states, '*.state')
        for _, path in states:
            with contextlib.suppress(CheckpointError):
                return read_state(path)
            get_logger().warning('%s is damaged; falling back to the state before it', path)
        if states:
            raise RunError(f'{self.states}: every state is damaged; start anew under another name')
        return None

    # -------------------------------------------------------------- weights

    def weights_file(self, iteration: int | str) -> Path:
        return self.models / f'net_g_{iteration}.pth'

    def prune(self, iteration: int, keep_last: int | None) -> None:
        """Removes the checkpoints that are old at `iteration`; the best and the latest are not numbered, and stay."""
        for folder, pattern, kept in (
            (self.states, '*.state', STATES_KEPT),
            (self.models, 'net_g_*.pth', keep_last),
        ):
            # A newer one may be left of what was damaged: it is no reason to remove a good one.
            numbered = [path for number, path in self._numbered(folder, pattern) if number <= iteration]
            for path in numbered[kept:] if kept is not None else []:
                path.unlink()

    # -------------------------------------------------------------- what was logged

    def record(self, entry: dict[str, Any]) -> None:
        """Appends a line to history.jsonl, which holds every logged value of the run once."""
        with self._history.open('a', encoding='utf-8') as file:
            file.write(as_json(entry, indent=None) + '\n')

    def history(self) -> list[dict[str, Any]]:
        if not self._history.exists():
            return []
        entries = []
        for line in self._history.read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # a kill can cut the last line, and a disk can break any
                entry = json.loads(line)
                if isinstance(entry, dict) and isinstance(entry.get('iter'), int):
                    entries.append(entry)
        return entries

    def rewind_history(self, iteration: int) -> None:
        """Forgets what was logged after `iteration`: it will be logged again."""
        kept = [as_json(entry, indent=None) + '\n' for entry in self.history() if entry['iter'] <= iteration]
        atomic_write(self._history, ''.join(kept).encode())


def read_state(path: Path) -> dict[str, Any]:
    """Raises CheckpointError if the file is damaged or holds no training state."""
    state = read_checkpoint(path)
    if not {'iteration', 'model'} <= state.keys():
        raise CheckpointError(f'{path}: holds no training state, only {", ".join(map(str, state))}')
    return state
