"""``smooth-quant-bias``: SmoothQuant after the mean of each channel was moved into the next layers' biases.

    x = s x' + mu,   mu[c] = mean x[c],   s[c] = max|x[c] - mu[c]|^alpha / max|W[c]|^(1 - alpha)

A symmetric quantizer loses by clamping where channels are not centred; with their means gone it does not. Source: MPTQ-ViT (arXiv
2401.14895), "SmoothQuant with bias term (SQ-b)". It takes what is after a layer norm, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from qcompiler.calibration.statistics import Observation, ObserverSpec
from qcompiler.ir.program import Program
from qcompiler.passes.equalize.migration import Affine, Source, norm_sources
from qcompiler.passes.equalize.smooth_quant import SmoothQuant, smoothing_factors


@dataclass(frozen=True)
class SmoothQuantBias(SmoothQuant):
    """Means of channels go into the next biases, their outliers into the next weights (MPTQ-ViT's SQ-b).

    Options:
        alpha: how much of the spread the weights take over, 0 to 1.
    """

    name: ClassVar[str] = "smooth-quant-bias"

    def sources(self, program: Program) -> list[Source]:
        return norm_sources(program)

    def observer(self, source: Source) -> ObserverSpec:
        return ObserverSpec("moments", axis=source.axis)

    def affine(self, source: Source, seen: Observation) -> Affine | None:
        low, high, mean = (torch.tensor(column, dtype=torch.float64) for column in (seen.low, seen.high, seen.mean))
        shift = source.readers.free_shift(mean) if source.takes_shifts else torch.zeros_like(mean)
        centred = torch.maximum((low - shift).abs(), (high - shift).abs())
        scale = source.readers.free(smoothing_factors(centred, source.readers.weight_magnitudes(), self.alpha), 1.0)
        note = f"factors {float(scale.min()):.2g} to {float(scale.max()):.2g}, means up to {float(shift.abs().max()):.2g}"
        return Affine(scale, shift, note)
