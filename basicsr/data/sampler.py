"""Which samples each iteration sees: a pure function of the options and the iteration's number.

Iterations count from 1, samples from 0. There is no state between iterations, so a resumed run, any number of workers
and any number of ranks see the same samples with the same randomness.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal, NamedTuple, Protocol

import numpy as np
from torch.utils.data import Sampler

# Last number of a seed: one per purpose, so that no two purposes share a random stream.
_ORDER, _SAMPLE, _MIXUP = range(3)


class SampleKey(NamedTuple):
    """All that a dataset needs to make one training sample."""

    index: int  # type: ignore[assignment]  # of the pair
    number: int  # of the sample, over the run and all ranks
    patch: int  # side in pixels
    seed: int

    def generator(self) -> np.random.Generator:
        """The source of everything random in this sample."""
        return np.random.default_rng((self.seed, self.number, _SAMPLE))


def mixup_generator(seed: int, iteration: int, micro_batch: int = 0) -> np.random.Generator:
    return np.random.default_rng((seed, iteration, _MIXUP, micro_batch))


@dataclass(frozen=True)
class Stages:
    """Progressive training: stage s lasts `iters[s]` iterations, with `batches[s]` patches of `patches[s]` pixels in
    a micro-batch. The last stage has no end."""

    iters: tuple[int, ...]
    patches: tuple[int, ...]
    batches: tuple[int, ...]

    def at(self, iteration: int) -> int:
        """Index of an iteration's stage: stage 0 is iterations 1 … iters[0]."""
        return min(bisect_left(list(accumulate(self.iters)), iteration), len(self.iters) - 1)

    def samples_before(self, iteration: int) -> int:
        """Samples before an iteration if each iteration has one micro-batch."""
        stage = self.at(iteration)
        full = sum(length * batch for length, batch in zip(self.iters[:stage], self.batches, strict=False))
        return full + (iteration - 1 - sum(self.iters[:stage])) * self.batches[stage]


class StageOptions(Protocol):
    """The keys of a training dataset that describe its stages."""

    @property
    def iters(self) -> Sequence[int] | None: ...
    @property
    def gt_sizes(self) -> Sequence[int] | None: ...
    @property
    def mini_batch_sizes(self) -> Sequence[int] | None: ...
    @property
    def gt_size(self) -> int | None: ...
    @property
    def batch_size_per_gpu(self) -> int | None: ...


def stages_of(options: StageOptions) -> Stages:
    """The training stages; a single one if `iters` is not set."""
    if options.iters is None:
        assert options.gt_size is not None and options.batch_size_per_gpu is not None  # checked for train.py
        return Stages((1,), (options.gt_size,), (options.batch_size_per_gpu,))
    return Stages(tuple(options.iters), tuple(options.gt_sizes or ()), tuple(options.mini_batch_sizes or ()))


class TrainingOrder:
    """Maps a sample's number to a pair. An epoch visits every pair `enlarge` times, in its own order."""

    def __init__(self, length: int, seed: int, shuffle: bool = True, enlarge: int = 1) -> None:
        self.length, self.seed, self.shuffle, self.enlarge = length, seed, shuffle, enlarge

    def index(self, number: int) -> int:
        size = self.length * self.enlarge
        epoch, place = divmod(number, size)
        return int(_permutation(self.seed, epoch, size)[place] if self.shuffle else place) % self.length


@lru_cache(maxsize=2)  # a batch may span two epochs
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, _ORDER)).permutation(size)


class TrainingBatches(Sampler[list[SampleKey]]):
    """Batch sampler of one rank: its micro-batches from `first_iteration` to `last_iteration`, each at its stage's
    patch and batch size.

    An iteration has `world_size · accumulate` micro-batches of consecutive samples; rank r takes `accumulate` of them,
    from number r · accumulate on. So the samples of an iteration, and which of them share a micro-batch, depend only
    on that product.

    Args:
        first_sample: number of the first sample of `first_iteration`; None: as if the same number of ranks had done
            all iterations before.
    """

    def __init__(
        self,
        order: TrainingOrder,
        stages: Stages,
        first_iteration: int,
        last_iteration: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        first_sample: int | None = None,
    ) -> None:
        self.order, self.stages = order, stages
        self.first_iteration, self.last_iteration = first_iteration, last_iteration
        self.micro_batches = world_size * accumulate
        self.mine = range(rank * accumulate, (rank + 1) * accumulate)
        self._shift = 0
        if first_sample is not None:
            self._shift = first_sample - self.samples_before(first_iteration)

    def samples_before(self, iteration: int) -> int:
        """The number of the first sample of an iteration."""
        return self.stages.samples_before(iteration) * self.micro_batches + self._shift

    def batch(self, iteration: int) -> list[SampleKey]:
        """All samples of an iteration, over all ranks."""
        return [key for number in range(self.micro_batches) for key in self.micro_batch(iteration, number)]

    def micro_batch(self, iteration: int, number: int) -> list[SampleKey]:
        """One of the iteration's `micro_batches`."""
        stage = self.stages.at(iteration)
        size, patch = self.stages.batches[stage], self.stages.patches[stage]
        first = self.samples_before(iteration) + number * size
        return [SampleKey(self.order.index(n), n, patch, self.order.seed) for n in range(first, first + size)]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return (
            self.micro_batch(iteration, number)
            for iteration in range(self.first_iteration, self.last_iteration + 1)
            for number in self.mine
        )

    def __len__(self) -> int:
        return (self.last_iteration - self.first_iteration + 1) * len(self.mine)


def accumulation(accumulate: int | Literal['auto'], num_gpu: int, world_size: int) -> int:
    """Micro-batches that each rank accumulates per step. 'auto' keeps the global batch size of `num_gpu` devices.
    Raises ValueError if the ranks cannot share that evenly."""
    if accumulate != 'auto':
        return accumulate
    written_for = max(num_gpu, 1)
    if written_for % world_size == 0:
        return written_for // world_size
    works = [count for count in range(1, written_for + 1) if written_for % count == 0]
    distance = min(abs(count - world_size) for count in works)
    nearest = [str(count) for count in works if abs(count - world_size) == distance]
    raise ValueError(
        f'num_gpu: found {num_gpu}, on {world_size} processes, with train.accumulate auto; allowed: '
        f'{", ".join(map(str, works))} processes (the nearest: {" or ".join(nearest)}), which can '
        'share such a batch evenly, or a number for train.accumulate'
    )
