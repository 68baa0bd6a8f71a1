"""Restores and measures a set of images: for validation, basicsr/test.py and the evaluate.py of a task."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from basicsr.data.transforms import to_float
from basicsr.images.writer import write_png
from basicsr.metrics.metric import Metric
from basicsr.options.sections import MetricOptions
from basicsr.utils.dist import Rank
from basicsr.utils.errors import DataError, ImageFileError, RestoreError, RunError
from basicsr.utils.parallel import in_stages
from basicsr.utils.registry import METRIC_REGISTRY

Figures = dict[str, str | float]  # 'name', and the value of each metric by its key
Restore = Callable[[Tensor], Tensor]
Save = Callable[[int, np.ndarray], object]
Compared = dict[str, tuple[np.ndarray, np.ndarray]]  # start of the metrics' keys → image, ground truth

LISTED = 3  # images in an error message


class ImageSet(Protocol):
    """`images[i]`: 'lq', 'gt' (optional), 'restored' (optional), (C, H, W), uint8 or float32, black 0 and white 1; and
    'name'. 'lq' may have other channels than 'gt', such as two views, and noise beyond black and white."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@dataclass
class Evaluation:
    """Figures of the images of a set, and a sentence about each image that was left out, both by index."""

    figures: dict[int, Figures] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    # 'lq' (the first view), 'restored' and 'gt' (if any) of the first image, (H, W, C) uint8; on the main rank only
    sample: dict[str, np.ndarray] | None = None

    @property
    def images(self) -> list[Figures]:
        return [self.figures[index] for index in sorted(self.figures)]

    @property
    def failed(self) -> list[str]:
        return [self.failures[index] for index in sorted(self.failures)]

    @property
    def means(self) -> dict[str, float]:
        """The mean of each number over the images."""
        columns: dict[str, list[float]] = {}
        for image in self.images:
            for key, value in image.items():
                if isinstance(value, float):
                    columns.setdefault(key, []).append(value)
        return {key: float(np.mean(values)) for key, values in columns.items()}

    def raise_if_failed(self) -> None:
        """Raises DataError that names the images left out."""
        if failed := self.failed:
            more = f'; and {len(failed) - LISTED} more' if len(failed) > LISTED else ''
            raise DataError('; '.join(failed[:LISTED]) + more)


def files_of(dataset: object, index: int) -> str:
    """Where a pair comes from, for messages."""
    files = getattr(dataset, 'files', None)
    return files(index) if files else f'pair {index} of {type(dataset).__name__}'


def build_metrics(sections: Mapping[str, MetricOptions]) -> dict[str, Metric]:
    """The metrics of an option file's `val.metrics`."""
    metrics = {}
    for name, section in sections.items():
        function = METRIC_REGISTRY.get(section.type)
        better = section.better or getattr(function, 'better', 'higher')
        metrics[name] = Metric(function, section.arguments(), better == 'higher')
    return metrics


