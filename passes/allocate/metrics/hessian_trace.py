"""``hessian-trace``: average curvature of the loss times the squared rounding error.

    weights        sensitivity = (Tr(H_w) / n_w) ||Q(w) - w||^2                 H_w: Hessian of the mean loss with respect to the weight
    activations    sensitivity = mean over samples of (Tr(H_a) / n_a)  times  mean over samples of ||Q(a) - a||^2

Traces by Hutchinson's estimator, Tr(M) = E[v' M v] for v with independent elements +-1:

1. With labels M is the Hessian, and H v the gradient of g' v: a backward pass through the gradient. All weights share their draws, and all
   activations theirs: products between items have mean zero, and add to the spread. An estimate below zero counts as zero.
2. Without labels the loss is taken against the float program's own output, where the Hessian is J' S J: J the Jacobian of the outputs, S
   = L L' the Hessian with respect to them (diag(p) - p p' for cross entropy). M is then the small matrix L' J J' L, which has the same
   trace, and v' M v = ||J' L v||^2: an ordinary backward pass from L v, never below zero.

Source: HAWQ-V2 (Dong et al., arXiv 1911.03852), sections 3.1 (average trace, Omega), 3.2 (Hutchinson) and 3.4 (activations).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qcompiler.errors import CalibrationError
from qcompiler.passes.allocate.metrics.base import LabelUse, SampleMetric, key
from qcompiler.passes.allocate.metrics.errors import activation_errors, add_channels, squared_norm, summed
from qcompiler.passes.allocate.metrics.gradients import Differentiable, Values, derivatives
from qcompiler.passes.allocate.metrics.objectives import positions, total_loss
from qcompiler.passes.allocate.study import Loss, OpenStudy, Piece
from qcompiler.pipeline.executor import Result
from qcompiler.sensitivity import ITEM_KINDS, Item


@dataclass(frozen=True)
class HessianTrace(SampleMetric):
    """See the module's docstring.

    Options:
        probes: random vectors for each piece of samples; every piece draws its own.
    """

    name: ClassVar[str] = "hessian-trace"
    labels: ClassVar[LabelUse] = "optional"

    probes: int = 8

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise CalibrationError(f"probes must be at least 1, got {self.probes}")

    def sums(self, opened: OpenStudy, piece: Piece, number: int) -> Result:
        study = opened.study
        generator = torch.Generator().manual_seed(study.seed * 1_000_003 + number)
        values = Differentiable(opened).run(piece)
        result = activation_errors(opened, values.items)
        result["positions"] = float(positions(piece, study.loss))
        estimate = _traces if piece.labels is not None else _traces_against_own_output
        for item, trace in estimate(opened, values, piece, self.probes, generator).items():
            result[key(item, "trace")] = float(trace.sum())
            result[key(item, "elements")] = float(values.items[item].numel())
            add_channels(opened, result, item, trace)
        return result

    def sensitivity(self, opened: OpenStudy, totals: Mapping[str, float], item: Item, bits: int) -> float:
        trace = max(totals[key(item, "trace")], 0.0)
        if item.kind == "weight":
            error = opened.weight_error(item, bits)
            return trace / totals["positions"] / error.numel() * squared_norm(error)
        return trace / totals[key(item, "elements")] * totals[key(item, bits)] / totals["positions"]


def _traces(opened: OpenStudy, values: Values, piece: Piece, probes: int, generator: torch.Generator) -> dict[Item, Tensor]:
    """Case 1: the mean of v' H v over the probes, for each item; as ``summed``."""
    totals: dict[Item, Tensor] = {}
    loss = total_loss(values.output, piece, opened.study.loss)
    for kind in ITEM_KINDS:
        items = {item: value for item, value in values.items.items() if item.kind == kind}
        gradients = derivatives(loss, items, create_graph=True)
        for _ in range(probes):
            vectors = {item: _signs(value, generator) for item, value in items.items()}
            parts = [(gradients[item] * vector).sum() for item, vector in vectors.items()]
            products = derivatives(torch.stack(parts).sum(), items, retain_graph=True) if parts else {}
            for item, product in products.items():
                totals[item] = totals.get(item, 0.0) + summed(opened, item, product * vectors[item]) / probes
    return totals


def _traces_against_own_output(
    opened: OpenStudy, values: Values, piece: Piece, probes: int, generator: torch.Generator
) -> dict[Item, Tensor]:
    """Case 2: the mean of ||J' L v||^2 over the probes, for each item; as ``summed``. Products between samples have mean zero."""
    totals: dict[Item, Tensor] = {}
    for _ in range(probes):
        start = _root_times(piece.outputs[0], opened.study.loss, _signs(piece.outputs[0], generator))
        for item, product in values.gradients((values.output * start).sum(), retain_graph=True).items():
            totals[item] = totals.get(item, 0.0) + summed(opened, item, product.detach().double().square()) / probes
    return totals


def _root_times(output: Tensor, loss: Loss, vector: Tensor) -> Tensor:
    """L v: v itself for squared errors; for cross entropy L = diag(sqrt(p)) - p sqrt(p)', so that L L' = diag(p) - p p'."""
    if loss == "squared-error":
        return vector
    probabilities = output.softmax(-1)
    scaled = probabilities.sqrt() * vector
    return scaled - probabilities * scaled.sum(-1, keepdim=True)


def _signs(value: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, value.shape, generator=generator).to(value.dtype) * 2.0 - 1.0
