"""Which samples an iteration sees: a pure function of the options and the iteration's number.

Iterations count from 1, samples from 0. Nothing is remembered between iterations, so a resumed run, any number
of workers and any number of processes see the same samples with the same randomness.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

# The last number of a seed says what it is for, so that no two uses share a stream.
_ORDER, _SAMPLE, _MIXUP = range(3)


class SampleKey(NamedTuple):
    """What a dataset needs to know to make one training sample."""

    index: int  # of the pair
    number: int  # of the sample, over the whole run and all processes
    patch: int  # side in pixels
    seed: int

    def generator(self) -> np.random.Generator:
        """All that is random in this sample."""
        return np.random.default_rng((self.seed, self.number, _SAMPLE))


def mixup_generator(seed: int, iteration: int) -> np.random.Generator:
    return np.random.default_rng((seed, iteration, _MIXUP))


@dataclass(frozen=True)
class Stages:
    """Progressive training: stage s lasts `iters[s]` iterations on patches of `patches[s]` pixels, with
    `batches[s]` samples for each process. After the last one, the last one goes on."""

    iters: tuple[int, ...]
    patches: tuple[int, ...]
    batches: tuple[int, ...]

    def at(self, iteration: int) -> int:
        """Index of the stage of an iteration: 1 … iters[0] are of stage 0."""
        return min(bisect_left(list(accumulate(self.iters)), iteration), len(self.iters) - 1)

    def samples_before(self, iteration: int) -> int:
        """Samples that one process has seen when `iteration` begins."""
        stage = self.at(iteration)
        full = sum(length * batch for length, batch in zip(self.iters[:stage], self.batches, strict=False))
        return full + (iteration - 1 - sum(self.iters[:stage])) * self.batches[stage]


def stages_of(loader: Any) -> Stages:
    """The stages that a training dataset's options describe; without the progressive keys there is one."""
    if loader.iters is None:
        return Stages((1,), (loader.gt_size,), (loader.batch_size_per_gpu,))
    return Stages(tuple(loader.iters), tuple(loader.gt_sizes), tuple(loader.mini_batch_sizes))


class TrainingOrder:
    """Maps a sample's number to a pair: an epoch visits every pair `enlarge` times, in an order of its own."""

    def __init__(self, length: int, seed: int, shuffle: bool = True, enlarge: int = 1) -> None:
        self.length, self.seed, self.shuffle, self.enlarge = length, seed, shuffle, enlarge

    def index(self, number: int) -> int:
        size = self.length * self.enlarge
        epoch, place = divmod(number, size)
        return int(_permutation(self.seed, epoch, size)[place] if self.shuffle else place) % self.length


@lru_cache(maxsize=2)  # a batch may reach into the next epoch
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, _ORDER)).permutation(size)


class TrainingBatches(Sampler[list[SampleKey]]):
    """The batches of one process, from `first_iteration` to `last_iteration`, each at its stage's patch and
    batch size; a batch sampler for DataLoader. Together the processes take consecutive samples, each an equal
    share of every global batch."""

    def __init__(
        self,
        order: TrainingOrder,
        stages: Stages,
        first_iteration: int,
        last_iteration: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.order, self.stages = order, stages
        self.first_iteration, self.last_iteration = first_iteration, last_iteration
        self.rank, self.world_size = rank, world_size

    def batch(self, iteration: int, rank: int | None = None) -> list[SampleKey]:
        """The samples of one process in one iteration; of all of them if `rank` is -1."""
        rank = self.rank if rank is None else rank
        stage = self.stages.at(iteration)
        size, patch = self.stages.batches[stage], self.stages.patches[stage]
        first = self.stages.samples_before(iteration) * self.world_size
        numbers = range(first, first + size * self.world_size)
        if rank >= 0:
            numbers = numbers[rank * size : (rank + 1) * size]
        return [SampleKey(self.order.index(number), number, patch, self.order.seed) for number in numbers]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return (self.batch(iteration) for iteration in range(self.first_iteration, self.last_iteration + 1))

    def __len__(self) -> int:
        return self.last_iteration - self.first_iteration + 1
