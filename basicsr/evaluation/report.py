"""Figures as files and tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from basicsr.evaluation.evaluate import Evaluation
from basicsr.utils.files import as_json, atomic_write


def write_figures(folder: Path, about: Mapping[str, object], results: Mapping[str, Evaluation]) -> None:
    """Writes metrics.json and metrics.csv: the figures of each image of each set, and their means; for JSON with
    `about` before them. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    datasets = {
        name: {
            'mean': result.means,
            **({'not_measured': result.failed} if result.failed else {}),
            'images': result.images,
        }
        for name, result in results.items()
    }
    atomic_write(folder / 'metrics.json', as_json({**about, 'datasets': datasets}).encode())
    atomic_write(folder / 'metrics.csv', _as_csv(results).encode(errors='backslashreplace'))


def _as_csv(results: Mapping[str, Evaluation]) -> str:
    images = [image for result in results.values() for image in result.images]
    columns = dict.fromkeys(key for image in images for key in image)
    text = io.StringIO()
    writer = csv.DictWriter(text, ['dataset', *columns])
    writer.writeheader()
    for name, result in results.items():
        writer.writerows({'dataset': name, **image} for image in result.images)
        writer.writerow({'dataset': name, 'name': 'mean', **result.means})
    return text.getvalue()


def as_table(result: Evaluation) -> str:
    """A line for each image, and one for the means: numbers with 4 decimals, of conditions yes or no."""
    images, means = result.images, result.means
    columns = [key for key in images[0] if key != 'name']

    def cell(value: str | float) -> str:
        if isinstance(value, bool):
            return 'yes' if value else 'no'
        return f'{value:.4f}' if isinstance(value, float) else value

    def total(column: str) -> str:
        yes = sum(image[column] is True for image in images)
        return cell(means[column]) if column in means else f'{yes} of {len(images)}'

    rows = [
        ['image', *columns],
        *([cell(image[key]) for key in ('name', *columns)] for image in images),
        ['mean', *map(total, columns)],
    ]
    lines = fixed_width(rows)
    rule = '-' * len(lines[0])
    return '\n'.join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def fixed_width(rows: list[list[str]]) -> list[str]:
    """A line for each row, the first column aligned left, the others right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return ['  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
