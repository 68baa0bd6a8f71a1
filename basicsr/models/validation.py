"""Restoring a set of images and measuring the results: validation and testing alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor
from tqdm import tqdm

from basicsr.data.paired_image_dataset import to_float
from basicsr.inference.image_files import write_png
from basicsr.utils.dist import Process
from basicsr.utils.options import arguments
from basicsr.utils.registry import METRIC_REGISTRY


@dataclass(frozen=True)
class Metric:
    """A function of (restored, ground truth), and which way is better."""

    function: Callable[..., float]
    settings: dict[str, Any] = field(default_factory=dict)
    higher_is_better: bool = True

    def __call__(self, restored: np.ndarray, gt: np.ndarray, data_range: float) -> float:
        return self.function(restored, gt, **{'data_range': data_range, **self.settings})

    def is_better(self, value: float, than: float | None) -> bool:
        return than is None or (value > than if self.higher_is_better else value < than)


def build_metrics(options: Any) -> dict[str, Metric]:
    """The metrics of an option file's `val` section."""

    def metric(section: BaseModel) -> Metric:
        settings = arguments(section)
        higher = settings.pop('better', 'higher') == 'higher'
        return Metric(METRIC_REGISTRY.get(section.type), settings, higher)  # type: ignore[attr-defined]

    return {name: metric(section) for name, section in options.val.metrics.items()}


@dataclass
class Evaluation:
    """What came out for one set: metrics of each image, in the set's order, and their means."""

    images: list[dict[str, Any]]
    means: dict[str, float]
    sample: dict[str, np.ndarray] | None = None  # 'lq', 'restored', 'gt' of the first image, (H, W, C) uint8


def evaluate(
    restore: Callable[[Tensor], Tensor],
    dataset: Any,
    metrics: dict[str, Metric],
    *,
    rounded: bool = True,
    folder: Path | None = None,
    process: Process | None = None,
    title: str = '',
    measure_input: bool = False,
) -> Evaluation:
    """Restores every image of a set whole.

    Args:
        restore: (1, C, H, W) in [0, 1] → the same size.
        dataset: `dataset[i]` gives {'lq', 'gt' (if any), 'name'}.
        rounded: measure after clamping and rounding to the bit depth of the ground truth; else before, clamped.
        folder: where to write the results as PNG, `<name>.png`; None: nowhere.
        process: every process takes its share of the images, and all get the whole result.
        measure_input: the metrics of the degraded image too, as `input_<metric>`.
    """
    process = process or Process()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    mine: list[tuple[int, dict[str, Any]]] = []
    sample = None
    indices = range(process.rank, len(dataset), process.world_size)
    for index in tqdm(
        indices, desc=title, unit='image', leave=False, disable=None if process.is_main else True
    ):
        pair = dataset[index]
        restored = restore(to_float(pair['lq'])[None])[0].float().clamp(0, 1).cpu()
        if not bool(torch.isfinite(restored).all()):
            raise FloatingPointError(f'{dataset.files(index)}: the restored image is not finite')
        values: dict[str, Any] = {'name': pair['name']}
        if 'gt' in pair:
            gt = _levels(pair['gt'], pair['gt'], rounded)
            images = {'': restored, **({'input_': pair['lq']} if measure_input else {})}
            for prefix, image in images.items():
                image = _levels(image, pair['gt'], rounded)
                values |= {f'{prefix}{name}': metric(image, gt, _full(gt)) for name, metric in metrics.items()}
        if folder is not None:
            write_png(folder / f'{pair["name"]}.png', _drawable(_levels(restored, pair['lq'], True)))
        if index == 0:
            sample = {
                kind: _levels(image, None, True)
                for kind, image in {**pair, 'restored': restored}.items()
                if kind != 'name'
            }
        mine.append((index, values))
    images = [values for _, values in sorted(sum(process.gather(mine), []), key=lambda item: item[0])]
    return Evaluation(images, _means(images), sample)


def _means(images: list[dict[str, Any]]) -> dict[str, float]:
    names = [name for name in images[0] if name != 'name']
    return {name: float(np.mean([image[name] for image in images])) for name in names}


def _full(levels: np.ndarray) -> float:
    return float(np.iinfo(levels.dtype).max) if levels.dtype.kind == 'u' else 1.0


def _levels(image: Tensor, like: Tensor | None, rounded: bool) -> np.ndarray:
    """(C, H, W) → (H, W, C): rounded to 8 bit, or to 16 where `like` came from 16 bit; else float64 in [0, 1]."""
    array = np.ascontiguousarray(image.cpu().numpy().transpose(1, 2, 0))
    if array.dtype == np.uint8:
        return array if rounded else array / 255.0
    array = array.astype(np.float64)
    if not rounded:
        return array
    eight_bit = like is None or like.dtype == torch.uint8
    return np.rint(array * 255).astype(np.uint8) if eight_bit else np.rint(array * 65535).astype(np.uint16)


def _drawable(image_HWC: np.ndarray) -> np.ndarray:
    return image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC
