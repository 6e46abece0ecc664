"""What metrics by gradients of single samples share: each sample's gradient meets the rounding error of each item."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qcompiler.passes.allocate.metrics.base import LabelUse, SampleMetric, key
from qcompiler.passes.allocate.metrics.errors import add_channels, summed
from qcompiler.passes.allocate.metrics.gradients import Differentiable, Values
from qcompiler.passes.allocate.metrics.objectives import surrogate_loss
from qcompiler.passes.allocate.study import OpenStudy, Piece
from qcompiler.pipeline.executor import Result
from qcompiler.sensitivity import Item


@dataclass(frozen=True)
class PerSampleGradients(SampleMetric):
    """Base: mean over samples of a number made of the gradient of the sample's loss and of the rounding error.

    A program with a fixed batch gives one gradient for the batch, which then counts as one sample.
    """

    labels: ClassVar[LabelUse] = "optional"
    draws_labels: ClassVar[bool] = False

    def sums(self, opened: OpenStudy, piece: Piece, number: int) -> Result:
        generator = torch.Generator().manual_seed(opened.study.seed * 1_000_003 + number)
        network = Differentiable(opened)
        errors = _WeightErrors(opened)
        result: Result = {"samples": 0.0}
        for sample in piece.one_by_one() if opened.study.single else (piece,):
            values = network.run(sample)
            loss = surrogate_loss(values.output, sample, opened.study.loss, generator if self.draws_labels else None)
            self._add(opened, values, values.gradients(loss), errors, result)
        return result

    def sensitivity(self, opened: OpenStudy, totals: Mapping[str, float], item: Item, bits: int) -> float:
        return totals[key(item, bits)] / totals["samples"]

    @abstractmethod
    def contribution(self, gradient: Tensor, error: Tensor) -> float:
        """Of one sample, for an item with that gradient and rounding error."""

    def _add(self, opened: OpenStudy, values: Values, gradients: Mapping[Item, Tensor], errors: _WeightErrors, result: Result) -> None:
        result["samples"] += 1.0
        for item, bits in opened.study.rows():
            exact = values.items[item].detach()
            error = errors.at(item, bits) if item.kind == "weight" else opened.rounded(item, bits, exact) - exact
            name = key(item, bits)
            result[name] = result.get(name, 0.0) + self.contribution(gradients[item], error)
        for item, gradient in gradients.items():
            add_channels(opened, result, item, summed(opened, item, gradient.square()))


class _WeightErrors:
    """Q(w) - w at each bit-width, which all samples of a piece share: as many copies of the weights as there are widths."""

    def __init__(self, opened: OpenStudy) -> None:
        self._opened = opened
        self._known: dict[tuple[Item, int], Tensor] = {}

    def at(self, item: Item, bits: int) -> Tensor:
        if (item, bits) not in self._known:
            self._known[item, bits] = self._opened.weight_error(item, bits)
        return self._known[item, bits]
