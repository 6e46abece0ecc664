"""What a pass may ask about the values of a program, and what it is told: plain data, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from qcompiler.errors import CalibrationError, UnknownNameError

ObserverKind = Literal["min-max", "moving-average", "percentile", "mse", "entropy", "moments"]
OBSERVER_KINDS: tuple[ObserverKind, ...] = get_args(ObserverKind)

Grouping = Literal["pooled", "per-group", "balanced"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)


@dataclass(frozen=True)
class ObserverSpec:
    """How the range of a value is estimated; ``axis`` None: one range for the tensor, else one for each index of that axis.

    kind:
        ``min-max``         smallest and largest value seen.
        ``moving-average``  exponential average over the batches of their minimum and maximum, ``momentum`` for the old value.
        ``percentile``      the ``percentile`` of the values lies inside: [100 - p, p], or [-q, q] with q that of |x| if ``symmetric``.
        ``mse``             the range whose quantization to ``bits`` has the least mean squared error.
        ``entropy``         the range whose quantization to ``bits`` has the least Kullback-Leibler divergence (TensorRT's rule).
        ``moments``         as ``min-max``, with the mean and the standard deviation of all values.
    symmetric: the range will be quantized without zero point; the answer is then [-t, t]. Otherwise the ranges of ``mse`` and
        ``entropy`` contain zero, and the others are what was seen.
    through_zero: whether the range of ``mse`` contains zero; without it both ends are free, as where a shift of the values is to be chosen.
    bins: resolution of the histogram behind the last three: a bin is at most 2 / bins of the spread of the values.
    groups: what becomes of calibration items with group labels (time steps of a diffusion model, image and text).
        ``pooled``          labels are not looked at: a group counts as much as it has values.
        ``balanced``        every group counts the same, however many values it has. ``min-max`` knows no counts and stays as it is.
        ``per-group``       each group has an observer of its own; ``low`` and ``high`` are the means over the groups of theirs, which
            stand in ``Observation.groups``.
    """

    kind: ObserverKind = "min-max"
    axis: int | None = None
    bits: int = 8
    symmetric: bool = False
    percentile: float = 99.99
    momentum: float = 0.9
    bins: int = 4096
    through_zero: bool = True
    groups: Grouping = "pooled"

    def __post_init__(self) -> None:
        if self.kind not in OBSERVER_KINDS:
            raise UnknownNameError("observer", self.kind, OBSERVER_KINDS)
        if self.groups not in GROUPINGS:
            raise UnknownNameError("aggregation of groups", self.groups, GROUPINGS)
        least = 2 if self.symmetric else 1
        if not least <= self.bits <= 16:
            raise CalibrationError(f"observer '{self.kind}': bits must be {least}..16, got {self.bits}")
        if not 50.0 < self.percentile <= 100.0:
            raise CalibrationError(f"observer '{self.kind}': percentile must be above 50 and at most 100, got {self.percentile}")
        if not 0.0 <= self.momentum < 1.0:
            raise CalibrationError(f"observer '{self.kind}': momentum must be in [0, 1), got {self.momentum}")
        if self.bins < 64:
            raise CalibrationError(f"observer '{self.kind}': a histogram needs at least 64 bins, got {self.bins}")


@dataclass(frozen=True)
class StatisticRequest:
    """One question: the range of the value that the node named ``node`` computes.

    The answer goes by ``label``, which is the node's name unless a pass asks several questions about one node.
    """

    node: str
    observer: ObserverSpec
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.node)


@dataclass(frozen=True)
class Observation:
    """The answer: ``low`` and ``high`` hold one number for the tensor (``axis`` None), or one for each index of ``axis``.

    ``mean`` and ``deviation`` (standard, of the population) are empty unless the observer was ``moments``, which tells in ``count`` too how
    many values there were of the tensor or of each channel; 0: not counted. ``groups`` holds the answer for
    each group of calibration items by its label, in the order of the labels, if the observer was asked ``per-group``.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    axis: int | None = None
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    groups: tuple[tuple[str, Observation], ...] = ()
    count: int = 0

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or not self.low:
            raise CalibrationError(f"an observation has as many lows as highs, got {len(self.low)} and {len(self.high)}")
        for low, high in zip(self.low, self.high, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise CalibrationError(f"not a range: [{low}, {high}]")

    @property
    def largest_magnitude(self) -> tuple[float, ...]:
        """max(|low|, |high|), per tensor or per channel."""
        return tuple(max(abs(low), abs(high)) for low, high in zip(self.low, self.high, strict=True))
