"""Shared by the commands: networks, timing, memory, a process for each row, and the table."""

from __future__ import annotations

import argparse
import gc
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basicsr.archs import restormer_reference as reference
from basicsr.archs.from_weights import build_network, network_options
from basicsr.archs.restormer_arch import Restormer
from basicsr.ops import cpu_kernels
from basicsr.utils.checkpoint import load_weights
from basicsr.utils.cli import usage_errors
from basicsr.utils.device import resolve_device, resolve_precision
from basicsr.utils.errors import CheckpointError, UsageError
from basicsr.utils.files import ROOT
from basicsr.utils.memory import is_out_of_memory
from scripts.benchmarks import peers

Task = dict[str, Any]  # what to measure for one row: first its size or stage, then its mode
Row = dict[str, Any]

PRECISIONS = ('fp32', 'bf16', 'fp16')
PLAIN_MODES = ('plain+bf16', 'plain+compile', 'plain+bf16+compile')  # beside `plain`, the baseline of ratios

SMALL = {'dim': 16, 'num_blocks': [1, 1, 2, 2], 'num_refinement_blocks': 1, 'heads': [1, 2, 4, 8]}
SCRIPT = ROOT / 'scripts' / 'benchmark.py'
WARM_UP = 3  # untimed calls on a GPU
MATRIX_SIDE = {'cpu': 2048, 'cuda': 8192}  # of the machine's matrix product


# --- networks -----------------------------------------------------------------------------------------------


def check(args: argparse.Namespace) -> None:
    """Raises UsageError if the device, a precision on it, or the network's file cannot be used."""
    with usage_errors():
        device = device_of(args)
        for mode in args.modes:
            resolve_precision(precision_of(mode), device)
        network_g(args)
    if device.type != 'cuda' and sys.platform != 'linux':
        raise UsageError('memory is measured through /proc; allowed: Linux, or a CUDA device')


def device_of(args: argparse.Namespace) -> torch.device:
    """Returns the device, on which GPU events are then recorded."""
    device = resolve_device(args.device)
    if device.type == 'cuda':
        torch.cuda.set_device(device.index or 0)
    return device