def evaluate(
    restore: Restore | None,
    dataset: ImageSet,
    metrics: Mapping[str, Metric],
    *,
    device: torch.device = torch.device('cpu'),  # noqa: B008 - immutable
    rounded: bool = True,
    folder: Path | None = None,
    save: Save | None = None,
    rank: Rank | None = None,
    title: str = '',
    measure_input: bool = False,
    limit: int | None = None,
    workers: int = 0,
    result: Evaluation | None = None,
    stops: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Restores and measures the images of a set, each uncropped.

    An image that cannot be read, restored or measured, or whose result is not finite, is named on stderr and left out.
    Raises RunError if a result cannot be written.

    Args:
        restore: (1, C, H, W) in [0, 1] → the same size; None: the set gives 'restored'.
        device: where `restore` works. While a GPU restores, threads read the next image and write the last.
        rounded: measure after clamping and rounding to the bit depth of the ground truth; False: after clamping.
        folder: write the results as PNG, `<name>.png`, in the bit depth of the ground truth, or without one that of the
            degraded image; None: do not.
        save: is called with the index and the result, (H, W, C) float32 in [0, 1], of each image.
        rank: each rank takes its share of the images; all return the complete result.
        title: of the progress bar.
        measure_input: also measure the degraded image, as `input_<metric>`, if it has the channels of the ground truth.
        limit: only the first images of the set.
        workers: threads that measure while the next images are restored; 0: measure in turn. The figures do not
            depend on it.
        result: is filled image by image, for a caller that needs the figures measured before an exception.
        stops: asked before each image; where it is true, this rank does no more, and waits for the others.
    """
    rank = rank or Rank()
    result = Evaluation() if result is None else result
    indices = range(rank.index, min(len(dataset), limit or len(dataset)), rank.world_size)
    until_stopped = itertools.takewhile(lambda _: not stops(), indices)

    def read(index: int) -> tuple[int, Mapping[str, Any]]:
        return index, dataset[index]

    def work(item: tuple[int, Mapping[str, Any]]) -> tuple[int, Mapping[str, Any], Tensor]:
        index, pair = item
        restored = pair['restored'] if restore is None else restore(to_float(pair['lq'])[None])[0]
        restored = to_float(restored).float()
        if not bool(restored.isfinite().all()):  # before the clamp, which turns infinity into 1
            raise RestoreError('the restored image is not finite')
        return index, pair, restored.clamp(0, 1).cpu()

    def write(item: tuple[int, Mapping[str, Any], Tensor]) -> Future[None] | None:
        index, pair, restored = item
        if folder is not None:
            path = folder / f'{pair["name"]}.png'
            path.parent.mkdir(parents=True, exist_ok=True)  # keys of an LMDB may contain slashes
            try:
                write_png(path, _without_axis(_levels(restored, _is_deep(pair.get('gt', pair['lq'])))))
            except ImageFileError as error:  # the next ones cannot be written either
                raise RunError(str(error)) from None
        if save is not None:
            save(index, _to_array(restored))
        if index == 0:
            images = {**pair, 'restored': restored}
            kinds = [kind for kind in ('lq', 'restored', 'gt') if kind in images]
            result.sample = {kind: _levels(images[kind][:3], deep=False) for kind in kinds}
        compared: Compared = {}
        if 'gt' in pair:
            compared[''] = _comparable(restored, pair['gt'], rounded)
            if measure_input and pair['lq'].shape == pair['gt'].shape:
                compared['input_'] = _comparable(pair['lq'], pair['gt'], rounded)
        if workers:
            return pool.submit(measure, index, pair['name'], compared)
        measure(index, pair['name'], compared)
        return None

    def measure(index: int, name: str, compared: Compared) -> None:
        try:
            result.figures[index] = _measured(name, compared, metrics)
        except DataError as error:
            leave_out(index, f'{files_of(dataset, index)}: {error}')

    def leave_out(index: int, sentence: str) -> None:
        result.failures[index] = sentence
        bar.write(f'not measured: {sentence}', file=sys.stderr)

    hidden = None if rank.is_main else True  # None: unless stderr is a terminal
    bar = tqdm(desc=title, total=len(indices), unit='image', leave=False, disable=hidden)
    with bar, ThreadPoolExecutor(max(workers, 1)) as pool:
        jobs: deque[Future[None]] = deque()
        try:
            for index, outcome in in_stages(until_stopped, read, work, write, device):
                try:
                    if job := outcome():
                        jobs.append(job)
                except DataError as error:
                    leave_out(index, str(error))
                except RestoreError as error:
                    leave_out(index, f'{files_of(dataset, index)}: {error}')
                while jobs and (len(jobs) > 2 * workers or jobs[0].done()):  # each holds images
                    jobs.popleft().result()
                bar.update()
            for job in jobs:
                job.result()
        except (KeyboardInterrupt, SystemExit):
            pool.shutdown(cancel_futures=True)
            raise
    for figures, failures in rank.gather((result.figures, result.failures)):
        result.figures |= figures
        result.failures |= failures
    return result


def _measured(name: str, compared: Compared, metrics: Mapping[str, Metric]) -> Figures:
    """The figures of each pair of images, by its key and that of the metric. Raises DataError.

    Metrics use NumPy here: in a thread of its own, each operation of PyTorch would start as many threads as there are
    cores.
    """
    figures: Figures = {'name': name}
    try:
        for start, (image, gt) in compared.items():
            data_range = float(np.iinfo(gt.dtype).max) if np.issubdtype(gt.dtype, np.integer) else 1.0
            for key, metric in metrics.items():
                figures[start + key] = metric(image, gt, data_range)
    except (ValueError, cv2.error) as error:  # an image too small for a metric, as a rule
        raise DataError(' '.join(str(error).split())) from None
    except MemoryError:
        raise DataError('out of memory while measuring; fewer workers need less') from None
    return figures


def _comparable(image: Tensor, gt: Tensor, rounded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Both as (H, W, C), clamped, and rounded to the levels of the ground truth's file, or in [0, 1]."""
    if rounded:
        return _levels(image, _is_deep(gt)), _levels(gt, _is_deep(gt))
    return _to_array(to_float(image).clamp(0, 1).double()), _to_array(to_float(gt).double())


def _is_deep(image: Tensor) -> bool:
    """Whether an image of a set has more than 8 bits."""
    return image.dtype != torch.uint8


def _levels(image: Tensor, deep: bool) -> np.ndarray:
    """(C, H, W) → (H, W, C), clamped and rounded to uint16 if deep, else to uint8."""
    if deep or _is_deep(image):
        levels = (to_float(image).clamp(0, 1) * (65535 if deep else 255)).round()  # as Restorer rounds
        image = levels.to(torch.uint16 if deep else torch.uint8)
    return _to_array(image)


def _to_array(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.numpy().transpose(1, 2, 0))


def _without_axis(image_HWC: np.ndarray) -> np.ndarray:
    return image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC
