"""Time and memory of restoring an image."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from basicsr.archs.restormer_arch import Restormer
from basicsr.inference import Restorer
from basicsr.utils.device import resolve_device, without_tf32
from scripts.benchmarks.measuring import (
    Memory,
    begin,
    check_modes,
    figures,
    machine,
    measured,
    precision_of,
    repeats,
    timed,
    timed_on_gpu,
    title,
)
from scripts.benchmarks.networks import all_options, load_network, plain
from scripts.benchmarks.table import (
    Column,
    Report,
    Row,
    fraction,
    gigabytes,
    milliseconds,
    percent,
    rate,
    seconds,
    whole,
)

COLUMNS = {
    'size': Column('size'),
    'mode': Column('mode'),
    'seconds': Column('median s', seconds),
    'range': Column('min-max s', lambda ends: '-'.join(f'{end:.2f}' for end in ends)),
    'of_plain_time': Column('of plain time', fraction),
    'of_time_without_tlc': Column('of time without TLC', seconds),
    'working_MB': Column('working MB', whole),
    'of_plain_memory': Column('of plain memory', fraction),
    'peak_MB': Column('peak MB', whole),
    'gflops': Column('GFLOP/s', whole),
    'of_machine': Column('of the machine', percent),
}
GPU_COLUMNS = {
    'size': Column('size'),
    'mode': Column('mode'),
    'seconds': Column('device ms', milliseconds),
    'range': Column('min-max ms', lambda ends: '-'.join(map(milliseconds, ends)), 15),
    'launch_seconds': Column('launch ms', milliseconds),
    'samples_per_s': Column('images/s', rate),
    'of_plain_time': Column('of plain time', fraction),
    'of_time_without_tlc': Column('of time without TLC', seconds),
    'peak_MB': Column('peak GB', gigabytes),
    'of_plain_memory': Column('of plain memory', fraction),
    'gflops': Column('GFLOP/s', whole),
    'of_machine': Column('of the machine', percent),
}


def compare(args: argparse.Namespace) -> None:
    check_modes(args)
    all_options(args.weights)  # raises if the file is not one
    modes = [*(['plain'] if args.plain_repeats != 0 else []), *args.modes]
    rows = measured(
        args,
        [
            {'what': 'network', 'mode': mode, 'width': width, 'height': height}
            for width, height in args.sizes
            for mode in modes
        ],
    )
    _, machine = next(rows)
    columns = {
        **(GPU_COLUMNS if 'tf32' in machine else COLUMNS),
        'mode': Column('mode', width=max(map(len, modes))),
    }
    seen: dict[tuple[str, str], Row] = {}
    with Report(machine, title(machine), columns, args.json) as report:
        for task, row in rows:
            size, mode = f'{task["width"]}x{task["height"]}', task['mode']
            row = seen[size, mode] = {'size': size, 'mode': mode, **figures(row, 1)}
            if 'seconds' in row:
                row['gflops'] = row['flops'] / row['seconds'] / 1e9
                row['of_machine'] = row['gflops'] / machine['gflops'][precision_of(mode)]
                plain = seen.get((size, 'plain'), {})
                if 'seconds' in plain:
                    row['of_plain_time'] = row['seconds'] / plain['seconds']
                    row['of_plain_memory'] = row['working_MB'] / plain['working_MB']
                without_tlc = seen.get((size, mode.removesuffix('+tlc')), {})
                if mode.endswith('+tlc') and 'seconds' in without_tlc:
                    row['of_time_without_tlc'] = row['seconds'] / without_tlc['seconds']
            report.add(row)


def measure(args: argparse.Namespace, task: dict[str, Any]) -> Row:
    device = resolve_device(args.device)
    begin(device)
    if task['what'] == 'machine':
        return machine(device, exact=True)
    network, options = load_network(args.weights)
    mode, height, width = task['mode'], task['height'], task['width']
    network.to(device)
    flops = arithmetic(network, options, device, height, width)
    memory = Memory(device)
    forget = None
    if mode.startswith('plain'):
        restore = plain(network, options, mode)
    else:
        restorer = ours(network, device, mode)
        restore = restorer.restore
        if restorer.engine is not None:
            forget = restorer.engine.recorded.forget
    channels = options['inp_channels']
    with torch.inference_mode(), without_tf32(device):  # as ours is where it is to be exact
        image = torch.rand(1, channels, height, width, device=device)
        count = repeats(args.plain_repeats, device, 1) if mode == 'plain' else repeats(args.repeats, device, 3)
        if device.type == 'cuda':
            row = timed_on_gpu(lambda: restore(image), count, memory, forget)
        else:
            # Let the libraries prepare what they need once; a compiler needs the same size.
            restore(image if 'compile' in mode else torch.rand(1, channels, 64, 64))
            row = {'times': [timed(lambda: restore(image), device) for _ in range(count)]}
    return {**row, 'flops': flops, **memory.read()}


def ours(network: nn.Module, device: torch.device, mode: str) -> Restorer:
    precision, _, tlc = mode.partition('+')
    return Restorer(network, device, precision, tlc=bool(tlc), fixed_strips=True)


def arithmetic(
    network: nn.Module, options: dict[str, Any], device: torch.device, height: int, width: int
) -> float:
    """Floating-point operations of the plain formulation, two to a multiplication with addition: convolutions
    and matrix products, which all are proportional to the number of pixels."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        plain(network, options)(torch.rand(1, options['inp_channels'], 64, 64, device=device))
    height, width = (side + -side % Restormer.multiple for side in (height, width))
    return counter.get_total_flops() * height * width / 64**2
