"""Shared by the commands: networks, timing, memory, a process for each row, and the table."""

from __future__ import annotations

import argparse
import gc
import inspect
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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from basicsr.archs import restormer_reference as reference
from basicsr.archs.from_weights import build_network, network_options
from basicsr.archs.restormer_arch import Restormer
from basicsr.utils.checkpoint import load_weights
from basicsr.utils.cli import usage_errors
from basicsr.utils.device import resolve_device, resolve_precision
from basicsr.utils.errors import CheckpointError, DeviceError, UserError
from basicsr.utils.files import ROOT
from basicsr.utils.memory import is_out_of_memory

Task = dict[str, Any]  # what to measure for one row
Row = dict[str, Any]

PRECISIONS = ('fp32', 'bf16', 'fp16')
PLAIN_MODES = ('plain+bf16', 'plain+compile', 'plain+bf16+compile')  # beside `plain`, the baseline of ratios

SMALL = {'dim': 16, 'num_blocks': [1, 1, 2, 2], 'num_refinement_blocks': 1, 'heads': [1, 2, 4, 8]}
MACHINE: Task = {'what': 'machine'}
SCRIPT = ROOT / 'scripts' / 'benchmark.py'
SMALL_SIDE = 256  # of matrices whose product is fast on any machine
LONGEST_PRODUCT = 3  # seconds
WARM_UP = 3  # untimed calls on a GPU
TOO_LARGE = 'does not fit into memory'


# --- networks -----------------------------------------------------------------------------------------------


def asked_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns all constructor arguments of the network: those of --weights, or by name. Raises CheckpointError."""
    options = {name: p.default for name, p in inspect.signature(Restormer).parameters.items()}
    if args.weights:
        options |= network_options(load_weights(args.weights))
        if options.pop('type', 'Restormer') != 'Restormer':
            raise CheckpointError(f'{args.weights}: only Restormer has a plain formulation to compare with')
    elif args.network == 'small':
        options |= SMALL
    return options


def load_network(args: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the network in eval mode, with random weights if there is no file, and its constructor arguments."""
    options = asked_options(args)
    torch.manual_seed(0)
    return build_network(load_weights(args.weights)) if args.weights else Restormer(**options).eval(), options


def plain(network: nn.Module, mode: str = 'plain') -> Callable[[Tensor], Tensor]:
    """Returns the plain formulation with the parameters of `network`: under autocast with `+bf16`; with `+compile`,
    blocks are compiled separately, each kind once."""
    block = torch.compile(reference.block, dynamic=False) if 'compile' in mode else reference.block
    parameters = dict(network.named_parameters())

    def restore(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled='bf16' in mode):
            return reference.restormer(parameters, x, block=block)

    return restore


def precision_of(mode: str) -> str:
    return next((part for part in mode.split('+') if part in PRECISIONS), 'fp32')


def check_modes(args: argparse.Namespace) -> None:
    """Raises UsageError if the device does not exist or does not support a precision."""
    with usage_errors():
        device = resolve_device(args.device)
        for mode in args.modes:
            resolve_precision(precision_of(mode), device)


# --- rows, in processes of their own ------------------------------------------------------------------------


def compare_rows(
    args: argparse.Namespace,
    tasks: list[Task],
    columns: dict[str, Column],
    gpu_columns: dict[str, Column],
    derive: Callable[[Task, Row, Row], Row],
) -> None:
    """Measures and reports the tasks. `derive(task, row, machine)` completes a row."""
    rows = measured(args, tasks)
    _, machine = next(rows)
    mode = {'mode': Column('mode', width=max(len(task['mode']) for task in tasks))}
    chosen = (gpu_columns if 'tf32' in machine else columns) | mode
    with Report(machine, title(machine), chosen, args.json) as report:
        for task, row in rows:
            report.add(derive(task, row, machine))


def measured(args: argparse.Namespace, tasks: list[Task]) -> Iterator[tuple[Task, Row]]:
    """Yields MACHINE and each task with its row, as soon as it is measured.

    On a CPU each row has its own process, whose peak memory nothing else has raised. On a GPU the peak can be reset and
    processes start slowly, so one does all tasks.
    """
    everything = [MACHINE, *tasks]
    groups = [everything] if resolve_device(args.device).type == 'cuda' else [[task] for task in everything]
    for group in groups:
        for task, row in zip(group, run_alone(group), strict=True):
            if task is MACHINE and 'failed' in row:
                raise UserError(row['failed'])
            yield task, row


def run_alone(tasks: list[Task]) -> Iterator[Row]:
    """Yields the rows of tasks, measured by another process with this program's command line.

    If it dies, the row of its current task is {'failed': why}, and another process does the remaining tasks.
    """
    waiting = list(tasks)
    while waiting:
        command = [sys.executable, str(SCRIPT), *sys.argv[1:], '--measure', json.dumps(waiting)]
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
            lines = errors.read().strip().splitlines()
        if waiting:
            del waiting[0]
            killed = 'was killed, perhaps for lack of memory'
            reason = lines[-1] if lines else f'ended with status {status}'
            yield {'failed': killed if status == -signal.SIGKILL else reason}


def attempt(measure: Callable[[argparse.Namespace, Task], Row], args: argparse.Namespace, task: Task) -> Row:
    """Returns the row that `measure` returns, or {'failed': why}, so that the other rows are still measured."""
    try:
        return measure(args, task)
    except Exception as error:
        if is_out_of_memory(error):  # type: ignore[arg-type]
            return {'failed': TOO_LARGE}
        return {'failed': ' '.join(f'{type(error).__name__}: {error}'.split())[:300]}


