"""Smallest and largest value seen, and the mean and standard deviation of all values: exact sums in float64, batch after batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.calibration.observers.base import Observer, extremes
from qcompiler.calibration.observers.min_max import MinMaxObserver
from qcompiler.calibration.statistics import Observation, ObserverSpec


class MomentsObserver(MinMaxObserver):
    """``mean = sum(x) / n`` and ``deviation = sqrt(sum(x^2) / n - mean^2)``, beside the range of ``min-max``."""

    def __init__(self, spec: ObserverSpec) -> None:
        super().__init__(spec)
        self._count = 0
        self._sums: torch.Tensor | None = None

    def result(self) -> Observation:
        mean, mean_square = self._moments()
        deviation = np.sqrt(np.maximum(mean_square - np.square(mean), 0.0))
        return replace(super().result(), mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()), count=self._count)

    @classmethod
    def balanced(cls, members: Sequence[Observer]) -> Observation:
        """The moments of a mixture in which every group has the same share."""
        answers = [member.result() for member in members]
        means, deviations = np.array([answer.mean for answer in answers]), np.array([answer.deviation for answer in answers])
        mean = means.mean(0)
        deviation = np.sqrt((np.square(deviations) + np.square(means - mean)).mean(0))
        count = sum(answer.count for answer in answers)
        return replace(super().balanced(members), mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()), count=count)

    def _update(self, rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
        super()._update(rows, low, high)
        values = rows.double()
        sums = torch.stack([values.sum(1), values.square().sum(1)])
        self._sums = sums if self._sums is None else self._sums + sums
        self._count += rows.shape[1]

    def _moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mean, mean_square = extremes(self._sums) / max(self._count, 1)
        return mean, mean_square
