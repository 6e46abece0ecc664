"""Exponential moving average of the extremes of each batch: ``m * old + (1 - m) * new``, starting at the first batch's own.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.calibration.observers.base import Observer, check_channels, extremes, mean_of
from qcompiler.calibration.statistics import Observation, ObserverSpec


class MovingAverageObserver(Observer):
    """See the module's docstring."""

    def __init__(self, spec: ObserverSpec) -> None:
        super().__init__(spec)
        self._low: torch.Tensor | None = None
        self._high: torch.Tensor | None = None

    def _update(self, rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
        low, high = low.double(), high.double()
        if self._low is None or self._high is None:
            self._low, self._high = low, high
            return
        check_channels(self._low, low)
        self._low, self._high = self._average(self._low, low), self._average(self._high, high)

    def _average(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return self.spec.momentum * old + (1.0 - self.spec.momentum) * new

    @classmethod
    def balanced(cls, members: Sequence[Observer]) -> Observation:
        return mean_of([member.result() for member in members])

    def _range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return extremes(self._low), extremes(self._high)
