"""Measure this repository against the plain formulation of the same network, in one run.

    python scripts/benchmark.py inference
    python scripts/benchmark.py inference --sizes 256x256 1280x720 --modes fp32 bf16 fp32+tlc --repeats 5
    python scripts/benchmark.py inference --device cuda --modes fp32 bf16 plain+bf16 --json > inference.json
    python scripts/benchmark.py train --network full --stages paper --modes fp32 bf16 bf16+checkpointing
    python scripts/benchmark.py train --device cuda --network full --modes bf16 bf16+compile plain+bf16+compile
    python scripts/benchmark.py data

*Plain* is the network as it is usually written, in fp32 (basicsr/archs/restormer_reference.py): channels first,
normalised copies of queries and keys, no strips. Ratios compare with that row. The modes `plain+bf16` (autocast),
`plain+compile` and `plain+bf16+compile` take one or two lines more. On a CPU, a process of its own measures each row.
*Working memory* is the peak of that process above its size once imports are done and the weights are loaded (`train`:
and the optimiser exists). *Of the machine* compares the network's operations per second with a large matrix product of
the same precision on the same device.

On a GPU, one process measures all rows. *Device ms* is the median time between events on the GPU, one recorded before
each step or image; nothing waits for the GPU in between. *Launch ms* is the time that the CPU takes to launch one. The
CPU waits while the GPU's queue is full, so launch ms is at most slightly above device ms; if it is well below, the GPU
limits the speed. *Peak GB* is the most that PyTorch allocated after 3 warm-up steps or images; memory *of plain* counts
only what is above the weights. The first line says whether fp32 rows use TF32.

`train` measures complete steps of the paper's recipe, including data loading, on made-up pairs of 512x512. Ours is the
model of basicsr/train.py on a pack (scripts/prepare_data.py). Plain uses PyTorch's AdamW with default settings and a
loader that decodes both PNG files for each sample; the loader yields the largest batch of --stages in the largest
patch, and the step takes the part that its stage needs. On a GPU both sides train on batches of noise, stored as bytes
in pinned memory, and cuDNN chooses kernels by its heuristics. `data` measures what one sample costs one core, from a
pack, from PNG files and from Dataset_SyntheticBlur.
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

from basicsr.utils.cli import at_least
from basicsr.utils.files import expanded
from scripts.benchmarks import inference, training
from scripts.benchmarks.measuring import PLAIN_MODES, PRECISIONS, attempt

INFERENCE_MODES = (*PLAIN_MODES, *PRECISIONS, *(f'{precision}+tlc' for precision in PRECISIONS))
OPTIONS = ('checkpointing', 'compile')
TRAINING_MODES = f'{", ".join(PRECISIONS)}, with or without +checkpointing, +compile; {", ".join(PLAIN_MODES)}'
BLOCKS = 'with plain, compile compiles each block separately'


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description='Measure this repository against the plain formulation.')
    commands = p.add_subparsers(dest='command', required=True)
    _add_inference(commands.add_parser('inference', help='time and memory of restoring an image'))
    _add_train(commands.add_parser('train', help='time and memory of a training step, including data loading'))
    _add_data(commands.add_parser('data', help='cost of a training sample per core'))
    return p


def _add_inference(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        '--sizes', nargs='+', type=size, default=[(256, 256)], metavar='WxH', help='default: 256x256'
    )
    p.add_argument(
        '--modes', nargs='+', choices=INFERENCE_MODES, default=['fp32', 'bf16', 'fp32+tlc'], metavar='MODE',
        help=f'{", ".join(INFERENCE_MODES)}; {BLOCKS}; default: fp32 bf16 fp32+tlc',
    )  # fmt: skip
    p.add_argument('--repeats', type=at_least(1), help='timed runs of each of --modes; default: 3, on a GPU 10')
    p.add_argument(
        '--plain_repeats',
        type=at_least(0),
        help='timed runs of plain; 0: leave it out; default: 1, on a GPU 10',
    )
    p.add_argument(
        '--weights', type=expanded, metavar='FILE', help='default: the 26.1 M network with random weights'
    )
    _add_device(p)
    p.set_defaults(network='full', compare=inference.compare, measure_row=inference.measure)


def _add_train(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        '--stages', nargs='+', type=stage, default=[(128, 8)], metavar='PATCHxBATCH',
        help="paper: those of the paper's recipe; default: 128x8",
    )  # fmt: skip
    p.add_argument(
        '--network', choices=('small', 'full'), default='small',
        help='1.1 M or 26.1 M parameters, with random weights; default: %(default)s',
    )  # fmt: skip
    p.add_argument('--weights', type=expanded, metavar='FILE', help='instead: start from a weights file')
    p.add_argument(
        '--modes', nargs='+', type=training_mode, default=['fp32', 'bf16'], metavar='MODE',
        help=f'{TRAINING_MODES}; {BLOCKS}; default: fp32 bf16',
    )  # fmt: skip
    p.add_argument(
        '--steps', type=at_least(1), default=10, help='timed steps of each of --modes; default: %(default)s'
    )
    p.add_argument(
        '--plain_steps', type=at_least(0), help='timed steps of plain; 0: leave it out; default: 5, on a GPU 10'
    )
    p.add_argument(
        '--workers', type=at_least(0),
        help="loader processes on a CPU, at most one per core; 0: load between steps; default: the recipe's",
    )  # fmt: skip
    _add_device(p)
    p.set_defaults(compare=training.compare, measure_row=training.measure)


def _add_device(p: argparse.ArgumentParser) -> None:
    p.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:<n>; default: %(default)s')
    p.add_argument('--json', action='store_true', help='print JSON instead of a table')
    p.add_argument('--measure', type=json.loads, help=argparse.SUPPRESS)  # the rows of this process


def _add_data(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        '--patches', nargs='+', type=at_least(1), metavar='N', help="default: those of the paper's recipe"
    )
    p.add_argument(
        '--samples', type=at_least(1), default=400, help='timed samples of each kind; default: %(default)s'
    )
    p.add_argument('--json', action='store_true', help='print JSON instead of a table')
    p.set_defaults(compare=training.compare_loading, measure=None)


def size(text: str) -> tuple[int, int]:
    width, height = map(at_least(1), text.lower().split('x'))
    return width, height


def stage(text: str) -> tuple[int, int] | str:
    if text == 'paper':
        return text
    try:
        return size(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'found {text}; allowed: PATCHxBATCH, as 128x8, or paper') from None


def training_mode(text: str) -> str:
    precision, *options = text.split('+')
    if text not in PLAIN_MODES and (precision not in PRECISIONS or len(options) > len({*options} & {*OPTIONS})):
        raise argparse.ArgumentTypeError(f'found {text}; allowed: {TRAINING_MODES}')
    return text


def main(args: argparse.Namespace) -> None:
    if args.measure is None:
        args.compare(args)
    else:
        for task in args.measure:
            print(json.dumps(attempt(args.measure_row, args, task)), flush=True)
