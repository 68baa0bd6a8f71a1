"""Time and memory of restoring an image."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from basicsr.archs.restormer_arch import Restormer
from basicsr.inference import Restorer
from basicsr.utils.device import resolve_device, without_tf32
from scripts.benchmarks.measuring import Memory, check_modes, machine, run_alone, timed, title
from scripts.benchmarks.networks import load_network, plain
from scripts.benchmarks.table import Column, Report, Row, fraction, percent, seconds, whole

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


def compare(args: argparse.Namespace) -> None:
    check_modes(args)
    machine = run_alone(args, {'what': 'machine'})
    report = Report(machine, title(machine), COLUMNS, args.json)
    for width, height in args.sizes:
        plain = None
        without_tlc: dict[str, float] = {}
        modes = [*(['plain'] if args.plain_repeats else []), *args.modes]
        for mode in modes:
            row = run_alone(args, {'what': 'network', 'mode': mode, 'width': width, 'height': height})
            times = row.pop('times')
            row |= {
                'size': f'{width}x{height}',
                'mode': mode,
                'seconds': statistics.median(times),
                'range': [min(times), max(times)],
            }
            row['gflops'] = row['flops'] / row['seconds'] / 1e9
            precision, _, tlc = mode.partition('+')
            row['of_machine'] = row['gflops'] / machine['gflops'].get(precision, machine['gflops']['fp32'])
            if mode == 'plain':
                plain = row
            if plain is not None:
                row['of_plain_time'] = row['seconds'] / plain['seconds']
                row['of_plain_memory'] = row['working_MB'] / plain['working_MB']
            if not tlc:
                without_tlc[precision] = row['seconds']
            elif precision in without_tlc:
                row['of_time_without_tlc'] = row['seconds'] / without_tlc[precision]
            report.add(row)
    report.end()


def measure(args: argparse.Namespace, task: dict[str, Any]) -> Row:
    device = resolve_device(args.device)
    if task['what'] == 'machine':
        return machine(device)
    network, options = load_network(args.weights)
    mode, height, width = task['mode'], task['height'], task['width']
    network.to(device)
    flops = arithmetic(network, options, device, height, width)
    memory = Memory(device)
    restore = plain(network, options) if mode == 'plain' else ours(network, device, mode)
    channels = options['inp_channels']
    with torch.inference_mode(), without_tf32(device):  # as ours is where it is to be exact
        restore(torch.rand(1, channels, 64, 64, device=device))  # what the libraries prepare once
        image = torch.rand(1, channels, height, width, device=device)
        repeats = args.plain_repeats if mode == 'plain' else args.repeats
        if device.type == 'cuda':  # the first time libraries try their ways, and memory is asked of the driver
            restore(image)
        times = [timed(lambda: restore(image), device) for _ in range(repeats)]
    return {'times': times, 'flops': flops, **memory.read()}


def ours(network: nn.Module, device: torch.device, mode: str) -> Callable[[torch.Tensor], torch.Tensor]:
    precision, _, tlc = mode.partition('+')
    return Restorer(network, device, precision, tlc=bool(tlc), fixed_strips=True).restore


def arithmetic(
    network: nn.Module, options: dict[str, Any], device: torch.device, height: int, width: int
) -> float:
    """Floating-point operations of the plain formulation, two to a multiplication with addition: convolutions
    and matrix products, which all are proportional to the number of pixels."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        plain(network, options)(torch.rand(1, options['inp_channels'], 64, 64, device=device))
    height, width = (side + -side % Restormer.multiple for side in (height, width))
    return counter.get_total_flops() * height * width / 64**2
