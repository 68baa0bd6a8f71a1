"""Draw the training curves of a run, or of runs that continue one another: loss, learning rate, and validation metrics
as gains over the unrestored input.

    python scripts/plot_training.py experiments/NAME [experiments/NAME …] --output curves.png

Reads `history.jsonl` in the folders of the runs. Needs Matplotlib (`pip install matplotlib`).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('scripts.plot_training'))

import argparse
import json
from collections.abc import Sequence
from typing import Any

from basicsr.utils.errors import DataError, UsageError

try:
    from matplotlib.figure import Figure  # not pyplot, which may need a screen
except ImportError:
    Figure = None

Curves = dict[tuple[str, str], tuple[list[int], list[float]]]  # (kind of record, key) → iterations and values
TRAINING = {('train', 'loss'): 'loss', ('train', 'lr'): 'learning rate'}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description='Draw the training curves of runs that continue one another.')
    p.add_argument('runs', type=Path, nargs='+', metavar='RUN', help='folder of a run, experiments/NAME')
    p.add_argument('--output', type=Path, required=True, metavar='FILE', help='picture, .png or .svg')
    return p


def main(args: argparse.Namespace) -> None:
    if args.output.suffix not in ('.png', '.svg'):
        raise UsageError(f'--output: found {args.output}; allowed: a file ending in .png or .svg')
    if Figure is None:
        raise UsageError('the package matplotlib is required; pip install matplotlib')
    draw(curves(args.runs), args.output)


def read(run: Path) -> list[dict[str, Any]]:
    path = run / 'history.jsonl'
    lines = path.read_text(encoding='utf-8').splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number < len(lines):  # a running program may be writing the last one
                raise DataError(f'{path}: line {number} is not JSON') from None
    return records


def curves(runs: Sequence[Path]) -> Curves:
    """Joins the histories of runs.

    The iterations of a run count from the end of the one before, unless it resumed its state (`path.resume_state`) and
    its log begins there. Validation metrics are gains over the input, which is logged at the beginning of a run; those
    without are left out. Raises DataError.
    """
    joined: Curves = {}
    start = end = 0
    baseline: dict[tuple[str, str], float] = {}
    for run in runs:
        records = read(run)
        if records and records[0]['iter'] <= end - start:
            start, baseline = end, {}
        for record in records:
            kind, iteration = record.pop('kind'), start + record.pop('iter')
            end = max(end, iteration)
            for key, value in record.items():
                if value is None:  # infinity, or NaN
                    continue
                if kind.startswith('input'):
                    baseline[kind.replace('input', 'val', 1), key] = value
                elif kind == 'train' or (kind, key) in baseline:
                    iterations, values = joined.setdefault((kind, key), ([], []))
                    iterations.append(iteration)
                    values.append(value - baseline.get((kind, key), 0.0))
    if not TRAINING.keys() <= joined.keys():
        raise DataError(f'{runs[0]}: its history has no training loss')
    return joined


def draw(joined: Curves, output: Path) -> None:
    validation = {name: curve for name, curve in joined.items() if name[0] != 'train'}
    metrics = list(dict.fromkeys(key for _, key in validation))
    figure = Figure(figsize=(5 * (2 + len(metrics)), 4), layout='constrained')
    axes = figure.subplots(1, 2 + len(metrics))
    for axis, (name, title) in zip(axes, TRAINING.items(), strict=False):
        axis.plot(*joined[name])
        axis.set_title(title)
    for axis, metric in zip(axes[2:], metrics, strict=True):
        for (kind, key), curve in validation.items():
            if key == metric:
                axis.plot(*curve, marker='.', label=kind.removeprefix('val').removeprefix('_') or 'validation')
        axis.set_title(f'{metric}, gain over the input')
        axis.axhline(0, color='grey', linewidth=0.8)
        axis.legend()
    for axis in axes:
        axis.set_xlabel('iteration')
        axis.grid(alpha=0.3)
    figure.savefig(output, dpi=80)
