"""What several metrics need of the rounding itself: ||Q(x) - x||^2, absolute and as a share of ||x||^2."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from qcompiler.passes.allocate.metrics.base import key
from qcompiler.passes.allocate.study import OpenStudy
from qcompiler.pipeline.executor import Result
from qcompiler.sensitivity import Item


def squared_norm(values: Tensor) -> float:
    """||x||^2 in float64."""
    return float(values.detach().double().square().sum())


def share(part: float, whole: float) -> float:
    """part / whole; 0 where there is nothing to lose."""
    return part / whole if whole != 0.0 else 0.0


def activation_errors(opened: OpenStudy, values: Mapping[Item, Tensor]) -> Result:
    """||Q(a) - a||^2 at every bit-width (key: bits) and ||a||^2 (key: power) of activations, summed over the samples in ``values``."""
    sums: Result = {}
    for item, value in values.items():
        if item.kind == "activation":
            exact = value.detach()
            sums[key(item, "power")] = squared_norm(exact)
            for bits in opened.study.bits[item]:
                sums[key(item, bits)] = squared_norm(opened.rounded(item, bits, exact) - exact)
    return sums


def relative_weight_error(opened: OpenStudy, item: Item, bits: int) -> float:
    """||Q(w) - w||^2 / ||w||^2."""
    return share(squared_norm(opened.weight_error(item, bits)), squared_norm(opened.sites.tensor(item)))
