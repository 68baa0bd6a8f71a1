"""Restoring a set of images and measuring the results: validation and testing alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from basicsr.data.transforms import to_float
from basicsr.images.writer import write_png
from basicsr.inference import Restorer
from basicsr.metrics.metric import Metric
from basicsr.options.sections import MetricOptions
from basicsr.utils.dist import Rank
from basicsr.utils.errors import DataError
from basicsr.utils.parallel import in_stages
from basicsr.utils.registry import METRIC_REGISTRY

Result = TypeVar('Result')


def files_of(dataset: Any, index: int) -> str:
    """For messages: where a pair comes from, if the dataset tells."""
    return dataset.files(index) if hasattr(dataset, 'files') else f'pair {index} of {type(dataset).__name__}'


def build_metrics(options: Any) -> dict[str, Metric]:
    """The metrics of an option file's `val` section."""

    def metric(section: MetricOptions) -> Metric:
        return Metric(METRIC_REGISTRY.get(section.type), section.arguments(), section.better == 'higher')

    return {name: metric(section) for name, section in options.val.metrics.items()}


@dataclass
class Evaluation:
    """What came out for one set: metrics of each image, in the set's order, and their means."""

    images: list[dict[str, Any]]
    means: dict[str, float]
    # 'lq', 'restored' and 'gt' (if any) of the first image, (H, W, C) uint8; in the main process alone
    sample: dict[str, np.ndarray] | None = None


def evaluate(
    restore: Callable[[Tensor], Tensor],
    dataset: Any,
    metrics: dict[str, Metric],
    *,
    rounded: bool = True,
    folder: Path | None = None,
    process: Rank | None = None,
    title: str = '',
    measure_input: bool = False,
) -> Evaluation:
    """Restores every image of a set whole. Raises FloatingPointError if a result is not finite, and DataError on an
    image that cannot be read or measured.

    Args:
        restore: (1, C, H, W) in [0, 1] → the same size.
        dataset: `dataset[i]` gives {'lq', 'gt' (if any), 'name'}.
        rounded: measure after clamping and rounding to the bit depth of the ground truth; else before, clamped.
        folder: where to write the results as PNG, `<name>.png`, of the degraded image's depth; None: nowhere.
        process: every process takes its share of the images, and all get the whole result.
        measure_input: the metrics of the degraded image too, as `input_<metric>`.
    """
    process = process or Rank()
    mine: list[tuple[int, dict[str, Any]]] = []
    sample = None

    def measured(
        index: int, pair: dict[str, Any], restored: Tensor
    ) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
        images = {'restored': restored, 'lq': pair['lq']}
        values: dict[str, Any] = {'name': pair['name']}
        if 'gt' in pair:
            images['gt'] = pair['gt']
            try:
                values |= _measure(restored, pair['gt'], metrics, rounded)
                if measure_input:
                    scores = _measure(pair['lq'], pair['gt'], metrics, rounded)
                    values |= {f'input_{name}': score for name, score in scores.items()}
            except ValueError as error:  # too small for a metric, as a rule
                raise DataError(f'{files_of(dataset, index)}: {error}') from None
        shown = {kind: _levels(image, deep=False) for kind, image in images.items()} if index == 0 else None
        return values, shown

    indices = range(process.index, len(dataset), process.world_size)
    for index, outcome in tqdm(
        restore_pairs(restore, dataset, indices, folder, measured),
        total=len(indices),
        desc=title,
        unit='image',
        leave=False,
        disable=None if process.is_main else True,
    ):
        values, shown = outcome()
        sample = sample or shown
        mine.append((index, values))
    everyone = chain.from_iterable(process.gather(mine))
    results = [values for _, values in sorted(everyone, key=itemgetter(0))]
    return Evaluation(results, means(results), sample)


def restore_pairs(
    restore: Callable[[Tensor], Tensor],
    dataset: Any,
    indices: Iterable[int],
    folder: Path | None,
    then: Callable[[int, dict[str, Any], Tensor], Result],
) -> Iterator[tuple[int, Callable[[], Result]]]:
    """Restores images of a set whole: the index of each, and a function, as of `in_stages`, that gives `then` of the
    index, of `dataset[index]`, and of the result, (C, H, W) in [0, 1] on the CPU, which is in `folder` by then if there
    is one. Other arguments and errors as of `evaluate`; the function raises them."""

    def work(item: tuple[int, dict[str, Any]]) -> tuple[int, dict[str, Any], Tensor]:
        index, pair = item
        return index, pair, _restored(restore, pair['lq'], dataset, index)

    def write(item: tuple[int, dict[str, Any], Tensor]) -> Result:
        index, pair, restored = item
        if folder is not None:
            path = folder / f'{pair["name"]}.png'
            path.parent.mkdir(parents=True, exist_ok=True)  # the keys of an LMDB may have slashes
            write_png(path, _drawable(_levels(restored, _is_deep(pair['lq']))))
        return then(index, pair, restored)

    restorer = getattr(restore, '__self__', None)
    device = restorer.device if isinstance(restorer, Restorer) else torch.device('cpu')
    return in_stages(indices, lambda index: (index, dataset[index]), work, write, device)


def _restored(restore: Callable[[Tensor], Tensor], lq: Tensor, dataset: Any, index: int) -> Tensor:
    restored = restore(to_float(lq)[None])[0].float()
    if not bool(restored.isfinite().all()):  # before the clamp, which makes 1 of infinity
        raise FloatingPointError(f'{files_of(dataset, index)}: the restored image is not finite')
    return restored.clamp(0, 1).cpu()


def _measure(image: Tensor, gt: Tensor, metrics: dict[str, Metric], rounded: bool) -> dict[str, float]:
    """Both (C, H, W), uint8 or in [0, 1]."""
    if rounded:
        arrays = levels_like(gt, image, gt)
        data_range = float(np.iinfo(arrays[1].dtype).max)
    else:
        arrays = [_to_array(to_float(each).double()) for each in (image, gt)]
        data_range = 1.0
    return {name: metric(*arrays, data_range) for name, metric in metrics.items()}


def levels_like(gt: Tensor, *images: Tensor) -> list[np.ndarray]:
    """Each (C, H, W), uint8 or in [0, 1] → (H, W, C), rounded to the levels of the file that `gt` was read from."""
    return [_levels(image, _is_deep(gt)) for image in images]


def _is_deep(image: Tensor) -> bool:
    """Whether an image of a dataset was read from a file with 16 bit."""
    return image.dtype != torch.uint8


def _levels(image: Tensor, deep: bool) -> np.ndarray:
    """(C, H, W) → (H, W, C), rounded to uint16 if deep, else to uint8."""
    if deep or _is_deep(image):
        levels = (to_float(image) * (65535 if deep else 255)).round()  # as Restorer rounds
        image = levels.to(torch.uint16 if deep else torch.uint8)
    return _to_array(image)


def _to_array(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.numpy().transpose(1, 2, 0))


def means(images: list[dict[str, Any]]) -> dict[str, float]:
    """Of every number; what is a text or a yes or no in each image has none."""
    names = [name for name, value in images[0].items() if not isinstance(value, (str, bool))]
    return {name: float(np.mean([image[name] for image in images])) for name in names}


def _drawable(image_HWC: np.ndarray) -> np.ndarray:
    return image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC
