"""``activation-statistics``: noise at the layer as second moments of its input and output predict it; no gradient, one run.

    weights        sensitivity = sum_oi (Q(w) - w)_oi^2 E[x_i^2] / sum_o E[y_o^2]      i: input channels and taps, o: output channels
    activations    sensitivity = (s^2 / 12) / Var[a]                                  s: the step at that many bits

The first is the expected squared error of the layer's output over its power, if the products of different weights are uncorrelated; the
second takes the rounding for uniform noise. Source: weights by the norms of the activations that they meet as in Wanda (Sun et al., arXiv
2306.11695), section 3, squared; uniform noise as in Widrow and Kollar, "Quantization Noise" (2008), chapter 1. Borders of padded
convolutions count as inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from qcompiler.ir.layers import Layer, as_layer, matrix_form
from qcompiler.passes.allocate.metrics.base import SampleMetric, key
from qcompiler.passes.allocate.metrics.errors import share, squared_norm
from qcompiler.passes.allocate.study import OpenStudy, Piece
from qcompiler.pipeline.executor import Result
from qcompiler.sensitivity import Item


@dataclass(frozen=True)
class ActivationStatistics(SampleMetric):
    """See the module's docstring."""

    name: ClassVar[str] = "activation-statistics"

    def sums(self, opened: OpenStudy, piece: Piece, number: int) -> Result:
        sites = opened.sites
        activations, layers = ([item for item in opened.study.items.candidates if item.kind == kind] for kind in ("activation", "weight"))
        nodes = [sites.products[item.name] for item in layers]
        whole = sites.whole([*(sites.site[item] for item in activations), *(node.args[0] for node in nodes), *nodes])
        with torch.no_grad():
            values = whole.run(opened.inputs(sites, piece))
        result: Result = {}
        for item, value in zip(activations, values, strict=False):
            result |= {
                key(item, "count"): value.numel(),
                key(item, "sum"): float(value.double().sum()),
                key(item, "power"): squared_norm(value),
            }
        inputs, outputs = values[len(activations) : -len(layers)], values[len(values) - len(layers) :]
        for item, x, y in zip(layers, inputs, outputs, strict=True):
            layer = _layer(opened, item)
            moments = x.double().movedim(layer.axis, -1).flatten(0, -2).square()
            result[key(item, "positions")] = float(moments.shape[0])
            result[key(item, "outputs")] = y.numel() / layer.outputs
            result[key(item, "power")] = squared_norm(y)
            result |= {key(item, f"channel {channel}"): float(total) for channel, total in enumerate(moments.sum(0))}
        return result

    def sensitivity(self, opened: OpenStudy, totals: Mapping[str, float], item: Item, bits: int) -> float:
        if item.kind == "activation":
            count = totals[key(item, "count")]
            variance = totals[key(item, "power")] / count - (totals[key(item, "sum")] / count) ** 2
            return share(opened.study.types[item, bits].scale[0] ** 2 / 12.0, variance)
        layer = _layer(opened, item)
        moments = torch.tensor([totals[key(item, f"channel {channel}")] for channel in range(layer.inputs)], dtype=torch.float64)
        noise = _expected_power(opened, item, bits, layer, moments / totals[key(item, "positions")])
        return share(noise, totals[key(item, "power")] / totals[key(item, "outputs")])


def _layer(opened: OpenStudy, item: Item) -> Layer:
    node = next(node for node in opened.program.graph.nodes if node.name == item.name)
    layer = as_layer(node)
    assert layer is not None  # what an item means
    return layer


def _expected_power(opened: OpenStudy, item: Item, bits: int, layer: Layer, moments: Tensor) -> float:
    """The expected squared change of one output position, summed over output channels."""
    error = opened.weight_error(item, bits).double()
    changed = replace(layer, weight=matrix_form(layer.node, error).square())
    return float(changed.product(moments).sum())
