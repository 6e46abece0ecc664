"""Observers: each estimates the range of one value, batch after batch, in memory that depends on the channels alone."""

from __future__ import annotations

from qcompiler.calibration.observers.base import Observer
from qcompiler.calibration.observers.entropy import EntropyObserver
from qcompiler.calibration.observers.groups import GroupedObserver
from qcompiler.calibration.observers.mean_squared_error import MeanSquaredErrorObserver
from qcompiler.calibration.observers.min_max import MinMaxObserver
from qcompiler.calibration.observers.moments import MomentsObserver
from qcompiler.calibration.observers.moving_average import MovingAverageObserver
from qcompiler.calibration.observers.percentile import PercentileObserver
from qcompiler.calibration.statistics import ObserverKind, ObserverSpec

__all__ = ["Observer", "make_observer"]

_CLASSES: dict[ObserverKind, type[Observer]] = {
    "min-max": MinMaxObserver,
    "moving-average": MovingAverageObserver,
    "percentile": PercentileObserver,
    "mse": MeanSquaredErrorObserver,
    "entropy": EntropyObserver,
    "moments": MomentsObserver,
}


def make_observer(spec: ObserverSpec) -> Observer:
    """A fresh observer. ``update`` it with each batch, then ask for its ``result``; constants (weights) are one batch."""
    chosen = _CLASSES[spec.kind]
    return chosen(spec) if spec.groups == "pooled" else GroupedObserver(spec, chosen)