def network_g(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the type and the options of the network: those of --weights, or by name. Raises CheckpointError."""
    if not args.weights:
        return {'type': 'Restormer', **(SMALL if args.network == 'small' else {})}
    options = network_options(load_weights(args.weights))
    if options.setdefault('type', 'Restormer') != 'Restormer':
        raise CheckpointError(f'{args.weights}: only Restormer has a plain formulation to compare with')
    return options


def load_network(args: argparse.Namespace) -> nn.Module:
    """Returns the network in eval mode, with random weights if there is no file."""
    if args.weights:
        return build_network(load_weights(args.weights))
    options = network_g(args)
    del options['type']
    torch.manual_seed(0)
    return Restormer(**options).eval()


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


# --- rows ---------------------------------------------------------------------------------------------------


def compare(
    args: argparse.Namespace, tasks: list[Task], columns: list[str], exact: bool = False, rounds: int = 1
) -> None:
    """Measures and reports the tasks.

    Args:
        exact: they are measured without TF32.
        rounds: how often the tasks of a size or a stage take turns.
    """
    device = resolve_device(args.device)
    computer = machine(device, [task['mode'] for task in tasks], exact)
    absent = 'data_wait' if device.type == 'cuda' else 'launch_seconds'
    shown = [key for key in columns if key != absent]
    run = partial(run_here, args) if device.type == 'cuda' else run_alone
    report(title(computer), computer, shown, measured(in_rounds(tasks, run, rounds), computer), args.json)


def in_rounds(tasks: list[Task], run: Callable[[Task], Row], rounds: int) -> Iterator[tuple[Task, Row]]:
    """Yields each task with its row as soon as that is known. The tasks of a size or a stage take turns, so that a
    machine that slows down slows all of them; rows have the medians over the rounds. A failed task is not repeated."""
    for _, group in groupby(tasks, lambda task: task.get('size') or task.get('stage')):
        rows: list[tuple[Task, list[Row]]] = [(task, []) for task in group]
        for number in range(rounds):
            for task, seen in rows:
                if not seen or 'failed' not in seen[-1]:
                    seen.append(run(task))
                if number == rounds - 1:
                    yield task, together(seen)


def together(rows: list[Row]) -> Row:
    """Returns the medians of a task's rows, and the range of all."""
    if 'failed' in rows[-1]:
        return rows[-1]
    ends = [end for row in rows for end in row['range']]
    medians = {key: statistics.median(row[key] for row in rows) for key in rows[0] if key != 'range'}
    return {**medians, 'range': [min(ends), max(ends)]}


def measured(results: Iterable[tuple[Task, Row]], machine: Row) -> Iterator[Row]:
    """Yields the row of each task, with ratios to the last row of mode `plain`."""
    baseline: Row = {}
    for task, row in results:
        mode = task['mode']
        if mode == 'plain':
            baseline = row
        if 'flops' in row:
            row['gflops'] = row['flops'] / row['seconds'] / 1e9
            row['of_machine'] = row['gflops'] / machine['gflops'][precision_of(mode)]
        if 'seconds' in row and 'seconds' in baseline:
            row['of_plain_time'] = row['seconds'] / baseline['seconds']
            row['of_plain_speed'] = 1 / row['of_plain_time']
            # Peers do not state theirs; 0: a small image needs no fresh memory
            if min(row.get('working_MB', 0), baseline['working_MB']) > 0:
                row['of_plain_memory'] = row['working_MB'] / baseline['working_MB']
        yield {key: task[key] for key in ('size', 'stage', 'mode') if key in task} | row


def run_alone(task: Task) -> Row:
    """Returns the row of a task, measured by another process with this program's command line, whose peak memory
    nothing else has raised, or for a peer by peers.py. If the process dies, the row is {'failed': why}."""
    command = [str(SCRIPT), *sys.argv[1:], '--measure', json.dumps(task)]
    if 'model' in task:
        command = [str(peers.__file__), json.dumps(task)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)  # noqa: S603
    if done.returncode == 0:
        return json.loads(done.stdout)
    if done.returncode == -signal.SIGKILL:
        return {'failed': 'was killed, perhaps for lack of memory'}
    lines = done.stderr.strip().splitlines()
    return {'failed': lines[-1] if lines else f'ended with status {done.returncode}'}


def run_here(args: argparse.Namespace, task: Task) -> Row:
    """Returns the row of a task on a GPU, which counts its memory from row to row; processes take long to start."""
    row = attempt(args, task)
    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()  # it compiles a function for a few sizes only
    return row


def attempt(args: argparse.Namespace, task: Task) -> Row:
    """Returns the row that `args.measure_row` returns, or {'failed': why}, so that the other rows are still
    measured."""
    try:
        return args.measure_row(args, task)
    except Exception as error:
        if is_out_of_memory(error):  # type: ignore[arg-type]
            return {'failed': 'does not fit into memory'}
        return {'failed': ' '.join(f'{type(error).__name__}: {error}'.split())[:300]}


# --- time and memory ----------------------------------------------------------------------------------------


def repeats(asked: int | None, device: torch.device, on_a_cpu: int) -> int:
    """Returns the number of timed runs; by default 10 on a GPU, where they are short."""
    return asked if asked is not None else 10 if device.type == 'cuda' else on_a_cpu


def timed(work: Callable[[], object], count: int, device: torch.device) -> Row:
    """Returns the median and the range of the seconds of `count` calls.

    On a GPU, events before and after each call give the seconds, and the clock the seconds until the CPU had launched
    it. Nothing waits in between, as programs launch work ahead; a launch takes as long as the work only when the GPU's
    queue is full.
    """
    on_gpu = device.type == 'cuda'
    events, clocks = [], []
    for number in range(count + 1):
        if on_gpu:
            events.append(torch.cuda.Event(enable_timing=True))
            events[-1].record()
        clocks.append(time.perf_counter())
        if number < count:
            work()
    times = [end - start for start, end in pairwise(clocks)]
    launches: Row = {}
    if on_gpu:
        launches = {'launch_seconds': statistics.median(times)}
        events[-1].synchronize()
        times = [start.elapsed_time(end) / 1e3 for start, end in pairwise(events)]
    return {'seconds': statistics.median(times), 'range': [min(times), max(times)], **launches}


def warm_up_gpu(work: Callable[[], object], forget: Callable[[], object]) -> None:
    """Calls `work` on a GPU, and then resets the peak memory: libraries try kernels that need far more than the one
    they choose. `forget` drops a CUDA graph, which is then recorded once more, so that the peak includes it."""
    for _ in range(WARM_UP):
        work()
    forget()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP):
        work()


