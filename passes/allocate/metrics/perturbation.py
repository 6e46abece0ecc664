"""``perturbation``: how far rounding moves a tensor, as a share of its own norm; a proxy that looks at no other part of the network.

    weights        sensitivity = ||Q(w) - w||^2 / ||w||^2                     needs no data
    activations    sensitivity = sum ||Q(a) - a||^2 / sum ||a||^2             sums over samples

Source: the second factor of HAWQ-V2 (Dong et al., arXiv 1911.03852), section 3, made relative so that tensors of any size compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcompiler.passes.allocate.metrics.base import SampleMetric, key
from qcompiler.passes.allocate.metrics.errors import activation_errors, relative_weight_error, share
from qcompiler.passes.allocate.study import OpenStudy, Piece
from qcompiler.pipeline.executor import Result
from qcompiler.sensitivity import Item


@dataclass(frozen=True)
class Perturbation(SampleMetric):
    """See the module's docstring."""

    name: ClassVar[str] = "perturbation"
    needs_data: ClassVar[bool] = False

    def sums(self, opened: OpenStudy, piece: Piece, number: int) -> Result:
        sites = opened.sites
        activations = [item for item in opened.study.items.candidates if item.kind == "activation"]
        whole = sites.whole([sites.site[item] for item in activations])
        with torch.no_grad():
            values = dict(zip(activations, whole.run(opened.inputs(sites, piece)), strict=True))
        return activation_errors(opened, values)

    def sensitivity(self, opened: OpenStudy, totals: Mapping[str, float], item: Item, bits: int) -> float:
        if item.kind == "weight":
            return relative_weight_error(opened, item, bits)
        return share(totals[key(item, bits)], totals[key(item, "power")])
