"""Measures this repository against the plain formulation of the same network, in one run.

    python scripts/benchmark.py inference
    python scripts/benchmark.py inference --sizes 256x256 1280x720 --modes fp32 bf16 fp32+tlc --repeats 5
    python scripts/benchmark.py inference --device cuda --modes fp32 bf16 plain+bf16 --json > inference.json
    python scripts/benchmark.py train --network full --stages paper --modes fp32 bf16 bf16+checkpointing
    python scripts/benchmark.py train --device cuda --network full --modes bf16 bf16+compile plain+bf16+compile
    python scripts/benchmark.py data

*Plain* is the network as it is usually written, in single precision: channels first, normalised copies of queries
and keys, nothing in strips; it is basicsr/archs/restormer_reference.py. Ratios are taken of that row. The modes
`plain+bf16` (autocast), `plain+compile` and `plain+bf16+compile` take one or two lines more. On a CPU every row is
measured in a process of its own. *Working memory* is that process's peak above its size when
imports are done and the weights are loaded (`train`: and the optimiser is built). *Of the machine* is the network's
arithmetic per second against a large matrix product of the same precision on the same device.

On a GPU one process measures all rows. *Device ms* is the median time between events on the GPU, one recorded
before each step or image; nothing waits for the GPU in between. *Launch ms* is how long the processor took to launch
one. It waits while the GPU's queue is full, so that it is hardly above device ms; where it is well below, the GPU is
what takes the time. *Peak GB* is the most that PyTorch had allocated, after 3 steps or images of warming up; memory
*of plain* counts only what is above the weights. The first line says where rows in single precision use TF32.

`train` measures whole steps of the paper's recipe, loading included, on made-up pairs of 512x512. Ours is the model
of basicsr/train.py on a pack (scripts/prepare_data.py). Plain is the oracle with PyTorch's AdamW as it comes, and a
loader that decodes both PNG files for each sample: it gives the largest batch of --stages in the largest patch, and
the step takes as much of it as its stage needs. On a GPU both sides train on batches of noise that lie ready as bytes
in pinned memory, and cuDNN chooses by its heuristics. `data` measures what one sample costs one core, from a pack, from
PNG files and from Dataset_SyntheticBlur.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

# Run as a script, Python looks for modules in scripts/, and the package may not be installed.
if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from basicsr.utils.files import expanded
from scripts.benchmarks import PLAIN_MODES, PRECISIONS

INFERENCE_MODES = (*PLAIN_MODES, *PRECISIONS, *(f'{precision}+tlc' for precision in PRECISIONS))
WAYS = ('checkpointing', 'compile')
TRAINING_MODES = (
    f'{", ".join(PRECISIONS)}, with or without {", ".join(f"+{way}" for way in WAYS)}; {", ".join(PLAIN_MODES)}'
)
BLOCKS = 'with plain, compile compiles the blocks one by one'


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Measure this repository against the plain formulation.')
    commands = parser.add_subparsers(dest='command', required=True)
    add_inference(commands)
    add_train(commands)
    add_data(commands)
    args = parser.parse_args(argv)
    args.command_line = list(sys.argv[1:] if argv is None else argv)
    try:
        command = importlib.import_module(args.module)
        if args.measure:
            from scripts.benchmarks.measuring import attempt  # here, as PyTorch takes seconds

            for task in json.loads(args.measure):
                print(json.dumps(attempt(command.measure, args, task)), flush=True)
        else:
            command.compare(args)
    except (ValueError, RuntimeError, OSError) as error:
        parser.exit(1, f'{parser.prog}: error: {error}\n')
    except KeyboardInterrupt:
        return 130
    return 0


def add_inference(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser('inference', help='time and memory of restoring an image')
    command.add_argument(
        '--sizes', nargs='+', type=size, default=[(256, 256)], metavar='WxH', help='default: 256x256'
    )
    command.add_argument(
        '--modes',
        nargs='+',
        choices=INFERENCE_MODES,
        default=['fp32', 'bf16', 'fp32+tlc'],
        metavar='MODE',
        help=f'{", ".join(INFERENCE_MODES)}; {BLOCKS}; default: fp32 bf16 fp32+tlc',
    )
    command.add_argument(
        '--repeats', type=positive, help='timed runs of each of --modes; default: 3, on a GPU 10'
    )
    command.add_argument(
        '--plain_repeats', type=count, help='of plain; 0: leave it out; default: 1, on a GPU 10'
    )
    command.add_argument(
        '--weights', type=expanded, metavar='FILE', help='default: the 26.1 M network with random weights'
    )
    add_common(command, 'inference')


def add_train(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser('train', help='time and memory of a training step, loading included')
    command.add_argument(
        '--stages',
        nargs='+',
        type=stage,
        default=[(128, 8)],
        metavar='PATCHxBATCH',
        help="paper: those of the paper's recipe; default: 128x8",
    )
    command.add_argument(
        '--network',
        choices=('small', 'full'),
        default='small',
        help='of 1.1 M or of 26.1 M parameters, with random weights; default: %(default)s',
    )
    command.add_argument(
        '--weights', type=expanded, metavar='FILE', help='instead: start from a file of weights'
    )
    command.add_argument(
        '--modes',
        nargs='+',
        type=training_mode,
        default=['fp32', 'bf16'],
        metavar='MODE',
        help=f'{TRAINING_MODES}; {BLOCKS}; default: fp32 bf16',
    )
    command.add_argument(
        '--steps', type=positive, default=10, help='timed steps of each of --modes; default: %(default)s'
    )
    command.add_argument('--plain_steps', type=count, help='of plain; 0: leave it out; default: 5, on a GPU 10')
    command.add_argument(
        '--workers',
        type=count,
        help='processes that load on a CPU, at most one for each core; 0: load in between; '
        'default: those of the recipe',
    )
    add_common(command, 'training')


def add_data(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser('data', help='what a training sample costs a core')
    command.add_argument(
        '--patches', nargs='+', type=positive, metavar='N', help="default: those of the paper's recipe"
    )
    command.add_argument(
        '--samples', type=positive, default=400, help='timed samples of each kind; default: %(default)s'
    )
    command.add_argument('--json', action='store_true', help='print JSON instead of a table')
    command.set_defaults(module='scripts.benchmarks.loading', measure=None)


def add_common(command: argparse.ArgumentParser, module: str) -> None:
    command.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:<n>; default: %(default)s')
    command.add_argument('--json', action='store_true', help='print JSON instead of a table')
    command.add_argument('--measure', help=argparse.SUPPRESS)  # in the process of one row
    command.set_defaults(module=f'scripts.benchmarks.{module}')


def size(text: str) -> tuple[int, int]:
    width, height = (positive(number) for number in text.lower().split('x'))
    return width, height


def stage(text: str) -> tuple[int, int] | str:
    if text == 'paper':
        return text
    try:
        return size(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'found {text}; allowed: PATCHxBATCH, as 128x8, or paper') from None


def training_mode(text: str) -> str:
    precision, *ways = text.split('+')
    if text not in PLAIN_MODES and (precision not in PRECISIONS or len(ways) > len({*ways} & {*WAYS})):
        raise argparse.ArgumentTypeError(f'found {text}; allowed: {TRAINING_MODES}')
    return text


def positive(text: str) -> int:
    return number_from(text, 1)


def count(text: str) -> int:
    return number_from(text, 0)


def number_from(text: str, least: int) -> int:
    if int(text) < least:
        raise ValueError(text)
    return int(text)


if __name__ == '__main__':
    sys.exit(main())
