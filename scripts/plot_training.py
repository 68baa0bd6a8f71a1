"""Training curves of a run, or of several that follow one another: loss, learning rate, and what the validation sets
have gained.

    python scripts/plot_training.py experiments/NAME [experiments/NAME …] --output curves.png

Reads the `history.jsonl` of the runs' folders. Needs Matplotlib (`pip install matplotlib`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LOSS, RATE = ('train', 'loss'), ('train', 'lr')
Curves = dict[tuple[str, str], tuple[list[int], list[float]]]  # (kind of line, key) → iterations and values


class HistoryError(ValueError):
    """A history that cannot be drawn."""


def read(run: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's history. Raises HistoryError."""
    path = run / 'history.jsonl'
    try:
        lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError as error:
        raise HistoryError(
            f'{path}: cannot be read ({error.strerror}); allowed: the folder of a run, experiments/NAME'
        ) from None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not (isinstance(record['iter'], int) and isinstance(record['kind'], str)):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            if number == len(lines):  # a kill can cut the last line, and a run may be about to write it
                return
            raise HistoryError(f'{path}: line {number} is not a line of a history') from None
        yield record


def curves(runs: Sequence[Path]) -> Curves:
    """Of runs one after another: the iterations of each count from the end of the one before, but for a run that
    was begun with the state of the one before (`path.resume_state`) and counts so by itself. Validation is what was
    gained over the images as they are, which only a run's beginning knows; where nobody does, it is left out. Raises
    HistoryError."""
    drawn: Curves = {}
    start = end = 0
    unrestored: dict[tuple[str, str], float] = {}
    for run in runs:
        records = list(read(run))
        if not _goes_on(records, end - start):
            start, unrestored = end, {}
        for record in records:
            kind, end = record['kind'], max(end, start + record['iter'])
            for key, value in record.items():
                if key in ('iter', 'kind') or not isinstance(value, int | float):
                    continue
                if kind.startswith('input'):
                    unrestored['val' + kind.removeprefix('input'), key] = value
                    continue
                if kind.startswith('val') and (kind, key) not in unrestored:
                    continue
                iterations, values = drawn.setdefault((kind, key), ([], []))
                iterations.append(start + record['iter'])
                values.append(value - unrestored.get((kind, key), 0.0))
    if not {LOSS, RATE} <= drawn.keys():
        raise HistoryError(f'{runs[0]}: nothing has been logged of its training')
    return drawn


def _goes_on(records: Sequence[dict[str, Any]], before: int) -> bool:
    """Whether a run was begun with the state of another one, of `before` iterations: the first are not in its log."""
    logged = [record['iter'] for record in records if record['kind'] == 'train'][:3]
    if not logged or not all(record['iter'] for record in records):
        return False
    if len(logged) < 3:  # the last line of a run comes early
        return logged[0] > before
    return logged[0] > max(logged[1] - logged[0], logged[2] - logged[1])


def draw(drawn: Curves, output: Path) -> None:
    """Raises ImportError without Matplotlib, and OSError."""
    from matplotlib.figure import Figure  # without pyplot: no screen is needed

    validation = {name: curve for name, curve in drawn.items() if name[0] != 'train'}
    metrics = list(dict.fromkeys(key for _, key in validation))
    figure = Figure(figsize=(5 * (2 + len(metrics)), 4), layout='constrained')
    axes = figure.subplots(1, 2 + len(metrics))
    for axis, name, title in zip(axes, (LOSS, RATE), ('loss', 'learning rate'), strict=False):
        axis.plot(*drawn[name])
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Draw the training curves of runs that follow one another.')
    parser.add_argument('runs', type=Path, nargs='+', metavar='RUN', help='folder of a run, experiments/NAME')
    parser.add_argument('--output', type=Path, required=True, metavar='FILE', help='picture, .png or .svg')
    args = parser.parse_args(argv)
    if args.output.suffix not in ('.png', '.svg'):
        parser.error(f'--output: found {args.output}; allowed: a file ending in .png or .svg')
    try:
        draw(curves(args.runs), args.output)
    except HistoryError as error:
        parser.exit(1, f'{parser.prog}: error: {error}\n')
    except ImportError:
        parser.exit(1, f'{parser.prog}: error: Matplotlib is not installed; pip install matplotlib\n')
    except OSError as error:
        parser.exit(1, f'{parser.prog}: error: {args.output}: cannot be written ({error.strerror})\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
