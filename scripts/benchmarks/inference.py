"""`benchmark.py inference`: time and memory of restoring an image."""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from basicsr.archs.restormer_arch import Restormer
from basicsr.inference import Restorer
from basicsr.utils.device import without_tf32
from scripts.benchmarks import measuring
from scripts.benchmarks.measuring import Memory, Row, Task

COLUMNS = ['size', 'mode', 'seconds', 'range', 'launch_seconds', 'of_plain_time']
COLUMNS += ['working_MB', 'of_plain_memory', 'peak_MB', 'gflops', 'of_machine']


def compare(args: argparse.Namespace) -> None:
    measuring.check(args)
    modes = [*(['plain'] if args.plain_repeats != 0 else []), *args.modes]
    tasks = [{'size': size, 'mode': mode} for size in args.sizes for mode in modes]
    measuring.compare(args, tasks, COLUMNS, exact=True)


def measure(args: argparse.Namespace, task: Task) -> Row:
    device = measuring.device_of(args)
    mode, (width, height) = task['mode'], map(int, task['size'].split('x'))
    network = measuring.load_network(args).to(device)
    channels = network.patch_embed.proj.in_channels
    memory = Memory(device)
    forget = lambda: None  # noqa: E731
    if mode.startswith('plain'):
        restore = measuring.plain(network, mode)
    else:
        precision, _, tlc = mode.partition('+')
        restorer = Restorer(network, device, precision, tlc=bool(tlc), fixed_strips=True)
        restore = restorer.restore
        forget = restorer.engine.recorded.forget
    asked, on_a_cpu = (args.plain_repeats, 1) if mode == 'plain' else (args.repeats, 3)
    with torch.inference_mode(), without_tf32(device):  # as Restorer computes in fp32
        work = partial(restore, torch.rand(1, channels, height, width, device=device))
        if device.type == 'cuda':
            measuring.warm_up_gpu(work, forget)
        elif 'compile' in mode:  # for this size
            work()
        else:  # the libraries
            restore(torch.rand(1, channels, 64, 64))
        row = measuring.timed(work, measuring.repeats(asked, device, on_a_cpu), device)
    return {**row, **memory.read(), 'flops': arithmetic(network, channels, height, width)}


def arithmetic(network: nn.Module, channels: int, height: int, width: int) -> float:
    """Returns the floating-point operations of the plain formulation's convolutions and matrix products, two per
    multiply-add; all are proportional to the number of pixels."""
    device = next(network.parameters()).device
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        measuring.plain(network)(torch.rand(1, channels, 64, 64, device=device))
    height, width = (side + -side % Restormer.multiple for side in (height, width))
    return counter.get_total_flops() * height * width / 64**2
