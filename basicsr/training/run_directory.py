"""The folder of a run, `experiments/<name>`: checkpoints, training states, history.

A save writes the history, then the weights, then the training state, each file atomically. So everything that a state
refers to exists, wherever a kill interrupts.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from basicsr.utils.checkpoint import read_checkpoint
from basicsr.utils.errors import CheckpointError, RunError, UnreadableError
from basicsr.utils.files import as_json, atomic_write, lock, naming, remove_leftovers
from basicsr.utils.logger import get_logger
from basicsr.utils.text import listed

STATES_KEPT = 2  # the newest, and one to fall back to


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
        """Makes the folders and holds a lock on them, which ends with the process at the latest. Raises RunError if
        another process holds it, or the folders cannot be written."""
        try:
            for folder in (self.models, self.states):
                folder.mkdir(parents=True, exist_ok=True)
            lock_file = (self.root / '.lock').open('w')
        except OSError as error:
            raise RunError(
                f'{self.root} cannot be written: {error.strerror}; --experiments_dir FOLDER stores runs elsewhere'
            ) from None
        with lock_file as file:
            if not lock(file):
                raise RunError(f'{self.root}: another process is training in this folder')
            for folder in (self.root, self.models, self.states):
                remove_leftovers(folder)
            yield

    def new_snapshot(self, option_file: str) -> Path:
        """A path for the options of this start: `option_file`, and at later starts its name with _2, _3, …"""
        first = self.root / option_file
        later = (first.with_stem(f'{first.stem}_{number}') for number in itertools.count(2))
        return next(path for path in itertools.chain([first], later) if not path.exists())

    # -------------------------------------------------------------- training states

    def state_file(self, iteration: int) -> Path:
        return self.states / f'{iteration}.state'

    def owns(self, state: Path) -> bool:
        return state.parent.resolve() == self.states.resolve()

    def has_states(self) -> bool:
        return bool(_numbered(self.states, '*.state'))

    def save_state(self, iteration: int, state: dict[str, Any]) -> None:
        if self._history.exists():  # fsync the history first, so it is never older than the state
            with self._history.open('rb') as file:
                os.fsync(file.fileno())
        atomic_write(self.state_file(iteration), lambda file: torch.save(state, file))

    def refuse_newer_states(self, iteration: int) -> None:
        """Raises RunError if the folder holds states from after `iteration`, which would mix with those of a run that
        resumes there."""
        newer = [path for number, path in _numbered(self.states, '*.state') if number > iteration]
        if newer:
            raise RunError(
                f'{newer[0]} is from after iteration {iteration}, the one of path.resume_state; choose another name '
                'for the run, or resume this one with --auto_resume'
            )

    def newest_state(self) -> dict[str, Any] | None:
        """The newest valid state, or None if there are no states. Logs damaged ones; raises RunError if all are.
        Raises UnreadableError if the operating system cannot read one, as it may be intact."""
        states = _numbered(self.states, '*.state')
        for _, path in states:
            try:
                return read_state(path)
            except UnreadableError as error:
                raise UnreadableError(
                    f'{error}; make it readable, or move it elsewhere to resume from the state before it'
                ) from error
            except CheckpointError:
                get_logger().warning('%s is damaged; falling back to the state before it', path)
        if states:
            raise RunError(f'{self.states}: every state is damaged; start a new run under another name')
        return None

    def refuse_lost_states(self, first_save: int) -> None:
        """Raises RunError if a run without states has results from after its first save, at iteration `first_save`:
        they would be overwritten."""
        reached = max((entry['iter'] for entry in self._entries()), default=None)
        weights = {path.name for path in self.models.glob('net_g_*.pth')}
        # A kill before the first save leaves these at most.
        early = {self.weights_file(name).name for name in ('best', first_save) if reached is not None}
        if (reached or 0) <= first_save and weights <= early:
            return
        results = [*([f'a history up to iteration {reached}'] if reached is not None else []), *sorted(weights)]
        start = ' path:pretrain_network_g=FILE, which starts from one of these weights' if weights else ''
        raise RunError(
            f'{self.states} has no training state, but the run has results ({listed(results)}), which --auto_resume '
            f'would overwrite; copy the states back, or start a new run: --force_yml name=ANOTHER_NAME{start}'
        )

    # -------------------------------------------------------------- weights

    def weights_file(self, iteration: int | str) -> Path:
        return self.models / f'net_g_{iteration}.pth'

    def prune(self, iteration: int, keep_last: int | None) -> None:
        """Removes old numbered checkpoints (not the best and the latest) and states."""
        for folder, pattern, kept in (
            (self.states, '*.state', STATES_KEPT),
            (self.models, 'net_g_*.pth', keep_last),
        ):
            # Newer files may be damaged leftovers from before a resume: do not count them.
            numbered = [path for number, path in _numbered(folder, pattern) if number <= iteration]
            for path in numbered[kept:] if kept is not None else []:
                path.unlink()

    # -------------------------------------------------------------- history

    def append_history(self, entry: dict[str, Any]) -> None:
        """Appends a line to history.jsonl, which has every logged value of the run once."""
        with naming(self._history), self._history.open('a', encoding='utf-8') as file:
            file.write(as_json(entry, indent=None) + '\n')

    def rewind_history(self, iteration: int, validated: bool = True) -> None:
        """Drops the entries from after `iteration`, and if it is not `validated` those of its validation: they will be
        logged again. Drops invalid lines, too."""
        kept = [
            as_json(entry, indent=None) + '\n'
            for entry in self._entries()
            if entry['iter'] < iteration
            or (entry['iter'] == iteration and (validated or not str(entry.get('kind')).startswith('val_')))
        ]
        atomic_write(self._history, ''.join(kept).encode())

    def _entries(self) -> Iterator[dict[str, Any]]:
        """The valid lines of the history."""
        for line in self._history.read_bytes().splitlines() if self._history.exists() else ():
            with contextlib.suppress(ValueError):  # a line that a kill cut short
                entry = json.loads(line)
                if isinstance(entry, dict) and isinstance(entry.get('iter'), int):
                    yield entry


def read_state(path: Path) -> dict[str, Any]:
    """Raises CheckpointError if the file is damaged or is no training state."""
    state = read_checkpoint(path)
    if not {'iteration', 'model'} <= state.keys():
        raise CheckpointError(f'{path}: holds no training state, only {", ".join(map(str, state))}')
    return state


def _numbered(folder: Path, pattern: str) -> list[tuple[int, Path]]:
    """(iteration, file) of the files that match a pattern with one `*`, newest first. Raises OSError where the folder
    cannot be read; Path.glob would find nothing there."""
    prefix, suffix = map(re.escape, pattern.split('*'))
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    matches = (re.fullmatch(f'{prefix}([0-9]+){suffix}', name) for name in names)
    return sorted(((int(match[1]), folder / match[0]) for match in matches if match), reverse=True)
