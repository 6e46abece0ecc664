"""``fisher``: second-order loss increase with the diagonal of the Fisher information in the place of the Hessian.

    sensitivity = mean over samples of 1/2 sum_j g_j^2 d_j^2        g = gradient of the sample's loss, d = Q(x) - x

for weights (x = w) and activations (x = a, whose error is the sample's own). With labels this is the empirical Fisher information;
without them classes are drawn from the model's own distribution (seeded), which is the true one by one draw a sample.

Source: FIT (Zandonati et al., arXiv 2210.08502), section 3; BRECQ (Li et al., arXiv 2102.05426), section 3.3, for activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from qcompiler.passes.allocate.metrics.errors import squared_norm
from qcompiler.passes.allocate.metrics.per_sample import PerSampleGradients


@dataclass(frozen=True)
class Fisher(PerSampleGradients):
    """See the module's docstring. FIT takes ||d||^2 times the trace; here each element meets its own gradient."""

    name: ClassVar[str] = "fisher"
    draws_labels: ClassVar[bool] = True

    def contribution(self, gradient: Tensor, error: Tensor) -> float:
        return squared_norm(gradient * error) / 2.0
