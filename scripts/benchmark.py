"""Measure this repository against the plain formulation of the same network, in one run.

    python scripts/benchmark.py inference
    python scripts/benchmark.py inference --sizes 256x256 1280x720 --modes fp32 bf16 fp32+tlc --repeats 5
    python scripts/benchmark.py inference --modes fp32 bf16 --peers openvino onnxruntime
    python scripts/benchmark.py inference --sizes 128x128 --modes fp32 bf16 --busy 1
    python scripts/benchmark.py inference --device cuda --modes fp32 bf16 plain+bf16 --json > inference.json
    python scripts/benchmark.py train --network full --stages paper --modes fp32 bf16 bf16+checkpointing
    python scripts/benchmark.py train --device cuda --network full --modes bf16 bf16+compile plain+bf16+compile
    python scripts/benchmark.py data

*Plain* is the network as it is usually written, in fp32 (basicsr/archs/restormer_reference.py): channels first,
normalised copies of queries and keys, no strips. Ratios compare with that row. The modes `plain+bf16` (autocast),
`plain+compile` and `plain+bf16+compile` take one or two lines more. On a CPU, a process of its own measures each row,
after an image that is not timed. *Peak* is that process's largest size, *working memory* the peak above its size once
imports are done and the weights are loaded (`train`: and the optimizer exists). *Of the machine* compares the network's
operations per second with a large matrix product of the same precision on the same device.

`--peers` also measures OpenVINO and ONNX Runtime on the CPU (`pip install -e '.[peers]'`), with the same network as
scripts/export_onnx.py writes it and as many threads as PyTorch uses. Their processes do not import PyTorch; *peak*
includes loading and compiling, where they allocate. Rows take turns: in each of `--rounds`, each row's process runs
once, and shown are the medians over the rounds and the range of all runs.

On a GPU, times are those between events on the GPU, one recorded before each step or image; nothing waits for the GPU
in between. *Launch s* is the time that the CPU takes to launch one. The CPU waits while the GPU's queue is full, so it
is at most slightly above the median; if it is well below, the GPU limits the speed. Memory is what PyTorch allocates,
at most, after the warm-up. The first line says whether fp32 rows use TF32.

`train` measures complete steps of the paper's recipe, including data loading, on pairs of 512x512. Ours is the model of
basicsr/train.py on a pack (scripts/prepare_data.py). Plain uses PyTorch's AdamW with default settings and decodes both
PNG files for each sample. On a GPU both sides train on batches of noise, stored as bytes in pinned memory, and cuDNN
chooses kernels by its heuristics. `data` measures what one sample costs one core, from a pack, from PNG files and from
Dataset_SyntheticBlur.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('scripts.benchmark'))

import argparse
import json
import re
from itertools import product

from basicsr.archs.restormer_arch import Restormer
from basicsr.utils.cli import at_least, file_or_folder
from scripts.benchmarks import inference, peers, training
from scripts.benchmarks.measuring import PLAIN_MODES, PRECISIONS, attempt

INFERENCE_MODES = [*PLAIN_MODES, *map(''.join, product(PRECISIONS, ('', '+tlc')))]
TRAINING_MODES = [*PLAIN_MODES, *map(''.join, product(PRECISIONS, ('', '+checkpointing'), ('', '+compile')))]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description='Measure this repository against the plain formulation.')
    commands = p.add_subparsers(dest='command', required=True)

    restore = commands.add_parser('inference', help='time and memory of restoring an image')
    option = restore.add_argument
    option('--sizes', nargs='+', type=size, default=['256x256'], metavar='WxH', help='default: 256x256')
    add_modes(restore, INFERENCE_MODES, ['fp32', 'bf16', 'fp32+tlc'])
    option(
        '--peers', nargs='+', choices=list(peers.MODES), default=[], metavar='PEER',
        help=f'other runtimes beside ours, on a CPU, in fp32 (openvino: also in bf16): {", ".join(peers.MODES)}',
    )  # fmt: skip
    option(
        '--rounds', type=at_least(1),
        help='how often each row is measured, rows taking turns; medians are shown; default: 1, with --peers 3',
    )  # fmt: skip
    option(
        '--busy', type=at_least(0), default=0, metavar='N',
        help='measure while N other processes keep a core busy each; default: 0',
    )  # fmt: skip
    option(
        '--repeats',
        type=at_least(1),
        help='timed runs of each of --modes and --peers in a round; default: 3, on a GPU 10',
    )
    option(
        '--plain_repeats',
        type=at_least(0),
        help='timed runs of plain in a round; 0: leave it out; default: 1, on a GPU 10',
    )
    restore.set_defaults(network='full', compare=inference.compare, measure_row=inference.measure)

    train = commands.add_parser('train', help='time and memory of a training step, including data loading')
    option = train.add_argument
    option(
        '--stages', nargs='+', type=stage, default=['128x8'], metavar='PATCHxBATCH',
        help="paper: those of the paper's recipe; default: 128x8",
    )  # fmt: skip
    option(
        '--network',
        choices=('small', 'full'),
        default='small',
        help='1.1 M or 26.1 M parameters; default: small',
    )
    add_modes(train, TRAINING_MODES, ['fp32', 'bf16'])
    option('--steps', type=at_least(1), default=10, help='timed steps of each of --modes; default: 10')
    option(
        '--plain_steps', type=at_least(0), help='timed steps of plain; 0: leave it out; default: 5, on a GPU 10'
    )
    option(
        '--workers', type=at_least(0),
        help="loader processes on a CPU, at most one per core; 0: load between steps; default: the recipe's",
    )  # fmt: skip
    train.set_defaults(compare=training.compare, measure_row=training.measure)

    data = commands.add_parser('data', help='cost of a training sample per core')
    option = data.add_argument
    option('--patches', nargs='+', type=at_least(1), metavar='N', help="default: those of the paper's recipe")
    option('--samples', type=at_least(1), default=400, help='timed samples of each kind; default: 400')
    data.set_defaults(compare=training.compare_loading, measure=None)

    for command in (restore, train):
        option = command.add_argument
        option('--weights', type=file_or_folder, metavar='FILE', help='a weights file; default: random weights')
        option('--device', default='auto', help='auto, cpu, cuda, cuda:<n>; default: auto')
        option('--measure', type=json.loads, help=argparse.SUPPRESS)  # the row of this process
    for command in (restore, train, data):
        command.add_argument('--json', action='store_true', help='print JSON instead of a table')
    return p


def add_modes(p: argparse.ArgumentParser, modes: list[str], default: list[str]) -> None:
    p.add_argument(
        '--modes', nargs='+', choices=modes, default=default, metavar='MODE',
        help=f'{", ".join(modes)}; plain compiles each block separately; default: {" ".join(default)}',
    )  # fmt: skip


def size(text: str) -> str:
    if not re.fullmatch(r'[1-9]\d*x[1-9]\d*', text):
        raise argparse.ArgumentTypeError(f'found {text}; allowed: WIDTHxHEIGHT, as 1280x720')
    return text


def stage(text: str) -> str:
    match = re.fullmatch(r'([1-9]\d*)x[1-9]\d*', text)
    if text != 'paper' and (match is None or int(match[1]) % Restormer.multiple):
        allowed = f'PATCHxBATCH, as 128x8, with a patch of a multiple of {Restormer.multiple} pixels; or paper'
        raise argparse.ArgumentTypeError(f'found {text}; allowed: {allowed}')
    return text


def main(args: argparse.Namespace) -> None:
    if args.measure is None:
        args.compare(args)
    else:
        print(json.dumps(attempt(args, args.measure)))
