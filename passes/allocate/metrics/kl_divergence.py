"""``kl-divergence``: how far one rounded item moves the distribution over classes.

    sensitivity = mean over positions of KL(p || p_q) = sum_c p_c (log p_c - log p_q,c)     p: softmax of the first output's last dimension

for weights and activations alike. Source: Cai et al., "ZeroQ" (arXiv 2001.00281), section 3.2, equation 5: the sensitivity of layer i at k
bits is the divergence of the outputs with that layer at k bits and the rest in float. Needs no labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from qcompiler.passes.allocate.metrics.base import OutputMetric
from qcompiler.passes.allocate.metrics.objectives import positions
from qcompiler.passes.allocate.study import Piece, Study


@dataclass(frozen=True)
class KlDivergence(OutputMetric):
    """See the module's docstring."""

    name: ClassVar[str] = "kl-divergence"

    def compare(self, study: Study, piece: Piece, outputs: Sequence[Tensor]) -> tuple[float, float]:
        own, changed = (logits.double().log_softmax(-1) for logits in (piece.outputs[0], outputs[0]))
        return float((own.exp() * (own - changed)).sum()), float(positions(piece, "cross-entropy"))
