"""The samples of each iteration, against plain loops."""

from collections import Counter
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest

from basicsr.data.sampler import (
    SampleKey,
    Stages,
    TrainingBatches,
    TrainingOrder,
    accumulation,
    mixup_generator,
    stages_of,
)
from basicsr.options.load import read_options
from basicsr.utils.files import ROOT

# Patch, batch per GPU, iterations in the paper: motion deblurring on 8 GPUs
PAPER = [(128, 8, 92000), (160, 5, 64000), (192, 4, 48000), (256, 2, 36000), (320, 1, 36000), (384, 1, 24000)]
SHORT = Stages(iters=(3, 2, 4), patches=(8, 16, 24), batches=(8, 4, 4))


def test_stages_and_samples_of_the_papers_schedule():
    options = read_options(ROOT / 'options' / 'Deblurring_Restormer.yml')
    stages = stages_of(options.datasets['train'])
    assert (stages.patches, stages.batches) == tuple(zip(*PAPER, strict=True))[:2]
    expected, samples = [], 0
    for stage, (_, batch, length) in enumerate(PAPER):
        for _ in range(length):
            expected.append((stage, samples))
            samples += batch
    assert len(expected) == 300_000
    assert samples * 8 == 11_040_000
    expected.append((5, samples))  # the last stage has no end
    # These include the iterations around each change of stage.
    for iteration in (i + near for i in range(1000, 300_001, 1000) for near in (-999, -1, 0, 1)):
        assert (stages.at(iteration), stages.samples_before(iteration)) == expected[iteration - 1]


def test_one_stage_without_progressive_keys():
    loader = SimpleNamespace(iters=None, gt_sizes=None, mini_batch_sizes=None, gt_size=48, batch_size_per_gpu=3)
    stages = stages_of(loader)
    for iteration in (1, 2, 3, 100_000):
        stage = stages.at(iteration)
        assert (stages.patches[stage], stages.batches[stage]) == (48, 3)
        assert stages.samples_before(iteration) == 3 * (iteration - 1)


# The order of an epoch


@pytest.mark.parametrize('enlarge', [1, 3])
@pytest.mark.parametrize('shuffle', [True, False])
def test_an_epoch_visits_every_pair_equally_often(shuffle, enlarge):
    order = TrainingOrder(11, seed=5, shuffle=shuffle, enlarge=enlarge)
    epochs = [
        [order.index(epoch * 11 * enlarge + place) for place in range(11 * enlarge)] for epoch in range(50)
    ]
    for epoch in epochs:
        assert Counter(epoch) == dict.fromkeys(range(11), enlarge)
    if shuffle:
        assert len({tuple(epoch) for epoch in epochs}) == 50
        # The repeats are shuffled together, not one after the other.
        assert any(len(set(epoch[:11])) < 11 for epoch in epochs) is (enlarge > 1)
    else:
        assert all(epoch == [*range(11)] * enlarge for epoch in epochs)


def test_the_seed_decides_the_order_and_all_orders_are_equally_likely():
    def first_epoch(seed):
        order = TrainingOrder(4, seed)
        return tuple(order.index(number) for number in range(4))

    counts = Counter(first_epoch(seed) for seed in range(2400))
    assert len(counts) == 24
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 58  # chi-square, 23 degrees: p = 1e-4
    assert first_epoch(7) == first_epoch(7)


# Batches


def numbers_of(batches):
    return [key.number for batch in batches for key in batch]


