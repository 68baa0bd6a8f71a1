"""Which process this is, of how many: alone, under torchrun, or under Slurm."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from basicsr.utils.errors import LaunchError

Launcher = Literal['none', 'pytorch', 'slurm']
LAUNCHERS: tuple[Launcher, ...] = ('none', 'pytorch', 'slurm')


@dataclass(frozen=True)
class Process:
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes; the value itself where there is one."""
        if self.world_size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world_size

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the order of the ranks, in every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


def find_process(launcher: Launcher) -> Process:
    """Reads what the launcher has left in the environment. Raises LaunchError if it has not."""
    if launcher == 'none':
        return Process()
    if launcher == 'slurm':
        _slurm_environment()
    try:
        rank, world_size, local_rank = (int(os.environ[name]) for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'))
    except (KeyError, ValueError):
        raise LaunchError(
            '--launcher pytorch: RANK, WORLD_SIZE and LOCAL_RANK are not set; allowed: a start through torchrun'
        ) from None
    return Process(rank, world_size, local_rank)


def _slurm_environment() -> None:
    names = {'RANK': 'SLURM_PROCID', 'WORLD_SIZE': 'SLURM_NTASKS', 'LOCAL_RANK': 'SLURM_LOCALID'}
    try:
        os.environ.update({name: os.environ[slurm] for name, slurm in names.items()})
    except KeyError as error:
        raise LaunchError(f'--launcher slurm: {error} is not set; allowed: a start through srun') from None


def _slurm_first_host() -> str:
    try:
        command = ['scontrol', 'show', 'hostnames', os.environ['SLURM_JOB_NODELIST']]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]  # noqa: S603
    except (subprocess.CalledProcessError, FileNotFoundError, IndexError, KeyError):
        raise LaunchError(
            'MASTER_ADDR is not set, and scontrol does not name the first node; allowed: a start through torchrun or '
            'srun, or MASTER_ADDR'
        ) from None


_STOPPED = 'stopped'  # the key under which a process leaves its last words
_store: dist.Store | None = None


def join(process: Process, device: torch.device, backend: str, port: int) -> None:
    """Makes the processes find each other; `port` is of the first node, where the launcher names none.
    Nothing to do for one alone. Raises LaunchError if they do not."""
    global _store
    if process.world_size == 1:
        return
    if backend == 'auto' or device.type != 'cuda':
        backend = 'nccl' if device.type == 'cuda' else 'gloo'
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    if 'MASTER_ADDR' not in os.environ:  # torchrun has set it
        os.environ['MASTER_ADDR'] = _slurm_first_host()
    os.environ.setdefault('MASTER_PORT', str(port))
    try:
        _store, _, _ = next(iter(dist.rendezvous('env://', process.rank, process.world_size)))
        dist.init_process_group(backend, store=_store, rank=process.rank, world_size=process.world_size)
    except (RuntimeError, ValueError) as error:
        place = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
        raise LaunchError(
            f'the processes do not find each other at {place} ({str(error).splitlines()[0]}); allowed: the first node, '
            'and a port that is free there (MASTER_PORT, or dist_params.port)'
        ) from None


def leave(status: int | None) -> None:
    """With the exit status; None: with an exception that is on its way.

    NCCL leaves a group with all its processes together. One that stops alone would wait for the others, and they for
    it: it ends here and now."""
    global _store
    _store = None
    if not (dist.is_available() and dist.is_initialized()):
        return
    if status != 0 and dist.get_backend() == 'nccl':
        if status is None:
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status or 1)
    dist.destroy_process_group()


@contextlib.contextmanager
def last_words(process: Process) -> Iterator[None]:
    """A process that stops leaves word of why, for those whose work with it then fails: instead of what the network
    says they raise LaunchError, with that word.

    With gloo their work fails at once. With NCCL it may not fail at all: they wait in a kernel, deaf to signals, until
    the launcher kills them (torchrun 30 seconds after it has told them to end) or NCCL's watchdog does, 10 minutes
    later. Only the process that stopped says why then; of one that was killed, the launcher does. The 10 minutes are
    PyTorch's, and not shortened: all wait as long for one that still validates, saves or compiles."""
    try:
        yield
    except BaseException as error:
        if _store is None:
            raise
        if _is_of_network(error):
            raise LaunchError(_word_of_others(_store)) from None
        with contextlib.suppress(RuntimeError):  # the process that keeps the words is gone itself
            _store.compare_set(_STOPPED, '', f'rank {process.rank}: {str(error) or type(error).__name__}')
        raise


def _is_of_network(error: BaseException) -> bool:
    """Gloo, NCCL and the store say it differently, and not always in a type of their own."""
    names = ('gloo', 'NCCL', 'onnection')
    return isinstance(error, RuntimeError) and any(name in str(error) for name in names)


def _word_of_others(store: dist.Store) -> str:
    with contextlib.suppress(RuntimeError):
        if store.check([_STOPPED]):
            return f'stopped, as another process has, {store.get(_STOPPED).decode()}'
    return 'stopped, as another process is gone without a word (ended, or killed, perhaps for want of memory)'
