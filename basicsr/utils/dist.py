"""Which process this is, of how many: alone, under torchrun, or under Slurm."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

Launcher = Literal['none', 'pytorch', 'slurm']
LAUNCHERS: tuple[Launcher, ...] = ('none', 'pytorch', 'slurm')


class LaunchError(ValueError):
    """Started in a way that does not fit --launcher."""


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
    command = ['scontrol', 'show', 'hostnames', os.environ['SLURM_JOB_NODELIST']]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]  # noqa: S603


def join(process: Process, device: torch.device, backend: str, port: int) -> None:
    """Makes the processes find each other; `port` is of the first node, where the launcher names none.
    Nothing to do for one alone."""
    if process.world_size == 1:
        return
    if backend == 'auto' or device.type != 'cuda':
        backend = 'nccl' if device.type == 'cuda' else 'gloo'
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    if 'MASTER_ADDR' not in os.environ:  # torchrun has set it
        os.environ['MASTER_ADDR'] = _slurm_first_host()
    os.environ.setdefault('MASTER_PORT', str(port))
    dist.init_process_group(backend, rank=process.rank, world_size=process.world_size)


def leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