def test_batches_have_the_size_and_patch_of_their_stage():
    order = TrainingOrder(7, seed=3)
    batches = list(TrainingBatches(order, SHORT, 1, 11))
    shapes = [(8, 8)] * 3 + [(4, 16)] * 2 + [(4, 24)] * 6
    assert [(len(batch), {key.patch for key in batch}) for batch in batches] == [(b, {p}) for b, p in shapes]
    assert numbers_of(batches) == list(range(3 * 8 + 2 * 4 + 6 * 4))
    for key in (key for batch in batches for key in batch):
        assert (key.index, key.seed) == (order.index(key.number), 3)


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_ranks_share_the_global_batch(processes):
    shares = Stages(SHORT.iters, SHORT.patches, tuple(batch // processes for batch in SHORT.batches))
    alone = list(TrainingBatches(TrainingOrder(7, seed=3), SHORT, 1, 11))
    ranks = [
        TrainingBatches(TrainingOrder(7, seed=3), shares, 1, 11, rank, processes) for rank in range(processes)
    ]
    together = [
        list(chain.from_iterable(shares)) for shares in zip(*ranks, strict=True)
    ]  # in the order of the ranks
    assert together == alone
    assert [ranks[-1].batch(iteration) for iteration in range(1, 12)] == alone


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_micro_batches_do_not_depend_on_the_number_of_ranks(processes):
    """Four per step: accumulated by one rank or shared by several."""
    every = TrainingBatches(TrainingOrder(7, seed=3), SHORT, 1, 11, accumulate=4)
    expected = [[every.micro_batch(iteration, number) for number in range(4)] for iteration in range(1, 12)]
    assert numbers_of(chain.from_iterable(expected)) == list(range(4 * (3 * 8 + 2 * 4 + 6 * 4)))
    each = 4 // processes
    for rank in range(processes):
        order = TrainingOrder(7, seed=3)
        batches = TrainingBatches(order, SHORT, 1, 11, rank, processes, accumulate=each)
        assert len(batches) == 11 * each
        mine = [step[rank * each : (rank + 1) * each] for step in expected]
        assert list(batches) == list(chain.from_iterable(mine))
        assert batches.batch(5) == list(chain.from_iterable(expected[4]))


def test_samples_continue_when_the_number_of_ranks_changes():
    """Two ranks until iteration 4, then one, which takes the next samples."""
    before = TrainingBatches(TrainingOrder(7, seed=3), SHORT, 1, 4, rank=0, world_size=2)
    seen = before.samples_before(5)
    assert seen == 2 * (3 * 8 + 4)
    after = TrainingBatches(TrainingOrder(7, seed=3), SHORT, 5, 11, first_sample=seen)
    assert numbers_of(after) == list(range(seen, seen + 4 + 6 * 4))
    assert after.samples_before(12) == seen + 4 + 6 * 4
    same = TrainingBatches(TrainingOrder(7, seed=3), SHORT, 5, 11, rank=1, world_size=2, first_sample=seen)
    assert list(same) == list(TrainingBatches(TrainingOrder(7, seed=3), SHORT, 5, 11, rank=1, world_size=2))


@pytest.mark.parametrize(('processes', 'each'), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_the_papers_batches_on_fewer_gpus(processes, each):
    options = read_options(ROOT / 'options' / 'Deblurring_Restormer.yml')
    assert accumulation(options.train.accumulate, options.num_gpu, processes) == each
    batches = TrainingBatches(
        TrainingOrder(16_824, 100), stages_of(options.datasets['train']), 1, 300_000, 0, processes, each
    )
    ends = np.cumsum([length for *_, length in PAPER])
    for (patch, batch, length), end in zip(PAPER, ends, strict=True):
        for iteration in (end - length + 1, end):
            keys = batches.batch(int(iteration))
            assert len(keys) == 8 * batch and {key.patch for key in keys} == {patch}
    assert batches.samples_before(300_001) == 11_040_000


@pytest.mark.parametrize(
    ('processes', 'nearest'), [(3, '2 or 4'), (5, '4'), (6, '4 or 8'), (7, '8'), (9, '8'), (16, '8')]
)
def test_ranks_that_cannot_share_the_batch_are_refused(processes, nearest):
    with pytest.raises(ValueError, match='found 8, on') as caught:
        accumulation('auto', 8, processes)
    assert f'allowed: 1, 2, 4, 8 processes (the nearest: {nearest})' in str(caught.value)
    assert accumulation(3, 8, processes) == 3


@pytest.mark.parametrize('rank', [0, 1])
def test_a_later_start_gives_the_tail_of_the_run(rank):
    def batches(first):
        return TrainingBatches(TrainingOrder(7, seed=3), SHORT, first, 11, rank, 2)

    whole = list(batches(1))
    for first in range(1, 13):
        assert list(batches(first)) == whole[first - 1 :]
        assert len(batches(first)) == 12 - first


# Randomness


def test_random_streams_are_reproducible_and_distinct():
    def draws(generator):
        return tuple(generator.integers(1 << 62, size=2).tolist())

    def sample(seed, number):
        return draws(SampleKey(index=0, number=number, patch=8, seed=seed).generator())

    streams = [
        *(sample(seed, number) for seed in range(30) for number in range(30)),
        *(draws(mixup_generator(seed, iteration)) for seed in range(30) for iteration in range(30)),
        *(draws(mixup_generator(4, 9, micro_batch)) for micro_batch in range(1, 30)),
    ]
    assert len(set(streams)) == len(streams)
    assert sample(4, 9) == streams[4 * 30 + 9]
    assert draws(mixup_generator(4, 9)) == streams[900 + 4 * 30 + 9]
    other = SampleKey(index=5, number=9, patch=64, seed=4).generator()  # pair and patch do not matter
    assert draws(other) == sample(4, 9)
