"""A metric with its settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

Function = TypeVar('Function', bound=Callable[..., Any])


def lower_is_better(function: Function) -> Function:
    """Marks a metric of which lower values are better; `val.metrics.<name>.better` overrules it."""
    function.better = 'lower'  # type: ignore[attr-defined]
    return function


@dataclass(frozen=True)
class Metric:
    """A function of (restored, ground truth), its settings, and which way is better."""

    function: Callable[..., Any]
    settings: Mapping[str, object] = field(default_factory=dict)
    higher_is_better: bool = True

    def __call__(self, restored: np.ndarray, gt: np.ndarray, data_range: float) -> float:
        """Two (H, W, C) arrays of one dtype → a float, or the bool of a metric that tells whether something holds."""
        value = self.function(restored, gt, **{'data_range': data_range, **self.settings})
        return value if isinstance(value, bool) else float(value)  # float() takes NumPy's and PyTorch's numbers

    def is_better(self, value: float, than: float | None) -> bool:
        """NaN is never better, and any number is better than NaN or None."""
        if than is None or math.isnan(than):
            return not math.isnan(value)
        return value > than if self.higher_is_better else value < than
