"""``sqnr-output``: noise of the network's outputs with one item rounded.

    sensitivity = sum (f(x) - f_q(x))^2 / sum f(x)^2          over samples and outputs;  SQNR in dB = -10 log10 of it

for weights and activations alike. Noise-to-signal ratios of independent roundings add up, decibels do not, so that the table holds the
former. Source: Pandey et al., "A Practical Mixed Precision Algorithm for Post-Training Quantization" (arXiv 2302.05397), section 3, which
quantizes one group at a time with the rest in float and orders by SQNR. Needs no labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from qcompiler.passes.allocate.metrics.base import OutputMetric
from qcompiler.passes.allocate.metrics.errors import squared_norm
from qcompiler.passes.allocate.study import Piece, Study


@dataclass(frozen=True)
class SqnrOutput(OutputMetric):
    """See the module's docstring; noise and signal of all outputs together."""

    name: ClassVar[str] = "sqnr-output"

    def compare(self, study: Study, piece: Piece, outputs: Sequence[Tensor]) -> tuple[float, float]:
        pairs = list(zip(piece.outputs, outputs, strict=True))
        return sum(squared_norm(wanted - found) for wanted, found in pairs), sum(squared_norm(wanted) for wanted, _ in pairs)
