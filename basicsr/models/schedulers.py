"""Learning rates as pure functions of the iteration: nothing to save, nothing to step, no torch.

A schedule counts its iteration i from 0, and training its step n from 1: `learning_rate` uses i = n − 1, and adds the
warm-up. The keys of `train.scheduler` are the parameters of the class or function that `type` names: a new schedule is
a class here, or in a module of `custom_imports`.

>>> paper = CosineAnnealingRestartCyclicLR(periods=[92000, 208000], eta_mins=[3e-4, 1e-6])
>>> paper.covers
300000
>>> [round(learning_rate(paper, n, 3e-4), 7) for n in (1, 92001, 196001, 300000)]
[0.0003, 0.0003, 0.0001505, 1e-06]
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Protocol

from basicsr.utils.registry import SCHEDULER_REGISTRY


class Scheduler(Protocol):
    @property
    def covers(self) -> int | None:
        """Iterations that the schedule is meant for; None: any number."""

    def lr(self, iteration: int, base_lr: float) -> float:
        """Learning rate at an iteration, counted from 0."""


def _require(condition: bool, key: str, found: Any, allowed: str) -> None:
    if not condition:
        raise ValueError(f'{key}: found {found}; allowed: {allowed}')


def _require_increasing(key: str, values: list[int], minimum: int) -> None:
    increasing = all(a < b for a, b in pairwise(values))
    _require(
        increasing and all(v >= minimum for v in values), key, values, f'increasing numbers from {minimum}'
    )


def _require_one_each(key: str, values: list[float], count: int, what: str) -> None:
    allowed = f'{count} numbers, one for each of {what}, none below 0'
    _require(len(values) == count and all(v >= 0 for v in values), key, values, allowed)


@SCHEDULER_REGISTRY.register()
@dataclass(frozen=True, kw_only=True)
class CosineAnnealingRestartCyclicLR:
    """Half a cosine per period, each with its own minimum (SGDR, Loshchilov & Hutter, ICLR 2017).

    η + ½·weight·(base − η)·(1 + cos(π·(i − s) / P)) in the period of length P that starts at s. Iteration i belongs to
    the first period whose end is ≥ i, so the minimum is reached, at i = s + P. The last minimum stays after its period.

    Args:
        periods: iterations of each period.
        restart_weights: amplitude of each cosine; None: 1 for all.
        eta_mins: minimum η of each period.
    """

    periods: list[int]
    restart_weights: list[float] | None = None
    eta_mins: list[float]

    def __post_init__(self) -> None:
        _require(
            bool(self.periods) and all(p > 0 for p in self.periods), 'periods', self.periods, 'numbers above 0'
        )
        if self.restart_weights is not None:
            _require_one_each('restart_weights', self.restart_weights, len(self.periods), 'periods')
        _require_one_each('eta_mins', self.eta_mins, len(self.periods), 'periods')

    @property
    def covers(self) -> int:
        return sum(self.periods)

    def lr(self, iteration: int, base_lr: float) -> float:
        iteration = min(iteration, self.covers)
        ends = list(accumulate(self.periods))
        index = bisect_left(ends, iteration)
        period, eta = self.periods[index], self.eta_mins[index]
        weight = 1.0 if self.restart_weights is None else self.restart_weights[index]
        done = (iteration - (ends[index] - period)) / period
        return eta + weight * 0.5 * (base_lr - eta) * (1 + math.cos(math.pi * done))


@SCHEDULER_REGISTRY.register()
def CosineAnnealingRestartLR(  # noqa: N802 - a published name
    periods: list[int], restart_weights: list[float] | None = None, eta_min: float = 0.0
) -> CosineAnnealingRestartCyclicLR:
    """`CosineAnnealingRestartCyclicLR` with one minimum, `eta_min`, for all periods."""
    _require(eta_min >= 0, 'eta_min', eta_min, '0 or above')
    return CosineAnnealingRestartCyclicLR(
        periods=periods, restart_weights=restart_weights, eta_mins=[eta_min] * len(periods)
    )


@SCHEDULER_REGISTRY.register()
@dataclass(frozen=True)
class MultiStepRestartLR:
    """base · weight · gamma^(number of milestones after the last restart, up to and including i).

    Args:
        milestones: iterations at which the learning rate is multiplied by gamma.
        gamma: factor at every milestone.
        restarts: iterations at which the learning rate restarts, at base · weight.
        restart_weights: a weight for each restart.
    """

    milestones: list[int]
    gamma: float = 0.1
    restarts: list[int] = (0,)  # type: ignore[assignment]
    restart_weights: list[float] = (1.0,)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        _require_increasing('milestones', self.milestones, minimum=1)
        _require(self.gamma > 0, 'gamma', self.gamma, 'above 0')
        _require_increasing('restarts', self.restarts, minimum=0)
        _require_one_each('restart_weights', self.restart_weights, len(self.restarts), 'restarts')

    @property
    def covers(self) -> None:
        return None

    def lr(self, iteration: int, base_lr: float) -> float:
        started = bisect_right(self.restarts, iteration)
        start, weight = (self.restarts[started - 1], self.restart_weights[started - 1]) if started else (0, 1.0)
        drops = bisect_right(self.milestones, iteration) - bisect_right(self.milestones, start)
        return base_lr * weight * self.gamma**drops


MultiStepLR = SCHEDULER_REGISTRY.register('MultiStepLR')(MultiStepRestartLR)


@SCHEDULER_REGISTRY.register()
@dataclass(frozen=True)
class LinearLR:
    """base · (1 − i / total_iter), then 0."""

    total_iter: int

    def __post_init__(self) -> None:
        _require(self.total_iter > 0, 'total_iter', self.total_iter, 'above 0')

    @property
    def covers(self) -> int:
        return self.total_iter

    def lr(self, iteration: int, base_lr: float) -> float:
        return base_lr * max(0.0, 1 - iteration / self.total_iter)


def learning_rate(scheduler: Scheduler, step_n: int, base_lr: float, warmup_iter: int = -1) -> float:
    """Learning rate of training step n, from 1: base·n / warmup_iter while n < warmup_iter, then the schedule's value
    at iteration n − 1. Raises ValueError for n below 1."""
    if step_n < 1:
        raise ValueError(f'step_n: found {step_n}; allowed: 1 or above')
    if step_n < warmup_iter:
        return base_lr * step_n / warmup_iter
    return scheduler.lr(step_n - 1, base_lr)
