"""Reports of a run: train.log and console, history.jsonl, TensorBoard events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from basicsr.data.types import Batch
from basicsr.evaluation.evaluate import Evaluation
from basicsr.training.run_directory import RunDirectory
from basicsr.utils.dist import Rank
from basicsr.utils.files import naming
from basicsr.utils.logger import get_logger


class StepTimer:
    """Times steps and their waiting for data."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._steps, self._data_time, self._start = 0, 0.0, time.perf_counter()

    def micro_batches(self, loader: Iterator[Batch], count: int) -> Iterator[Batch]:
        """The micro-batches of one step."""
        self._steps += 1
        for _ in range(count):
            start = time.perf_counter()
            batch = next(loader)
            self._data_time += time.perf_counter() - start
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Mean seconds per step since the last call."""
        step_time, data_time = (
            (time.perf_counter() - self._start) / self._steps,
            self._data_time / self._steps,
        )
        self._reset()
        return {'step_time': step_time, 'data_time': data_time}


class RunLog:
    """Logs figures. history.jsonl and TensorBoard are written by the main rank alone.

    Args:
        iteration: the one that the run resumes after. TensorBoard drops later events, which will be logged again.
    """

    def __init__(self, directory: RunDirectory, rank: Rank, iteration: int, tensorboard: bool) -> None:
        self.directory, self.rank = directory, rank
        self.tensorboard = None
        if tensorboard and rank.is_main:
            from torch.utils.tensorboard import SummaryWriter  # slow, and may be missing where it is not used

            purge = iteration + 1 if iteration else 0
            with naming(directory.tensorboard):
                self.tensorboard = SummaryWriter(str(directory.tensorboard), purge_step=purge)

    def steps(self, iteration: int, stage: int, values: dict[str, float], times: dict[str, float]) -> None:
        """Means since the last call; `stage` counts from 1."""
        waiting = 100 * times['data_time'] / times['step_time']
        get_logger().info(
            f'iter {iteration}, stage {stage}, loss {values["loss"]:.6f}, grad norm {values["grad_norm"]:.4f}, lr '
            f'{values["lr"]:.4e}, {times["step_time"]:.3f} s/step, {waiting:.1f} % of it waiting for data'
        )
        self.record('train', iteration, {**values, 'stage': stage, **times})

    def validation(self, iteration: int, name: str, result: Evaluation) -> None:
        self.record(f'val_{name}', iteration, result.means)
        if self.tensorboard and result.sample:
            sample = _side_by_side(result.sample)
            with naming(self.directory.tensorboard):
                self.tensorboard.add_image(
                    f'val_{name}/input_restored_truth', sample, iteration, dataformats='HWC'
                )

    def record(self, kind: str, iteration: int, values: dict[str, float]) -> None:
        if self.rank.is_main:
            self.directory.append_history({'iter': iteration, 'kind': kind, **values})
        if self.tensorboard:
            with naming(self.directory.tensorboard):
                for name, value in values.items():
                    self.tensorboard.add_scalar(f'{kind}/{name}', value, iteration)

    def flush(self) -> None:
        if self.tensorboard:
            with naming(self.directory.tensorboard):
                self.tensorboard.flush()

    def close(self) -> None:
        if self.tensorboard:
            with naming(self.directory.tensorboard):
                self.tensorboard.close()


def _side_by_side(sample: dict[str, np.ndarray], height: int = 360) -> np.ndarray:
    images = [sample[kind] for kind in ('lq', 'restored', 'gt') if kind in sample]
    return np.concatenate([image[:height] for image in images], axis=1)
