"""Schedules against independently written ones, step by step."""

import doctest
import inspect
import math

import pydantic
import pytest
import torch

from basicsr.models import schedulers
from basicsr.models.schedulers import (
    SCHEDULER_REGISTRY,
    CosineAnnealingRestartCyclicLR,
    CosineAnnealingRestartLR,
    LinearLR,
    MultiStepLR,
    MultiStepRestartLR,
    learning_rate,
)
from basicsr.options.load import read_options
from basicsr.utils.files import ROOT

EXAMPLES = {
    'CosineAnnealingRestartCyclicLR': {'periods': [5, 8], 'restart_weights': [1, 0.5], 'eta_mins': [0.1, 0]},
    'CosineAnnealingRestartLR': {'periods': [5, 8]},
    'MultiStepLR': {'milestones': [3, 6]},
    'MultiStepRestartLR': {'milestones': [3, 6], 'gamma': 0.5, 'restarts': [0, 4], 'restart_weights': [1, 0.5]},
    'LinearLR': {'total_iter': 10},
}


def walk(periods, weights, etas, base):
    """Learning rates of iterations 0, 1, 2, …, period by period: nothing is searched for."""
    yield base if weights[0] == 1 else etas[0] + weights[0] * (base - etas[0])
    for period, weight, eta in zip(periods, weights, etas, strict=True):
        for done in range(1, period + 1):
            yield eta + weight * (base - eta) * math.cos(math.pi * done / (2 * period)) ** 2


def test_paper_recipe_at_every_step():
    expected = list(walk([92000, 208000], [1, 1], [3e-4, 1e-6], 3e-4))[:300_000]
    options = read_options(ROOT / 'options' / 'Deblurring_Restormer.yml')
    assert options.train.warmup_iter == -1
    scheduler, base = SCHEDULER_REGISTRY.build(options.train.scheduler), options.train.optim_g.lr
    found = [learning_rate(scheduler, n, base) for n in range(1, 300_001)]
    assert max(abs(f / e - 1) for f, e in zip(found, expected, strict=True)) < 1e-9


@pytest.mark.parametrize(
    ('periods', 'weights', 'etas'),
    [
        ([1], [1], [0]),
        ([7], [0.5], [0.25]),
        ([4, 6, 1, 3], [1, 0.5, 2, 0], [0.1, 0.2, 0, 0.3]),
        ([4, 6], None, [0.3, 0.1]),
        ([4, 6], [1, 0.5], 0.1),
        ([4, 6], None, 0.1),
    ],
)
def test_cosines_are_the_walk_through_their_periods(periods, weights, etas):
    """Most periods end on a value that differs from the next one's first: a boundary off by one shows."""
    if isinstance(etas, float):
        scheduler = CosineAnnealingRestartLR(periods, weights, eta_min=etas)
        etas = [etas] * len(periods)
    else:
        scheduler = CosineAnnealingRestartCyclicLR(periods=periods, restart_weights=weights, eta_mins=etas)
    total = sum(periods)
    found = [scheduler.lr(i, 0.8) for i in range(total + 1)]
    expected = list(walk(periods, weights or [1] * len(periods), etas, 0.8))
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert scheduler.covers == total
    assert [scheduler.lr(i, 0.8) for i in (total + 1, 10**9)] == pytest.approx([etas[-1]] * 2)  # stays


def test_multi_step_is_torchs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 8, 9], 0.5)
    ours = MultiStepLR([3, 8, 9], gamma=0.5)
    for i in range(15):
        assert ours.lr(i, 0.8) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        theirs.step()
    assert MultiStepLR([3]).lr(3, 1.0) == pytest.approx(0.1)
    assert MultiStepLR([3]).covers is None


@pytest.mark.parametrize(
    ('milestones', 'restarts', 'weights', 'expected'),
    [
        # A restart forgets the milestones before it, and overrules the one at the restart itself.
        ([2, 4, 6], [0, 4], [1, 0.8], [1, 1, 0.5, 0.5, 0.8, 0.8, 0.4, 0.4]),
        ([1, 6], [4], [0.8], [1, 0.5, 0.5, 0.5, 0.8, 0.8, 0.4, 0.4]),  # the first need not be at 0
    ],
)
def test_restarts_forget_earlier_milestones(milestones, restarts, weights, expected):
    scheduler = MultiStepRestartLR(milestones, 0.5, restarts, weights)
    assert [scheduler.lr(i, 1.0) for i in range(8)] == pytest.approx(expected)


