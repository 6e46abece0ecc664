"""``sqnr-layer``: noise of the layer's own output with one item rounded.

    sensitivity = sum (y - y_q)^2 / sum y^2         over samples;  SQNR in dB = -10 log10 of it

- weights: y is the layer's output for its float input.
- activations: y is the output of each layer or matrix product that reads the value, and the mean over these; of a value that none reads,
  itself.

Source: Lin et al., "Fixed Point Quantization of Deep Convolutional Networks" (arXiv 1511.06393), section 3, which adds up noise-to-signal
ratios over layers. Needs no labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from qcompiler.passes.allocate.metrics.base import SampleMetric, key
from qcompiler.passes.allocate.metrics.errors import share, squared_norm
from qcompiler.passes.allocate.sites import Cut, Sites
from qcompiler.passes.allocate.study import OpenStudy, Piece
from qcompiler.pipeline.executor import Result
from qcompiler.sensitivity import Item


@dataclass(frozen=True)
class SqnrLayer(SampleMetric):
    """See the module's docstring."""

    name: ClassVar[str] = "sqnr-layer"

    def sums(self, opened: OpenStudy, piece: Piece, number: int) -> Result:
        sites = opened.sites
        cuts = {item: sites.cut(item, _outputs(opened, sites, item)) for item in opened.study.items.candidates}
        needed = list(dict.fromkeys(node for cut in cuts.values() for node in cut.kept if node not in sites.inputs))
        result: Result = {}
        with torch.no_grad():
            inputs = opened.inputs(sites, piece)
            values = {**inputs, **dict(zip(needed, sites.whole(needed).run(inputs), strict=True))}
            for item, cut in cuts.items():
                result |= _noise(opened, item, cut, values)
        return result

    def sensitivity(self, opened: OpenStudy, totals: Mapping[str, float], item: Item, bits: int) -> float:
        count = len(_outputs(opened, opened.sites, item))
        shares = [share(totals[key(item, f"{bits} {number}")], totals[key(item, f"power {number}")]) for number in range(count)]
        return sum(shares) / count


def _outputs(opened: OpenStudy, sites: Sites, item: Item) -> list[fx.Node]:
    """The layer, or what multiplies the value, or the value itself."""
    names = [product.name for product in opened.study.items.products if item in product.operands]
    return [sites.products[name] for name in names] or [sites.site[item]]


def _noise(opened: OpenStudy, item: Item, cut: Cut, values: Mapping[fx.Node, Tensor]) -> Result:
    kept = {node: values[node] for node in cut.kept}
    exact = opened.sites.tensor(item) if item.kind == "weight" else kept[cut.source]
    wanted = cut.run_behind(kept, exact)
    result = {key(item, f"power {number}"): squared_norm(value) for number, value in enumerate(wanted)}
    for bits in opened.study.bits[item]:
        found = cut.run_behind(kept, opened.rounded(item, bits, exact))
        for number, (value, changed) in enumerate(zip(wanted, found, strict=True)):
            result[key(item, f"{bits} {number}")] = squared_norm(changed - value)
    return result