class Memory:
    """Peak memory until `read`: of the process since its start (or the Memory before), or allocated on a GPU since
    construction. Working memory is the peak since construction, less what is in use then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(device)
            self.earlier, self.before = 0, torch.cuda.memory_allocated(device)
        else:
            self.earlier = peers.of_process('VmHWM')
            Path('/proc/self/clear_refs').write_text('5')  # resets the peak
            self.before = peers.of_process('VmRSS')

    def read(self) -> dict[str, float]:
        on_gpu = self.device.type == 'cuda'
        peak = torch.cuda.max_memory_allocated(self.device) if on_gpu else peers.of_process('VmHWM')
        return {'peak_MB': max(peak, self.earlier) / 1e6, 'working_MB': (peak - self.before) / 1e6}


def machine(device: torch.device, modes: Iterable[str], exact: bool = False) -> Row:
    """Describes the machine, with its rate of multiplying square matrices, which no network exceeds, in fp32 and in the
    precisions of the modes."""

    def rate(precision: str) -> float:
        side, dtype = MATRIX_SIDE[device.type], resolve_precision(precision, device) or torch.float32
        multiply = partial(torch.mm, *torch.randn(2, side, side, device=device).to(dtype))
        multiply()
        return 2 * side**3 / timed(multiply, 5, device)['seconds'] / 1e9

    used = {'fp32', *map(precision_of, modes)}
    rates = {precision: rate(precision) for precision in PRECISIONS if precision in used}
    answer = {'threads': torch.get_num_threads(), 'torch': torch.__version__, 'gflops': rates}
    if device.type != 'cuda':
        in_c = cpu_kernels.run_on(device, torch.float32, cpu_kernels.LEAST_CHANNELS)
        return {'device': device.type, **answer, 'c_kernels': in_c}
    torch.cuda.empty_cache()  # leave the memory to the rows
    tf32 = {
        'convolutions': not exact and torch.backends.cudnn.allow_tf32,
        'matrix products': not exact and torch.backends.cuda.matmul.allow_tf32,
    }
    return {'device': torch.cuda.get_device_name(device), **answer, 'tf32': tf32}


# --- tables -------------------------------------------------------------------------------------------------


def significant(value: float) -> str:
    """0.0123456 → 0.01235"""
    return f'{value:#.4g}'.rstrip('.')


def fraction(value: float) -> str:
    """0.25 → 1/4.0"""
    return f'1/{1 / value:.1f}'


# Key of a row → title, as wide as the column, and how to show the value
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    'size': ('size', str),
    'stage': ('stage', str),
    'patch': ('patch', str),
    'mode': ('mode'.rjust(18), str),
    'seconds': ('median s', significant),
    'range': ('min-max s'.rjust(15), lambda ends: '-'.join(map(significant, ends))),
    'launch_seconds': ('launch s', significant),
    'samples_per_s': ('samples/s', '{:.2f}'.format),
    'of_plain_time': ('of plain time', fraction),
    'of_plain_speed': ('of plain speed', '{:.1f}x'.format),
    'data_wait': ('waits for data', '{:.1%}'.format),
    'working_MB': ('working MB', '{:.0f}'.format),
    'of_plain_memory': ('of plain memory', fraction),
    'peak_MB': ('peak MB', '{:.0f}'.format),
    'gflops': ('GFLOP/s', '{:.0f}'.format),
    'of_machine': ('of the machine', '{:.0%}'.format),
    'packed_ms': ('packed: core ms', '{:.3f}'.format),
    'png_ms': ('PNG: core ms', '{:.3f}'.format),
    'synthetic_ms': ('synthetic blur: core ms', '{:.3f}'.format),
}


def title(machine: Row) -> str:
    rates = ', '.join(f'{rate:.0f} GFLOP/s in {name}' for name, rate in machine['gflops'].items())
    text = f'{machine["device"]}, {machine["threads"]} threads, PyTorch {machine["torch"]}; matrix product: {rates}'
    if 'c_kernels' in machine:
        text += '; C kernels' if machine['c_kernels'] else '; no C kernels'
    uses = [f'{"TF32" if used else "no TF32"} in {what}' for what, used in machine.get('tf32', {}).items()]
    return '; '.join([text, f'fp32: {", ".join(uses)}'] if uses else [text])


def report(title: str, machine: Row, columns: list[str], rows: Iterable[Row], as_json: bool) -> None:
    """Prints a title, the titles of the columns, and each row as it comes; as JSON, everything at the end, even after
    an error. A row shows `-` in columns that it lacks."""
    titles = [COLUMNS[key][0].rjust(9) for key in columns]
    seen = []
    if not as_json:
        print(title, '  '.join(titles), sep='\n', flush=True)
    try:
        for row in rows:
            seen.append(row)
            cells = [COLUMNS[key][1](row[key]) if key in row else '-' for key in columns]
            if 'failed' in row:
                cells = [*cells[:2], row['failed']]
            if not as_json:
                print('  '.join(map(str.rjust, cells, map(len, titles))), flush=True)
    finally:
        if as_json:
            print(json.dumps({'machine': machine, 'rows': seen}, indent=1))
