"""Time and memory, and processes of their own to measure them in."""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from basicsr.utils.device import DeviceError, resolve_device, resolve_precision
from scripts.benchmarks import PRECISIONS

SCRIPT = Path(__file__).resolve().parents[1] / 'benchmark.py'

SMALL_SIDE = 256  # of matrices whose product is quick on any machine
LONGEST_PRODUCT = 3  # seconds


class KilledError(RuntimeError):
    """A process was killed, as systems do that run out of memory."""


def check_modes(args: argparse.Namespace) -> None:
    """Raises DeviceError if the device, or a precision on it, is not there."""
    device = resolve_device(args.device)
    for mode in args.modes:
        resolve_precision(mode.partition('+')[0], device)


def run_alone(args: argparse.Namespace, task: dict[str, Any]) -> dict[str, Any]:
    """What the command's `measure` answers to the task, in a process of its own, whose peak of memory nothing else
    has raised. Raises KilledError, or RuntimeError with the last thing that it said."""
    command = [sys.executable, str(SCRIPT), *args.command_line, '--measure', json.dumps(task)]
    result = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    if result.returncode:
        said = result.stderr.strip().splitlines()
        name = task.get('mode', task['what'])
        kind = KilledError if result.returncode == -signal.SIGKILL else RuntimeError
        raise kind(f'{name}: status {result.returncode}: {said[-1] if said else "killed"}')
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def machine(device: torch.device) -> dict[str, Any]:
    """What it is, and its rate of multiplying square matrices, which no network exceeds."""
    side = 2048 if device.type == 'cpu' else 8192

    def rate(side: int, dtype: torch.dtype) -> float:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in 'ab')
        times = [timed(lambda: torch.mm(a, b), device) for _ in range(10)]
        return 2 * side**3 / statistics.median(times[2:])

    rates = {}
    for precision in PRECISIONS:
        try:
            dtype = resolve_precision(precision, device) or torch.float32
        except DeviceError:  # fp16 on a CPU
            continue
        rates[precision] = rate(SMALL_SIDE, dtype) / 1e9
        # A processor that has no instructions for a precision would take minutes, and be no faster.
        if device.type != 'cpu' or 2 * side**3 / rates[precision] / 1e9 < LONGEST_PRODUCT:
            rates[precision] = rate(side, dtype) / 1e9
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type
    return {'device': name, 'threads': torch.get_num_threads(), 'torch': torch.__version__, 'gflops': rates}


def title(machine: dict[str, Any]) -> str:
    rates = ', '.join(f'{rate:.0f} GFLOP/s in {name}' for name, rate in machine['gflops'].items())
    return f'{machine["device"]}, {machine["threads"]} threads, PyTorch {machine["torch"]}; matrix product: {rates}'


def timed(work: Callable[[], object], device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


class Memory:
    """From when it is made to when it is read: the peak, and what it is above the beginning."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            if sys.platform != 'linux':
                raise RuntimeError('memory is measured by /proc; allowed: Linux, or a CUDA device')
            Path('/proc/self/clear_refs').write_text('5')  # the peak is what it is now
            self.before = self._of_process('VmRSS')

    def read(self) -> dict[str, float]:
        peak = (
            torch.cuda.max_memory_allocated(self.device)
            if self.device.type == 'cuda'
            else self._of_process('VmHWM')
        )
        return {'peak_MB': peak / 1e6, 'working_MB': (peak - self.before) / 1e6}

    @staticmethod
    def _of_process(name: str) -> int:
        lines = Path('/proc/self/status').read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
