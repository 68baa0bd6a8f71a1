"""`benchmark.py inference`: time and memory of restoring an image."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from basicsr.archs.restormer_arch import Restormer
from basicsr.inference import Restorer
from basicsr.utils.device import without_tf32
from basicsr.utils.errors import UsageError
from scripts.benchmarks import measuring, peers
from scripts.benchmarks.measuring import Memory, Row, Task

COLUMNS = ['size', 'mode', 'seconds', 'range', 'launch_seconds', 'of_plain_time']
COLUMNS += ['working_MB', 'of_plain_memory', 'peak_MB', 'gflops', 'of_machine']


def compare(args: argparse.Namespace) -> None:
    measuring.check(args)
    modes = [*(['plain'] if args.plain_repeats != 0 else []), *args.modes]
    if args.peers:
        check_peers(args)
    rounds = args.rounds or (3 if args.peers else 1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [*({'mode': mode} for mode in modes), *(peer_tasks(args, Path(folder)) if args.peers else [])]
        tasks = [{'size': size, **row} for size in args.sizes for row in rows]
        with busy(args.busy):
            measuring.compare(args, tasks, COLUMNS, exact=True, rounds=rounds)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """A context in which so many other processes keep a core busy each."""
    command = [sys.executable, '-c', 'while True: pass']
    others = [subprocess.Popen(command) for _ in range(count)]  # noqa: S603
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def check_peers(args: argparse.Namespace) -> None:
    """Raises UsageError if the peers cannot be measured."""
    missing = [name for name in ('onnx', *args.peers) if find_spec(name) is None]
    if missing:
        raise UsageError(f'--peers: found no {" or ".join(missing)}; pip install {" ".join(missing)}')
    device = measuring.device_of(args)
    if device.type != 'cpu':
        raise UsageError(f'--peers: found the device {device}; allowed: --device cpu')


def peer_tasks(args: argparse.Namespace, folder: Path) -> list[Task]:
    """Exports the network to ONNX into `folder`, and returns what peers.measure needs for each mode of the peers."""
    from scripts.export_onnx import AnySize, to_onnx  # here: the memory of onnx is not to count in our rows

    network, device = measuring.load_network(args), torch.device('cpu')
    channels = network.patch_embed.proj.in_channels
    model = folder / 'network.onnx'
    model.write_bytes(to_onnx(AnySize(network).eval(), channels, {}))
    common = {
        'model': str(model),
        'channels': channels,
        'threads': torch.get_num_threads(),
        'repeats': measuring.repeats(args.repeats, device, 3),
    }
    return [{'mode': mode, **common} for peer in args.peers for mode in peers.MODES[peer]]


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
        else:  # libraries and compilers choose for this size, and allocate
            work()
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
