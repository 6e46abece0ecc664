"""What all observers share: values seen as rows (one for the tensor, or one a channel), and the guards on them."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.calibration.statistics import Observation, ObserverSpec
from qcompiler.errors import CalibrationError


class Observer(ABC):
    """Sees a value batch by batch and estimates its range. Its memory depends on the number of channels alone."""

    def __init__(self, spec: ObserverSpec) -> None:
        self.spec = spec

    def update(self, values: torch.Tensor, group: str = "") -> None:
        """Take one batch into account; ``group`` is the label of its calibration item.

        Raises:
            CalibrationError: the batch holds an infinity or NaN, or another number of channels than those before.
        """
        rows = channel_rows(values, self.spec.axis)
        if rows.numel() == 0:
            return
        low, high = torch.aminmax(rows, dim=1)
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise CalibrationError(f"the value holds infinities or NaN in a tensor of shape {list(values.shape)}")
        self._update(rows, low, high)

    def result(self) -> Observation:
        """The range of everything seen so far.

        Raises:
            CalibrationError: nothing was seen.
        """
        low, high = self._range()
        if self.spec.symmetric:
            high = np.maximum(np.abs(low), np.abs(high))
            low = -high
        return Observation(tuple(low.tolist()), tuple(high.tolist()), self.spec.axis)

    def with_bits(self, bits: int) -> Observer:
        """An observer that saw the same values and answers for another number of bits. It shares what was counted: it must see no more."""
        other = copy.copy(self)
        other.spec = replace(self.spec, bits=bits)
        return other

    @classmethod
    def balanced(cls, members: Sequence[Observer]) -> Observation:
        """One answer for several observers of this class, each counting the same; here the union of their ranges."""
        answers = [member.result() for member in members]
        low = tuple(min(values) for values in zip(*(answer.low for answer in answers), strict=True))
        high = tuple(max(values) for values in zip(*(answer.high for answer in answers), strict=True))
        return Observation(low, high, members[0].spec.axis)

    @abstractmethod
    def _update(self, rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
        """``rows``: float32 [channels, values]; ``low`` and ``high``: the extremes of each row."""

    @abstractmethod
    def _range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Low and high of each row."""


def channel_rows(values: torch.Tensor, axis: int | None) -> torch.Tensor:
    """The values as float32 [1, all] (``axis`` None), or [channels, rest] with ``axis`` in front."""
    values = values.detach().to(torch.float32)
    if axis is None:
        return values.reshape(1, -1)
    if not -values.dim() <= axis < values.dim():
        raise CalibrationError(f"no axis {axis} in a value of shape {list(values.shape)}: observe it per tensor")
    return values.movedim(axis, 0).reshape(values.shape[axis], -1)


def extremes(seen: torch.Tensor | None) -> NDArray[np.float64]:
    """What was accumulated, as float64."""
    if seen is None:
        raise CalibrationError("no value was observed: the calibration data were empty or do not reach the node")
    return seen.double().numpy()


def check_channels(before: torch.Tensor, now: torch.Tensor) -> None:
    """Guard: a batch has as many channels as those before."""
    if before.shape != now.shape:
        raise CalibrationError(f"the value has {now.numel()} channels now and had {before.numel()} in earlier batches")


def mean_of(answers: Sequence[Observation]) -> Observation:
    """The mean of the lows and of the highs of several answers."""
    low, high = (np.mean([getattr(answer, end) for answer in answers], axis=0) for end in ("low", "high"))
    return Observation(tuple(low.tolist()), tuple(high.tolist()), answers[0].axis)
