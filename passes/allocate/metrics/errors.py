"""What several metrics need of the rounding itself: ||Q(x) - x||^2, absolute and as a share of ||x||^2."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from qcompiler.passes.allocate.metrics.base import channel_key, key
from qcompiler.passes.allocate.study import OpenStudy
from qcompiler.passes.quantize.rules import WEIGHT_AXIS
from qcompiler.pipeline.executor import Result
from qcompiler.sensitivity import Item


def squared_norm(values: Tensor) -> float:
    """||x||^2 in float64."""
    return float(values.detach().double().square().sum())


def share(part: float, whole: float) -> float:
    """part / whole; 0 where there is nothing to lose."""
    return part / whole if whole != 0.0 else 0.0


def summed(opened: OpenStudy, item: Item, values: Tensor) -> Tensor:
    """The sum of values shaped as an item, float64 [1]; over each output channel of a weight, [channels], if the study asks for them."""
    exact = values.detach().double()
    if not opened.study.channels or item.kind != "weight":
        return exact.sum().reshape(1)
    axis = WEIGHT_AXIS[opened.sites.products[item.name].target]
    return exact.movedim(axis, 0).flatten(1).sum(1)


def add_channels(opened: OpenStudy, sums: Result, item: Item, of_channels: Tensor) -> None:
    """Add what ``summed`` gave of a weight up by channel (key: ``channel_key``), if the study asks for them."""
    if opened.study.channels and item.kind == "weight":
        for number, value in enumerate(of_channels.tolist()):
            name = channel_key(item, number)
            sums[name] = sums.get(name, 0.0) + value


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
