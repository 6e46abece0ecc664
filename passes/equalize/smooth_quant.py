"""``smooth-quant``: outliers of single channels move from activations, which have one scale, into weights, which have many.

    x = s x',   s[c] = max|x[c]|^alpha / max|W[c]|^(1 - alpha)

with max|W[c]| over all layers that read channel c. alpha = 1 leaves activations that are alike in every channel; alpha = 0 weights that
are. Source: SmoothQuant (arXiv 2211.10438), section 4, equations 3 and 4. Besides a layer or RMS norm and its linear layers, the pass
takes two layers in a row (attention's values and the output projection, the two layers of a gated or rectified MLP) wherever only what
commutes with a factor stands between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from qcompiler.calibration.statistics import Observation
from qcompiler.errors import CalibrationError
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.passes.equalize.migration import Affine, MigrationPass, Source, magnitudes, sources_in_order
from qcompiler.pipeline.contract import Equivalent, Promise

# The authors' code bounds the weights' magnitudes and the factors by it from below.
_LEAST = 1e-5


@dataclass(frozen=True)
class SmoothQuant(MigrationPass):
    """Outliers of channels go from activations into the next weights (SmoothQuant).

    Options:
        alpha: how much of the spread the weights take over, 0 to 1.
    """

    name: ClassVar[str] = "smooth-quant"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Promise] = Equivalent(1e-4)

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise CalibrationError(f"{self.name}: alpha must be in 0..1, got {self.alpha}")

    def sources(self, program: Program) -> list[Source]:
        return sources_in_order(program)

    def declines(self, source: Source) -> str | None:
        return source.readers.why_pinned()

    def affine(self, source: Source, seen: Observation) -> Affine | None:
        scale = source.readers.free(smoothing_factors(magnitudes(seen), source.readers.weight_magnitudes(), self.alpha), 1.0)
        if bool((scale == 1.0).all()):
            return None
        return Affine(scale, torch.zeros_like(scale), f"factors {float(scale.min()):.2g} to {float(scale.max()):.2g}")


def smoothing_factors(activations: torch.Tensor, weights: torch.Tensor, alpha: float) -> torch.Tensor:
    """max|x|^alpha / max|W|^(1 - alpha) for each channel; 1 for a channel that is always zero."""
    factors = activations**alpha / weights.clamp(min=_LEAST) ** (1.0 - alpha)
    return torch.where((activations > 0.0) & (weights > 0.0), factors.clamp(min=_LEAST), 1.0)
