"""``taylor``: mean squared first-order change of the loss.

    sensitivity = mean over samples of (sum_j g_j d_j)^2        g = gradient of the sample's loss, d = Q(x) - x

for weights (x = w) and activations (x = a). Squares of independent changes add up where the changes themselves cancel. Without labels the
loss is taken against the likeliest class.

Source: Markovich-Golan et al., arXiv 2505.13060, section 2: mean squared error of the loss from its first-order expansion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from qcompiler.passes.allocate.metrics.per_sample import PerSampleGradients


@dataclass(frozen=True)
class Taylor(PerSampleGradients):
    """See the module's docstring."""

    name: ClassVar[str] = "taylor"

    def contribution(self, gradient: Tensor, error: Tensor) -> float:
        return float((gradient * error).double().sum()) ** 2
