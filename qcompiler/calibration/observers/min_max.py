"""Smallest and largest value seen."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.calibration.observers.base import Observer, check_channels, extremes
from qcompiler.calibration.statistics import ObserverSpec


class MinMaxObserver(Observer):
    """``low = min(low, min(batch))`` and ``high = max(high, max(batch))``."""

    def __init__(self, spec: ObserverSpec) -> None:
        super().__init__(spec)
        self._low: torch.Tensor | None = None
        self._high: torch.Tensor | None = None

    def _update(self, rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
        if self._low is None or self._high is None:
            self._low, self._high = low.clone(), high.clone()
            return
        check_channels(self._low, low)
        self._low, self._high = torch.minimum(self._low, low), torch.maximum(self._high, high)

    def _range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return extremes(self._low), extremes(self._high)
