"""Measures this repository against the plain formulation of the same network, in one run.

    python scripts/benchmark.py inference
    python scripts/benchmark.py inference --sizes 256x256 1280x720 --modes fp32 bf16 fp32+tlc --repeats 5
    python scripts/benchmark.py inference --device cuda --modes fp32 bf16 fp16 --json > inference.json

*Plain* is the network as it is usually written, in single precision: channels first, normalised copies of queries
and keys, nothing in strips; it is the tests' oracle (tests/archs/oracle.py). Every row is measured in a process of
its own. *Working memory* is that process's peak above its size when imports are done and the weights are loaded;
on a GPU what PyTorch had allocated, likewise. *Of the machine* is the network's arithmetic per second against a
large matrix product of the same precision on the same device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]

# Run as a script, Python looks for modules in scripts/, and the package may not be installed.
if __name__ == '__main__':
    sys.path[0] = str(ROOT)

if TYPE_CHECKING:
    import torch

PRECISIONS = ('fp32', 'bf16', 'fp16')
MODES = (*PRECISIONS, *(f'{precision}+tlc' for precision in PRECISIONS))
COLUMNS = {
    'size': 'size',
    'mode': 'mode',
    'seconds': 'median s',
    'range': 'min-max s',
    'of_plain_time': 'of plain time',
    'of_time_without_tlc': 'of time without TLC',
    'working_MB': 'working MB',
    'of_plain_memory': 'of plain memory',
    'peak_MB': 'peak MB',
    'gflops': 'GFLOP/s',
    'of_machine': 'of the machine',
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Measure this repository against the plain formulation.')
    commands = parser.add_subparsers(dest='command', required=True)
    inference = commands.add_parser('inference', help='time and memory of restoring an image')
    inference.add_argument(
        '--sizes', nargs='+', type=size, default=[(256, 256)], metavar='WxH', help='default: 256x256'
    )
    inference.add_argument(
        '--modes', nargs='+', choices=MODES, default=['fp32', 'bf16', 'fp32+tlc'], help='default: %(default)s'
    )
    inference.add_argument(
        '--repeats', type=positive, default=3, help='timed runs of ours; default: %(default)s'
    )
    inference.add_argument(
        '--plain_repeats', type=count, default=1, help='of the plain formulation; 0: leave it out; default: 1'
    )
    inference.add_argument(
        '--weights', type=Path, metavar='FILE', help='default: the 26.1 M network with random weights'
    )
    inference.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:<n>; default: %(default)s')
    inference.add_argument('--json', action='store_true', help='print JSON instead of a table')
    inference.add_argument('--measure', help=argparse.SUPPRESS)  # in the process of one row
    args = parser.parse_args(argv)
    try:
        if args.measure:
            print(json.dumps(measure(args, json.loads(args.measure))))
        else:
            compare(args)
    except (ValueError, RuntimeError) as error:
        parser.exit(1, f'{parser.prog}: error: {error}\n')
    except KeyboardInterrupt:
        return 130
    return 0


def size(text: str) -> tuple[int, int]:
    width, height = (positive(number) for number in text.lower().split('x'))
    return width, height


def positive(text: str) -> int:
    return number_from(text, 1)


def count(text: str) -> int:
    return number_from(text, 0)


def number_from(text: str, least: int) -> int:
    if int(text) < least:
        raise ValueError(text)
    return int(text)


def compare(args: argparse.Namespace) -> None:
    machine = run_alone(args, {'what': 'machine'})
    rows: list[dict[str, Any]] = []
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
            rows.append(row)
            if not args.json:
                print(line(row) if len(rows) > 1 else f'{title(machine)}\n{heading()}\n{line(row)}', flush=True)
    if args.json:
        print(json.dumps({'machine': machine, 'rows': rows}, indent=1))


def title(machine: dict[str, Any]) -> str:
    rates = ', '.join(f'{rate:.0f} GFLOP/s in {name}' for name, rate in machine['gflops'].items())
    return f'{machine["device"]}, {machine["threads"]} threads, PyTorch {machine["torch"]}; matrix product: {rates}'


def heading() -> str:
    return '  '.join(name.rjust(width(key)) for key, name in COLUMNS.items())


def line(row: dict[str, Any]) -> str:
    return '  '.join(cell(key, row.get(key)).rjust(width(key)) for key in COLUMNS)


def width(key: str) -> int:
    return max(len(COLUMNS[key]), 9)


def cell(key: str, value: Any) -> str:
    if value is None:
        return '-'
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return '-'.join(f'{number:.2f}' for number in value)
    if key.startswith('of_plain'):
        return f'1/{1 / value:.1f}'
    if key == 'of_machine':
        return f'{value:.0%}'
    return f'{value:.0f}' if key.endswith('MB') or key == 'gflops' else f'{value:.3f}'


def run_alone(args: argparse.Namespace, task: dict[str, Any]) -> dict[str, Any]:
    """The result of `measure` in a process of its own, whose peak of memory nothing else has raised."""
    command = [sys.executable, __file__, 'inference', '--device', args.device, '--measure', json.dumps(task)]
    command += ['--repeats', str(args.repeats), '--plain_repeats', str(args.plain_repeats)]
    command += ['--weights', str(args.weights)] if args.weights else []
    result = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    if result.returncode:
        said = result.stderr.strip().splitlines()
        name = task.get('mode', task['what'])
        raise RuntimeError(f'{name}: status {result.returncode}: {said[-1] if said else "killed"}')
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def measure(args: argparse.Namespace, task: dict[str, Any]) -> dict[str, Any]:
    import torch

    from basicsr.utils.device import resolve_device

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
    with torch.inference_mode():
        restore(torch.rand(1, channels, 64, 64, device=device))  # what the libraries prepare once
        image = torch.rand(1, channels, height, width, device=device)
        repeats = args.plain_repeats if mode == 'plain' else args.repeats
        times = [timed(lambda: restore(image), device) for _ in range(repeats)]
    return {'times': times, 'flops': flops, **memory.read()}


def load_network(weights: Path | None) -> tuple[torch.nn.Module, dict[str, Any]]:
    """In eval mode, and all its constructor's arguments."""
    import inspect

    import torch

    from basicsr.archs.restormer_arch import Restormer
    from basicsr.utils.checkpoint import build_network, load_weights, network_options

    options = {name: p.default for name, p in inspect.signature(Restormer).parameters.items()}
    if weights is not None:
        loaded = load_weights(weights)
        options |= network_options(loaded)
        if options.pop('type', 'Restormer') != 'Restormer':
            raise ValueError(
                f'{weights}: found another network; allowed: Restormer, which has a plain formulation'
            )
        return build_network(loaded).eval(), options
    torch.manual_seed(0)
    return Restormer(**options).eval(), options