def begin(device: torch.device) -> None:
    """Frees GPU memory that an earlier row of this process left."""
    if device.type == 'cuda':
        torch.cuda.set_device(device.index or 0)  # events are recorded on this device
        if 'torch._dynamo' in sys.modules:
            torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


def figures(row: Row, samples: int) -> Row:
    """Summarises the times of a row, each for `samples` samples; a failed row stays as it is."""
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


# --- time and memory ----------------------------------------------------------------------------------------


def repeats(asked: int | None, device: torch.device, on_a_cpu: int) -> int:
    """Returns the number of timed runs; by default 10 on a GPU, where they are short."""
    return asked if asked is not None else 10 if device.type == 'cuda' else on_a_cpu


def timed(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def timed_on_gpu(
    work: Callable[[], object], count: int, memory: Memory, forget: Callable[[], object] | None = None
) -> Row:
    """Returns the seconds between GPU events around each call, and the seconds until the CPU had launched each.

    Nothing waits in between, as programs launch work ahead; a launch takes as long as the work only when the GPU's
    queue is full. WARM_UP calls come first. They also reset the peak memory, as libraries try kernels that need far
    more than the one they choose. `forget` drops a CUDA graph, so that it is recorded once more and the peak includes
    it.
    """
    for _ in range(WARM_UP):
        work()
    torch.cuda.synchronize(memory.device)
    torch.cuda.reset_peak_memory_stats(memory.device)
    if forget is not None:
        forget()
        for _ in range(WARM_UP):
            work()
    events, clocks = [], []
    for number in range(count + 1):
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()
        clocks.append(time.perf_counter())
        if number < count:
            work()
    events[-1].synchronize()
    return {
        'times': [start.elapsed_time(end) / 1e3 for start, end in pairwise(events)],
        'launches': [end - start for start, end in pairwise(clocks)],
    }


class Memory:
    """Peak memory from construction to `read`: of the process, or allocated on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            if sys.platform != 'linux':
                raise UserError('memory is measured through /proc; allowed: Linux, or a CUDA device')
            Path('/proc/self/clear_refs').write_text('5')  # resets the peak
            self.before = self._of_process('VmRSS')

    def read(self) -> dict[str, float]:
        on_gpu = self.device.type == 'cuda'
        peak = torch.cuda.max_memory_allocated(self.device) if on_gpu else self._of_process('VmHWM')
        return {'peak_MB': peak / 1e6, 'working_MB': (peak - self.before) / 1e6}

    @staticmethod
    def _of_process(name: str) -> int:
        lines = Path('/proc/self/status').read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def machine(device: torch.device, exact: bool = False) -> Row:
    """Describes the machine, with its rate of multiplying square matrices, which no network exceeds.

    Args:
        exact: its rows are measured without TF32.
    """
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
        # A CPU without instructions for a precision would take minutes, and be no faster.
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


# --- tables -------------------------------------------------------------------------------------------------


class Column(NamedTuple):
    title: str
    show: Callable[[Any], str] = str
    width: int = 9  # at least


seconds = '{:.3f}'.format
whole = '{:.0f}'.format
rate = '{:.2f}'.format
percent = '{:.0%}'.format
multiple = '{:.1f}x'.format


def fraction(value: float) -> str:
    """0.25 → 1/4.0"""
    return f'1/{1 / value:.1f}'


def milliseconds(value: float) -> str:
    """Seconds → text in milliseconds."""
    return f'{1e3 * value:.2f}'


def gigabytes(value: float) -> str:
    """MB → text in GB."""
    return f'{value / 1e3:.2f}'


GPU_TIMES = {
    'seconds': Column('device ms', milliseconds),
    'range': Column('min-max ms', lambda ends: '-'.join(map(milliseconds, ends)), 15),
    'launch_seconds': Column('launch ms', milliseconds),
}


def title(machine: Row) -> str:
    rates = ', '.join(f'{rate:.0f} GFLOP/s in {name}' for name, rate in machine['gflops'].items())
    text = f'{machine["device"]}, {machine["threads"]} threads, PyTorch {machine["torch"]}; matrix product: {rates}'
    uses = [f'{"TF32" if used else "no TF32"} in {what}' for what, used in machine.get('tf32', {}).items()]
    return '; '.join([text, f'fp32: {", ".join(uses)}'] if uses else [text])


class Report:
    """Prints a title, column titles, and each row as it is added; as JSON, everything at the end, even after an error.

    A row shows `-` in columns that it lacks; a row with `failed` shows that after its first columns.
    """

    def __init__(self, machine: Row, title: str, columns: dict[str, Column], as_json: bool) -> None:
        self.machine, self.title, self.columns, self.as_json = machine, title, columns, as_json
        self.rows: list[Row] = []

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        if self.as_json:
            print(json.dumps({'machine': self.machine, 'rows': self.rows}, indent=1))

    def add(self, row: Row) -> None:
        self.rows.append(row)
        if self.as_json:
            return
        if len(self.rows) == 1:
            print(f'{self.title}\n{self._line([column.title for column in self.columns.values()])}')
        if 'failed' in row:
            line = f'{self._line([str(row[key]) for key in self.columns if key in row])}  {row["failed"]}'
        else:
            line = self._line(
                [column.show(row[key]) if key in row else '-' for key, column in self.columns.items()]
            )
        print(line, flush=True)

    def _line(self, cells: list[str]) -> str:
        widths = (max(len(column.title), column.width) for column in self.columns.values())
        return '  '.join(cell.rjust(width) for cell, width in zip(cells, widths, strict=False))
