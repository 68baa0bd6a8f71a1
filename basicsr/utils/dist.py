"""Ranks of a run: one process alone, or a process group started by torchrun or Slurm."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from basicsr.utils.errors import LaunchError

Launcher = Literal['none', 'pytorch', 'slurm']
LAUNCHERS: tuple[Launcher, ...] = ('none', 'pytorch', 'slurm')

T = TypeVar('T')


@dataclass(frozen=True)
class Rank:
    """This process's place in the process group; by default it is alone."""

    index: int = 0
    world_size: int = 1
    local_index: int = 0
    """Place among the ranks of this node."""

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all ranks."""
        if self.world_size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world_size

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in order of rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values


# The variables of `Rank`'s fields, and the command that sets them.
_VARIABLES = {
    'pytorch': (('RANK', 'WORLD_SIZE', 'LOCAL_RANK'), 'torchrun'),
    'slurm': (('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'), 'srun'),
}


def find_rank(launcher: Launcher) -> Rank:
    """Reads the launcher's environment variables. Raises LaunchError if they are not set."""
    if launcher == 'none':
        return Rank()
    names, command = _VARIABLES[launcher]
    try:
        return Rank(*(int(os.environ[name]) for name in names))
    except (KeyError, ValueError):
        raise LaunchError(
            f'--launcher {launcher}: {", ".join(names)} are not set; allowed: a start through {command}'
        ) from None


def _slurm_first_host() -> str:
    try:
        command = ['scontrol', 'show', 'hostnames', os.environ['SLURM_JOB_NODELIST']]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]  # noqa: S603
    except (subprocess.CalledProcessError, FileNotFoundError, IndexError, KeyError):
        raise LaunchError(
            'MASTER_ADDR is not set, and scontrol does not name the first node; allowed: a start through torchrun or '
            'srun, or MASTER_ADDR'
        ) from None


_FAILURE = 'failure'  # key in the store: why the first rank to fail did
_store: dist.Store | None = None


def join(rank: Rank, device: torch.device, backend: str, port: int) -> None:
    """Joins the process group; `port` is the first node's, unless the launcher names one. Raises LaunchError."""
    global _store
    if rank.world_size == 1:
        return
    if 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _slurm_first_host()
    os.environ.setdefault('MASTER_PORT', str(port))
    if device.type != 'cuda':
        backend = 'gloo'
    elif backend == 'auto':
        backend = 'nccl'
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    try:
        _store, _, _ = next(iter(dist.rendezvous('env://', rank.index, rank.world_size)))
        dist.init_process_group(backend, store=_store, rank=rank.index, world_size=rank.world_size)
    except (RuntimeError, ValueError) as error:
        place = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
        raise LaunchError(
            f'the processes do not find each other at {place} ({str(error).splitlines()[0]}); allowed: the first node, '
            'and a port that is free there (MASTER_PORT, or dist_params.port)'
        ) from None


def leave(status: int | None) -> None:
    """Leaves the process group. `status` is the exit status, or None if an exception is propagating.

    NCCL destroys a group on all ranks together. A rank that failed alone would wait for the others, and they for it, so
    it exits here."""
    global _store
    _store = None
    if not (dist.is_available() and dist.is_initialized()):
        return
    if status == 0 or dist.get_backend() != 'nccl':
        dist.destroy_process_group()
        return
    if status is None:
        error = sys.exc_info()[1]
        if isinstance(error, SystemExit) and isinstance(error.code, int):  # a signal
            status = error.code
        else:
            traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status or 1)


@contextlib.contextmanager
def report_failure(rank: Rank) -> Iterator[None]:
    """Publishes why this rank failed. On ranks whose communication fails as a consequence, raises LaunchError with that
    reason instead of the backend's error.

    With gloo, communication fails at once. With NCCL it may not fail at all: ranks wait in a kernel, where no signal
    handler runs, until the launcher kills them (torchrun 30 seconds after SIGTERM) or NCCL's watchdog does after 10
    minutes. Then only the failed rank, or the launcher if that was killed, gives the reason. The 10 minutes are
    PyTorch's default: ranks wait as long for one that still validates, saves or compiles."""
    try:
        yield
    except BaseException as error:
        if _store is None:
            raise
        if is_communication(error):
            raise LaunchError(_reason_of_others(_store)) from None
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        reason = 'stopped by a signal' if stopped else str(error) or type(error).__name__
        with contextlib.suppress(RuntimeError):  # the rank that hosts the store is gone
            _store.compare_set(_FAILURE, '', f'rank {rank.index}: {reason}')
        raise


def is_communication(error: BaseException) -> bool:
    """Whether another rank is the cause. Gloo, NCCL and the store raise plain RuntimeErrors, known by their text."""
    names = ('gloo', 'NCCL', 'onnection')
    return isinstance(error, RuntimeError) and any(name in str(error) for name in names)


def _reason_of_others(store: dist.Store) -> str:
    with contextlib.suppress(RuntimeError):
        if store.check([_FAILURE]):
            return f'stopped, because another process failed: {store.get(_FAILURE).decode()}'
    return 'stopped: another process exited without giving a reason (perhaps killed for lack of memory)'