def test_linear_ends_at_zero_and_stays():
    assert [LinearLR(4).lr(i, 2.0) for i in range(6)] == [2, 1.5, 1, 0.5, 0, 0]
    assert LinearLR(4).covers == 4


def test_warm_up_counts_steps_from_one():
    constant = MultiStepLR([10**9])
    found = [learning_rate(constant, n, 0.8, warmup_iter=4) for n in range(1, 7)]
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert learning_rate(constant, 1, 0.8) == learning_rate(constant, 1, 0.8, warmup_iter=0) == 0.8


def test_warm_up_takes_the_place_of_the_schedule_without_delaying_it():
    scheduler = LinearLR(10)
    assert learning_rate(scheduler, 3, 1.0, warmup_iter=4) == 0.75  # not 0.75 · 0.8
    assert learning_rate(scheduler, 4, 1.0, warmup_iter=4) == scheduler.lr(3, 1.0) == pytest.approx(0.7)


def test_step_zero_is_refused():
    with pytest.raises(ValueError, match='step_n: found 0; allowed: 1'):
        learning_rate(LinearLR(10), 0, 3e-4)


CYCLIC = 'CosineAnnealingRestartCyclicLR'


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        (CYCLIC, {'periods': [5]}, r'restart_weights: found \[1, 0.5\]; allowed: 1 numbers'),
        (CYCLIC, {'restart_weights': [1]}, r'restart_weights: found \[1\]; allowed: 2'),
        (CYCLIC, {'restart_weights': []}, r'restart_weights: found \[\]; allowed: 2'),
        (CYCLIC, {'restart_weights': [1, -1]}, 'restart_weights'),
        (CYCLIC, {'eta_mins': [0]}, r'eta_mins: found \[0\]; allowed: 2 numbers'),
        (CYCLIC, {'eta_mins': [0, -1]}, 'eta_mins'),
        (CYCLIC, {'periods': [5, 0]}, r'periods: found \[5, 0\]; allowed: .* above 0'),
        ('CosineAnnealingRestartLR', {'periods': []}, r'periods: found \[\]'),
        ('CosineAnnealingRestartLR', {'restart_weights': [1]}, r'restart_weights: found \[1\]; allowed: 2'),
        ('CosineAnnealingRestartLR', {'eta_min': -1}, 'eta_min: found -1'),
        ('MultiStepLR', {'milestones': [6, 3]}, r'milestones: found \[6, 3\]; allowed: increasing'),
        (
            'MultiStepLR',
            {'milestones': [0, 3]},
            r'milestones: found \[0, 3\]; allowed: increasing numbers from 1',
        ),
        ('MultiStepLR', {'gamma': 0}, 'gamma: found 0'),
        ('MultiStepRestartLR', {'restarts': [4, 0]}, 'restarts: found'),
        ('MultiStepRestartLR', {'restart_weights': [1]}, 'restart_weights: .* one for each of restarts'),
        ('LinearLR', {'total_iter': 0}, 'total_iter: found 0'),
    ],
)
def test_refused(name, change, message):
    SCHEDULER_REGISTRY.get(name)(**EXAMPLES[name])
    with pytest.raises(ValueError, match=f'^{message}'):
        SCHEDULER_REGISTRY.get(name)(**EXAMPLES[name] | change)


@pytest.mark.parametrize('name', SCHEDULER_REGISTRY.names())
def test_option_models_can_be_built_from_the_constructor(name):
    parameters = inspect.signature(SCHEDULER_REGISTRY.get(name), eval_str=True).parameters.values()
    fields = {p.name: (p.annotation, ... if p.default is p.empty else p.default) for p in parameters}
    model = pydantic.create_model('Options', __config__={'extra': 'forbid'}, **fields)
    from_options = SCHEDULER_REGISTRY.get(name)(**model(**EXAMPLES[name]).model_dump(exclude_unset=True))
    direct = SCHEDULER_REGISTRY.get(name)(**EXAMPLES[name])
    assert [from_options.lr(i, 0.8) for i in range(15)] == [direct.lr(i, 0.8) for i in range(15)]
    with pytest.raises(pydantic.ValidationError):
        model(**EXAMPLES[name], momentum=1)
    with pytest.raises(pydantic.ValidationError):
        model()


def test_examples_in_the_docstrings():
    failed, attempted = doctest.testmod(schedulers)
    assert attempted >= 3 and not failed
