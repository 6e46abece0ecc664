"""``loss``: the increase of the loss that is measured with one item rounded.

    sensitivity = mean over positions of L(f_q(x), y) - L(f(x), y)

for weights and activations alike; y are labels, or the float program's own output (then with cross entropy the mean KL divergence). With
few samples and labels it may be negative: rounding helped those samples.

Source: Hubara et al., "Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming" (AdaQuant, arXiv
2006.10518), section 3.4: the loss degradation of each layer at fewer bits, one at a time, is the objective of the integer program. There
the other layers have 8 bits and layers are optimized first: ``rest=8-bit`` is the former; weights are rounded to nearest here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from qcompiler.passes.allocate.metrics.base import LabelUse, OutputMetric
from qcompiler.passes.allocate.metrics.objectives import positions, total_loss
from qcompiler.passes.allocate.study import Piece, Study


@dataclass(frozen=True)
class MeasuredLoss(OutputMetric):
    """See the module's docstring; which loss is an option of the study."""

    name: ClassVar[str] = "loss"
    labels: ClassVar[LabelUse] = "optional"

    def compare(self, study: Study, piece: Piece, outputs: Sequence[Tensor]) -> tuple[float, float]:
        # In float64: the difference of two nearly equal sums is what counts.
        changed, own = (float(total_loss(output.double(), piece, study.loss)) for output in (outputs[0], piece.outputs[0]))
        return changed - own, float(positions(piece, study.loss))
