"""A metric with its settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Metric:
    """A function of (restored, ground truth), and which way is better."""

    function: Callable[..., Any]
    settings: dict[str, Any] = field(default_factory=dict)
    higher_is_better: bool = True

    def __call__(self, restored: np.ndarray, gt: np.ndarray, data_range: float) -> float:
        # A number of any kind, as NumPy and PyTorch have their own.
        return float(self.function(restored, gt, **{'data_range': data_range, **self.settings}))

    def is_better(self, value: float, than: float | None) -> bool:
        if than is None or math.isnan(than):
            return not math.isnan(value)
        return value > than if self.higher_is_better else value < than
