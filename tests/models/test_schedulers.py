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
from basicsr.options.load import load_options
from basicsr.utils.files import ROOT

PAPER = CosineAnnealingRestartCyclicLR(periods=[92000, 208000], restart_weights=[1, 1], eta_mins=[3e-4, 1e-6])
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
    options, _, mistakes = load_options(ROOT / 'options' / 'Deblurring_Restormer.yml')
    assert not mistakes and options.train.warmup_iter == -1
    scheduler, base = SCHEDULER_REGISTRY.build(options.train.scheduler), options.train.optim_g.lr
    found = [learning_rate(scheduler, n, base) for n in range(1, 300_001)]
    assert max(abs(f / e - 1) for f, e in zip(found, expected, strict=True)) < 1e-9


def test_paper_recipe_at_known_steps():
    def after(iterations):  # into the second period
        return 1e-6 + 299e-6 * (1 + math.cos(math.pi * iterations / 208000)) / 2

    assert learning_rate(PAPER, 1, 3e-4) == 3e-4
    assert learning_rate(PAPER, 92000, 3e-4) == 3e-4
    assert learning_rate(PAPER, 92001, 3e-4) == 3e-4  # iteration 92000 still ends the first period
    assert learning_rate(PAPER, 92002, 3e-4) == pytest.approx(after(1), rel=1e-13)
    assert learning_rate(PAPER, 196001, 3e-4) == pytest.approx((3e-4 + 1e-6) / 2, rel=1e-13)
    assert learning_rate(PAPER, 300000, 3e-4) == pytest.approx(after(207999), rel=1e-13)
    assert PAPER.covers == 300_000


@pytest.mark.parametrize(
    ('periods', 'weights', 'etas'),
    [([1], [1], [0]), ([7], [0.5], [0.25]), ([4, 6, 1, 3], [1, 0.5, 2, 0], [0.1, 0.2, 0, 0.3])],
)
def test_cyclic_cosine_is_the_walk_through_its_periods(periods, weights, etas):
    """Here every period ends on a value that differs from the next one's first: a boundary off by one shows."""
    scheduler = CosineAnnealingRestartCyclicLR(periods=periods, restart_weights=weights, eta_mins=etas)
    found = [scheduler.lr(i, 0.8) for i in range(sum(periods) + 1)]
    assert found == pytest.approx(list(walk(periods, weights, etas, 0.8)), rel=1e-12, abs=1e-15)
    assert scheduler.covers == sum(periods)


def test_cosine_restart_has_one_minimum():
    scheduler = CosineAnnealingRestartLR([4, 6], [1, 0.5], eta_min=0.1)
    expected = list(walk([4, 6], [1, 0.5], [0.1, 0.1], 0.8))
    assert [scheduler.lr(i, 0.8) for i in range(11)] == pytest.approx(expected, rel=1e-12)
    assert scheduler.covers == 10


def test_weights_are_ones_unless_given():
    for i in range(11):
        assert CosineAnnealingRestartLR([4, 6]).lr(i, 0.8) == CosineAnnealingRestartLR([4, 6], [1, 1]).lr(
            i, 0.8
        )
        assert CosineAnnealingRestartCyclicLR(periods=[4, 6], eta_mins=[0, 0.1]).lr(i, 0.8) == (
            CosineAnnealingRestartCyclicLR(periods=[4, 6], restart_weights=[1, 1], eta_mins=[0, 0.1]).lr(i, 0.8)
        )


def test_the_last_minimum_stays():
    scheduler = CosineAnnealingRestartCyclicLR(periods=[4, 6], eta_mins=[0.3, 0.1])
    assert [scheduler.lr(i, 0.8) for i in (10, 11, 16, 10**9)] == pytest.approx([0.1] * 4)


def torch_rates(make, count, base):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = make(optimizer)
    for _ in range(count):
        yield scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()


def test_one_cosine_is_torchs():
    found = [CosineAnnealingRestartLR([50], eta_min=0.01).lr(i, 0.8) for i in range(51)]
    make = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50, 0.01)  # noqa: E731
    assert found == pytest.approx(list(torch_rates(make, 51, 0.8)), rel=1e-9)


def test_multi_step_is_torchs():
    found = [MultiStepLR([3, 8, 9], gamma=0.5).lr(i, 0.8) for i in range(15)]
    make = lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 8, 9], 0.5)  # noqa: E731
    assert found == pytest.approx(list(torch_rates(make, 15, 0.8)), rel=1e-12)
    assert len(set(found)) == 4
    assert MultiStepLR([3]).lr(3, 1.0) == pytest.approx(0.1)
    assert MultiStepLR([3]).covers is None


def test_a_restart_forgets_the_milestones_before_it():
    scheduler = MultiStepRestartLR([2, 4, 6], 0.5, restarts=[0, 4], restart_weights=[1, 0.8])
    expected = [1, 1, 0.5, 0.5, 0.8, 0.8, 0.4, 0.4]  # the milestone at the restart itself is overruled by it
    assert [scheduler.lr(i, 1.0) for i in range(8)] == pytest.approx(expected)


def test_restarts_need_not_begin_at_zero():
    scheduler = MultiStepRestartLR([1, 6], 0.5, restarts=[4], restart_weights=[0.8])
    assert [scheduler.lr(i, 1.0) for i in range(8)] == pytest.approx([1, 0.5, 0.5, 0.5, 0.8, 0.8, 0.4, 0.4])


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
        learning_rate(PAPER, 0, 3e-4)


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        (
            'CosineAnnealingRestartCyclicLR',
            {'periods': [5]},
            r'restart_weights: found \[1, 0.5\]; allowed: 1 numbers',
        ),
        (
            'CosineAnnealingRestartCyclicLR',
            {'restart_weights': [1]},
            r'restart_weights: found \[1\]; allowed: 2',
        ),
        ('CosineAnnealingRestartCyclicLR', {'restart_weights': []}, r'restart_weights: found \[\]; allowed: 2'),
        ('CosineAnnealingRestartCyclicLR', {'restart_weights': [1, -1]}, 'restart_weights'),
        ('CosineAnnealingRestartCyclicLR', {'eta_mins': [0]}, r'eta_mins: found \[0\]; allowed: 2 numbers'),
        ('CosineAnnealingRestartCyclicLR', {'eta_mins': [0, -1]}, 'eta_mins'),
        (
            'CosineAnnealingRestartCyclicLR',
            {'periods': [5, 0]},
            r'periods: found \[5, 0\]; allowed: .* above 0',
        ),
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
