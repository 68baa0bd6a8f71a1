"""`benchmark.py inference`: time and memory of restoring an image."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from basicsr.archs.restormer_arch import Restormer
from basicsr.inference import Restorer
from basicsr.utils.cli import usage_errors
from basicsr.utils.device import resolve_device, without_tf32
from scripts.benchmarks import measuring
from scripts.benchmarks.measuring import Column, Memory, Row, Task

RATIOS = {
    'of_plain_time': Column('of plain time', measuring.fraction),
    'of_time_without_tlc': Column('of time without TLC', measuring.seconds),
}
ARITHMETIC = {
    'gflops': Column('GFLOP/s', measuring.whole),
    'of_machine': Column('of the machine', measuring.percent),
}
COLUMNS = {
    'size': Column('size'),
    'mode': Column('mode'),
    'seconds': Column('median s', measuring.seconds),
    'range': Column('min-max s', lambda ends: '-'.join(f'{end:.2f}' for end in ends)),
    **RATIOS,
    'working_MB': Column('working MB', measuring.whole),
    'of_plain_memory': Column('of plain memory', measuring.fraction),
    'peak_MB': Column('peak MB', measuring.whole),
    **ARITHMETIC,
}
GPU_COLUMNS = {
    'size': Column('size'),
    'mode': Column('mode'),
    **measuring.GPU_TIMES,
    'samples_per_s': Column('images/s', measuring.rate),
    **RATIOS,
    'peak_MB': Column('peak GB', measuring.gigabytes),
    'of_plain_memory': Column('of plain memory', measuring.fraction),
    **ARITHMETIC,
}


def compare(args: argparse.Namespace) -> None:
    measuring.check_modes(args)
    with usage_errors():
        measuring.asked_options(args)
    modes = [*(['plain'] if args.plain_repeats != 0 else []), *args.modes]
    tasks = [
        {'what': 'network', 'mode': mode, 'width': width, 'height': height}
        for width, height in args.sizes
        for mode in modes
    ]
    seen: dict[tuple[str, str], Row] = {}

    def derive(task: Task, row: Row, machine: Row) -> Row:
        size, mode = f'{task["width"]}x{task["height"]}', task['mode']
        row = seen[size, mode] = {'size': size, 'mode': mode, **measuring.figures(row, 1)}
        if 'seconds' in row:
            row['gflops'] = row['flops'] / row['seconds'] / 1e9
            row['of_machine'] = row['gflops'] / machine['gflops'][measuring.precision_of(mode)]
            baseline = seen.get((size, 'plain'), {})
            if 'seconds' in baseline:
                row['of_plain_time'] = row['seconds'] / baseline['seconds']
                row['of_plain_memory'] = row['working_MB'] / baseline['working_MB']
            without_tlc = seen.get((size, mode.removesuffix('+tlc')), {})
            if mode.endswith('+tlc') and 'seconds' in without_tlc:
                row['of_time_without_tlc'] = row['seconds'] / without_tlc['seconds']
        return row

    measuring.compare_rows(args, tasks, COLUMNS, GPU_COLUMNS, derive)


def measure(args: argparse.Namespace, task: Task) -> Row:
    device = resolve_device(args.device)
    measuring.begin(device)
    if task['what'] == 'machine':
        return measuring.machine(device, exact=True)
    network, options = measuring.load_network(args)
    mode, height, width = task['mode'], task['height'], task['width']
    network.to(device)
    flops = arithmetic(network, options, device, height, width)
    memory = Memory(device)
    forget = None
    if mode.startswith('plain'):
        restore = measuring.plain(network, mode)
    else:
        precision, _, tlc = mode.partition('+')
        restorer = Restorer(network, device, precision, tlc=bool(tlc), fixed_strips=True)
        restore = restorer.restore
        if restorer.engine is not None:
            forget = restorer.engine.recorded.forget
    channels = options['inp_channels']
    with torch.inference_mode(), without_tf32(device):  # as Restorer computes in fp32
        image = torch.rand(1, channels, height, width, device=device)
        asked, usual = (args.plain_repeats, 1) if mode == 'plain' else (args.repeats, 3)
        count = measuring.repeats(asked, device, usual)
        if device.type == 'cuda':
            row = measuring.timed_on_gpu(lambda: restore(image), count, memory, forget)
        else:
            # Warm up libraries; a compiler needs the same size.
            restore(image if 'compile' in mode else torch.rand(1, channels, 64, 64))
            row = {'times': [measuring.timed(lambda: restore(image), device) for _ in range(count)]}
    return {**row, 'flops': flops, **memory.read()}


def arithmetic(
    network: nn.Module, options: dict[str, Any], device: torch.device, height: int, width: int
) -> float:
    """Returns the floating-point operations of the plain formulation's convolutions and matrix products, two per
    multiply-add; all are proportional to the number of pixels."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        measuring.plain(network)(torch.rand(1, options['inp_channels'], 64, 64, device=device))
    height, width = (side + -side % Restormer.multiple for side in (height, width))
    return counter.get_total_flops() * height * width / 64**2
