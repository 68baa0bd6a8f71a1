"""Time and memory, and processes of their own to measure them in."""

from __future__ import annotations

import argparse
import functools
import gc
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from basicsr.utils.device import resolve_device, resolve_precision
from basicsr.utils.errors import DeviceError
from basicsr.utils.memory import is_out_of_memory
from scripts.benchmarks import PRECISIONS
from scripts.benchmarks.table import Row

Task = dict[str, Any]
MACHINE: Task = {'what': 'machine'}
SCRIPT = Path(__file__).resolve().parents[1] / 'benchmark.py'

SMALL_SIDE = 256  # of matrices whose product is quick on any machine
LONGEST_PRODUCT = 3  # seconds
WARM_UP = 3  # calls on a GPU that are not timed
TOO_LARGE = 'does not fit into memory'


def precision_of(mode: str) -> str:
    return next((part for part in mode.split('+') if part in PRECISIONS), 'fp32')


def check_modes(args: argparse.Namespace) -> None:
    """Raises DeviceError if the device, or a precision on it, is not there."""
    device = resolve_device(args.device)
    for mode in args.modes:
        resolve_precision(precision_of(mode), device)


def repeats(asked: int | None, device: torch.device, on_a_cpu: int) -> int:
    """How often a row's work is timed: by default 10 times on a GPU, where that takes little."""
    return asked if asked is not None else 10 if device.type == 'cuda' else on_a_cpu


def measured(args: argparse.Namespace, tasks: list[Task]) -> Iterator[tuple[Task, Row]]:
    """Each task with its row, as soon as that is there, after the machine's.

    On a CPU a row has a process of its own, whose peak of memory nothing else has raised. A GPU's peak can be reset,
    and a process there takes long to start: one does all tasks."""
    everything = [MACHINE, *tasks]
    groups = [everything] if resolve_device(args.device).type == 'cuda' else [[task] for task in everything]
    for group in groups:
        for task, row in zip(group, run_alone(args, group), strict=True):
            if task is MACHINE and 'failed' in row:
                raise RuntimeError(row['failed'])
            yield task, row


def run_alone(args: argparse.Namespace, tasks: list[Task]) -> Iterator[Row]:
    """Run `measure` of the command for the tasks in a process of their own, and yield its rows. If the process ends too
    early, the row of its current task is {'failed': why}, and another process does the remaining tasks."""
    waiting = list(tasks)
    while waiting:
        command = [sys.executable, str(SCRIPT), *args.command_line, '--measure', json.dumps(waiting)]
        with (
            tempfile.TemporaryFile('w+') as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,  # noqa: S603
        ):
            try:
                for line in process.stdout or ():
                    del waiting[0]
                    yield json.loads(line)
            except BaseException:
                process.kill()
                raise
            status = process.wait()
            errors.seek(0)
            said = errors.read().strip().splitlines()
        if waiting:
            del waiting[0]
            killed = 'was killed, as systems do that run out of memory'
            reason = said[-1] if said else f'ended with status {status}'
            yield {'failed': killed if status == -signal.SIGKILL else reason}


def figures(row: Row, samples: int) -> Row:
    """A row, of the times that were measured for so many samples at once; of a failed one, as it is."""
    if 'failed' in row:
        return row
    row = dict(row)
    times = row.pop('times')
    row |= {
        'seconds': statistics.median(times),
        'range': [min(times), max(times)],
        'samples_per_s': samples / statistics.median(times),
    }
    if 'launches' in row:
        row['launch_seconds'] = statistics.median(row.pop('launches'))
    if 'waits' in row:
        row['data_wait'] = sum(row.pop('waits')) / sum(times)
    return row


def attempt(measure: Callable[[argparse.Namespace, Task], Row], args: argparse.Namespace, task: Task) -> Row:
    """Return the row that `measure` returns, or {'failed': why}, so that the other rows are still measured."""
    try:
        return measure(args, task)
    except Exception as error:
        if is_out_of_memory(error):  # type: ignore[arg-type]
            return {'failed': TOO_LARGE}
        return {'failed': ' '.join(f'{type(error).__name__}: {error}'.split())[:300]}


def begin(device: torch.device) -> None:
    """Frees what an earlier row of this process has left on a GPU."""
    if device.type == 'cuda':
        torch.cuda.set_device(device.index or 0)  # of which events are recorded
        if 'torch._dynamo' in sys.modules:
            torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


def machine(device: torch.device, exact: bool = False) -> Row:
    """What it is, and its rate of multiplying square matrices, which no network exceeds. `exact`: its rows are
    measured without TF32."""
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
    answer = {'threads': torch.get_num_threads(), 'torch': torch.__version__, 'gflops': rates}
    if device.type != 'cuda':
        return {'device': device.type, **answer}
    tf32 = {
        'convolutions': not exact and torch.backends.cudnn.allow_tf32,
        'matrix products': not exact and torch.backends.cuda.matmul.allow_tf32,
    }
    return {'device': torch.cuda.get_device_name(device), **answer, 'tf32': tf32}


def title(machine: Row) -> str:
    rates = ', '.join(f'{rate:.0f} GFLOP/s in {name}' for name, rate in machine['gflops'].items())
    text = f'{machine["device"]}, {machine["threads"]} threads, PyTorch {machine["torch"]}; matrix product: {rates}'
    uses = [f'{"TF32" if used else "no TF32"} in {what}' for what, used in machine.get('tf32', {}).items()]
    return '; '.join([text, f'fp32: {", ".join(uses)}'] if uses else [text])


def timed(work: Callable[[], object], device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


def timed_on_gpu(
    work: Callable[[], object], count: int, memory: Memory, forget: Callable[[], object] | None = None
) -> Row:
    """The row's times after WARM_UP calls, in which libraries choose their ways: only then its memory begins to
    count, as a library tries ways that take far more than the one it chooses. `forget` drops a CUDA graph: the peak
    sees what a graph takes only while it is recorded, so it is recorded once more."""
    for _ in range(WARM_UP):
        work()
    torch.cuda.synchronize(memory.device)
    torch.cuda.reset_peak_memory_stats(memory.device)
    if forget is not None:
        forget()
        for _ in range(WARM_UP):
            work()
    return timed_by_events(work, count, functools.partial(torch.cuda.Event, enable_timing=True))


def timed_by_events(
    work: Callable[[], object],
    count: int,
    event: Callable[[], Any],
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    """Seconds of each of `count` calls on a GPU, from one event to the next, and of the processor until the call had
    launched it. Nothing waits in between, as a program launches ahead; only when the GPU's queue is full does a launch
    take as long as the work."""
    events, clocks = [], []
    for number in range(count + 1):
        events.append(event())
        events[-1].record()
        clocks.append(clock())
        if number < count:
            work()
    events[-1].synchronize()
    return {
        'times': [start.elapsed_time(end) / 1e3 for start, end in pairwise(events)],
        'launches': [end - start for start, end in pairwise(clocks)],
    }


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
