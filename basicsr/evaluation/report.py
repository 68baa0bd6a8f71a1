"""Testing: the sets of an option file, restored and measured; what is printed and written."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from basicsr.archs.from_weights import load_pretrained
from basicsr.data.loader import validation_sets
from basicsr.evaluation.evaluate import Evaluation, build_metrics, evaluate
from basicsr.inference.restorer import build_restorer
from basicsr.options.components import build
from basicsr.utils.files import as_json, atomic_write, check_writable
from basicsr.utils.registry import ARCH_REGISTRY


def load_network(options: Any, device: torch.device) -> nn.Module:
    """The network of the options with the weights of `path.pretrain_network_g`, in eval mode.
    Raises CheckpointError."""
    net: nn.Module = build(ARCH_REGISTRY, options.network_g)
    load_pretrained(net, options.path.pretrain_network_g, options.path.strict_load_g)
    return net.to(device, memory_format=torch.channels_last).eval()


def run_tests(options: Any, device: torch.device, folder: Path) -> Iterator[tuple[str, Evaluation]]:
    """Tests on every set but the training set. The name and the figures of each set as it is done, all figures so far
    being in metrics.json and metrics.csv in `folder` by then, and the restored images in `folder/visualization/<set>`
    if `val.save_img` is on."""
    net = load_network(options, device)
    metrics = build_metrics(options)
    sets = validation_sets(options)
    # Before the work of hours.
    check_writable(next(each for each in (folder, *folder.parents) if each.exists()))

    restorer = build_restorer(net, device, options.val)
    results: dict[str, Evaluation] = {}
    for name, dataset in sets.items():
        results[name] = evaluate(
            restorer.restore,
            dataset,
            metrics,
            rounded=options.val.use_image,
            folder=folder / 'visualization' / name if options.val.save_img else None,
            title=name,
            measure_input=True,
        )
        _write(folder, options, results)
        yield name, results[name]


def _write(folder: Path, options: Any, results: dict[str, Evaluation]) -> None:
    figures = {name: {'mean': result.means, 'images': result.images} for name, result in results.items()}
    folder.mkdir(parents=True, exist_ok=True)
    about = {'name': options.name, 'weights': options.path.pretrain_network_g}
    atomic_write(folder / 'metrics.json', as_json({**about, 'datasets': figures}).encode())
    atomic_write(folder / 'metrics.csv', _as_csv(results).encode(errors='backslashreplace'))


def _as_csv(results: dict[str, Evaluation]) -> str:
    columns = list(
        dict.fromkeys(key for result in results.values() for image in result.images for key in image)
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, ['dataset', *columns])
    writer.writeheader()
    for name, result in results.items():
        writer.writerows(
            {'dataset': name, **image} for image in [*result.images, {'name': 'mean', **result.means}]
        )
    return text.getvalue()


def as_table(result: Evaluation) -> str:
    """A line for each image, and the means."""
    columns = list(result.means)
    rows = [[image['name'], *(f'{image[column]:.4f}' for column in columns)] for image in result.images]
    rows = [['image', *columns], *rows, ['mean', *(f'{result.means[column]:.4f}' for column in columns)]]
    lines = fixed_width(rows)
    rule = '-' * len(lines[0])
    return '\n'.join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def fixed_width(rows: list[list[str]]) -> list[str]:
    """A line for each row: the first column to the left, the others to the right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return ['  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
