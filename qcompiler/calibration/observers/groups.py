"""One observer for each group of calibration items, and one answer for all of them.

A group that has few samples, or small values, has little say where all values are pooled: an image has hundreds of tokens where its
question has ten, and the last time steps of a diffusion model have other ranges than the first. Balanced statistics give every group the
same weight (as Q-Diffusion, arXiv 2302.04304, draws calibration samples evenly over time steps, and MBQ, arXiv 2412.19509, balances
modalities); those per group are aggregated after each was taken for itself (as DiTAS, arXiv 2409.07756, aggregates over time steps).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.calibration.observers.base import Observer, mean_of
from qcompiler.calibration.statistics import Observation, ObserverSpec
from qcompiler.errors import CalibrationError


class GroupedObserver(Observer):
    """Observers of the class ``chosen``, one a group. Memory grows with the number of groups, not with that of the samples."""

    def __init__(self, spec: ObserverSpec, chosen: type[Observer]) -> None:
        super().__init__(spec)
        self._chosen, self._own = chosen, replace(spec, groups="pooled")
        self._members: dict[str, Observer] = {}

    def update(self, values: torch.Tensor, group: str = "") -> None:
        self._members.setdefault(group, self._chosen(self._own)).update(values)

    def result(self) -> Observation:
        if not self._members:
            raise CalibrationError("no value was observed: the calibration data were empty or do not reach the node")
        if self.spec.groups == "balanced":
            return self._chosen.balanced(list(self._members.values()))
        answers = {group: self._members[group].result() for group in sorted(self._members)}
        return replace(mean_of(list(answers.values())), groups=tuple(answers.items()))

    def with_bits(self, bits: int) -> GroupedObserver:
        other = GroupedObserver(replace(self.spec, bits=bits), self._chosen)
        other._members = {group: member.with_bits(bits) for group, member in self._members.items()}
        return other

    def _update(self, rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
        raise NotImplementedError  # update hands everything to the members

    def _range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        raise NotImplementedError  # so does result