def plain(network: torch.nn.Module, options: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    import runpy

    restormer = runpy.run_path(str(ROOT / 'tests' / 'archs' / 'oracle.py'))['restormer']
    parameters = dict(network.named_parameters())
    names = ('num_blocks', 'num_refinement_blocks', 'LayerNorm_type', 'dual_pixel_task')
    arguments = {name: options[name] for name in names}
    return lambda x: restormer(parameters, x, **arguments)


def ours(network: torch.nn.Module, device: torch.device, mode: str) -> Callable[[torch.Tensor], torch.Tensor]:
    from basicsr.inference import Restorer

    precision, _, tlc = mode.partition('+')
    return Restorer(network, device, precision, tlc=bool(tlc), fixed_strips=True).restore


def arithmetic(
    network: torch.nn.Module, options: dict[str, Any], device: torch.device, height: int, width: int
) -> float:
    """Floating-point operations of the plain formulation, two to a multiplication with addition: convolutions
    and matrix products, which all are proportional to the number of pixels."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from basicsr.archs.restormer_arch import Restormer

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        plain(network, options)(torch.rand(1, options['inp_channels'], 64, 64, device=device))
    height, width = (side + -side % Restormer.multiple for side in (height, width))
    return counter.get_total_flops() * height * width / 64**2


def machine(device: torch.device) -> dict[str, Any]:
    """What it is, and its rate of multiplying square matrices, which no network exceeds."""
    import torch

    from basicsr.utils.device import DeviceError, resolve_precision

    side = 2048 if device.type == 'cpu' else 8192
    rates = {}
    for precision in PRECISIONS:
        try:
            dtype = resolve_precision(precision, device) or torch.float32
        except DeviceError:  # fp16 on a CPU
            continue
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in 'ab')
        times = [timed(lambda a=a, b=b: torch.mm(a, b), device) for _ in range(10)]
        rates[precision] = 2 * side**3 / statistics.median(times[2:]) / 1e9
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type
    return {'device': name, 'threads': torch.get_num_threads(), 'torch': torch.__version__, 'gflops': rates}


def timed(work: Callable[[], object], device: torch.device) -> float:
    import torch

    def wait() -> None:
        if device.type == 'cuda':
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


class Memory:
    """From when it is made to when it is read: the peak, and what it is above the beginning."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self.device = device
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            Path('/proc/self/clear_refs').write_text('5')  # the peak is what it is now
            self.before = self._of_process('VmRSS')

    def read(self) -> dict[str, float]:
        import torch

        peak = (
            torch.cuda.max_memory_allocated(self.device)
            if self.device.type == 'cuda'
            else self._of_process('VmHWM')
        )
        return {'peak_MB': peak / 1e6, 'working_MB': (peak - self.before) / 1e6}

    @staticmethod
    def _of_process(name: str) -> int:
        lines = Path('/proc/self/status').read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == '__main__':
    sys.exit(main())
