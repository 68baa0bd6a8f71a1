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
from typing import Any, Literal, NamedTuple

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


def mixup_generator(seed: int, iteration: int, micro_batch: int = 0) -> np.random.Generator:
    return np.random.default_rng((seed, iteration, _MIXUP, micro_batch))


@dataclass(frozen=True)
class Stages:
    """Progressive training: stage s lasts `iters[s]` iterations on patches of `patches[s]` pixels, with
    `batches[s]` samples in a micro-batch. After the last one, the last one goes on."""

    iters: tuple[int, ...]
    patches: tuple[int, ...]
    batches: tuple[int, ...]

    def at(self, iteration: int) -> int:
        """Index of the stage of an iteration: 1 … iters[0] are of stage 0."""
        return min(bisect_left(list(accumulate(self.iters)), iteration), len(self.iters) - 1)

    def samples_before(self, iteration: int) -> int:
        """Samples of one micro-batch of every iteration before this one."""
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
    """The micro-batches of one process, from `first_iteration` to `last_iteration`, each at its stage's patch and
    batch size; a batch sampler for DataLoader.

    An iteration has `world_size · accumulate` micro-batches of consecutive samples; a process takes `accumulate`
    of them, one after the other, the first process the first ones. So the samples of an iteration, and which of
    them are in a micro-batch together, depend on that product alone.

    Args:
        first_sample: the number of the first sample of `first_iteration`; None: as if all iterations before had
            been done by as many processes, too.
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
        """All samples of an iteration, of all processes."""
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
    """Micro-batches that each process adds up in a step. 'auto': as many as keep the global batch that `num_gpu`
    devices would have. Raises ValueError if that cannot be shared out evenly."""
    if accumulate != 'auto':
        return accumulate
    written_for = max(num_gpu, 1)
    if written_for % world_size == 0:
        return written_for // world_size
    works = [count for count in range(1, written_for + 1) if written_for % count == 0]
    distance = min(abs(count - world_size) for count in works)
    nearest = [str(count) for count in works if abs(count - world_size) == distance]
    raise ValueError(
        f'found {num_gpu}, on {world_size} processes, with train.accumulate auto; allowed: '
        f'{", ".join(map(str, works))} processes (the nearest: {" or ".join(nearest)}), which can '
        'share such a batch evenly, or a number for train.accumulate'
    )
