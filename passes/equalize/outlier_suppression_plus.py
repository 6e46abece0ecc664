"""``outlier-suppression-plus``: channels are centred, and those beyond a threshold scaled down to it.

    x = s x' + z,   z[c] = (max x[c] + min x[c]) / 2,   s[c] = max(1, max|x[c] - z[c]| / t)

Source: Outlier Suppression+ (arXiv 2304.09145), sections 4.1 and 4.2. The threshold t has the least error of the next layers' results.
The paper measures that error on calibration data for each t of a grid; here it is computed, for the same grid, from the moments of
the channels: rounding adds noise of variance step^2 / 12 to every activation and weight, so that

    error(t) = step_x^2 / 12  sum_oc (W[o,c] s[c])^2  +  sum_o step_w[o]^2 / 12  sum_c E[x'[c]^2]

with the steps of one scale for all activations and one for each output channel of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcompiler.calibration.statistics import Observation, ObserverSpec
from qcompiler.errors import CalibrationError
from qcompiler.ir.channels import Reader
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.passes.equalize.migration import Affine, MigrationPass, Source, sources_in_order
from qcompiler.pipeline.contract import Equivalent, Promise

# The authors' grid has at least 100 thresholds.
_THRESHOLDS = 100


@dataclass(frozen=True)
class OutlierSuppressionPlus(MigrationPass):
    """Channels are centred, and outliers among them scaled down to a searched threshold (Outlier Suppression+).

    Options:
        w, a: bits of weights and activations that the threshold is chosen for, 2..8.
    """

    name: ClassVar[str] = "outlier-suppression-plus"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Promise] = Equivalent(1e-4)

    w: int = 8
    a: int = 8

    def __post_init__(self) -> None:
        for option, bits in (("w", self.w), ("a", self.a)):
            if not 2 <= bits <= 8:
                raise CalibrationError(f"{self.name}: {option} must be 2..8 bits, got {bits}")

    def sources(self, program: Program) -> list[Source]:
        return sources_in_order(program)

    def declines(self, source: Source) -> str | None:
        return source.readers.why_pinned()

    def observer(self, source: Source) -> ObserverSpec:
        return ObserverSpec("moments", axis=source.axis)

    def affine(self, source: Source, seen: Observation) -> Affine | None:
        low, high, mean, deviation = (torch.tensor(each, dtype=torch.float64) for each in (seen.low, seen.high, seen.mean, seen.deviation))
        shift = source.readers.free_shift((low + high) / 2.0) if source.takes_shifts else torch.zeros_like(low)
        reach = torch.maximum((low - shift).abs(), (high - shift).abs())
        power = deviation.square() + (mean - shift).square()
        scale = min(
            self._candidates(source, reach), key=lambda each: self._error(source.readers.layers, reach / each, power / each**2, each)
        )
        if not bool(shift.any()) and bool((scale == 1.0).all()):
            return None
        return Affine(scale, shift, f"{int((scale > 1.0).sum())} of {len(scale)} channels scaled down, by up to {float(scale.max()):.2g}")

    def _candidates(self, source: Source, reach: torch.Tensor) -> list[torch.Tensor]:
        """The factors for each threshold, from the largest (no channel is scaled) down."""
        largest = float(reach.max())
        if largest == 0.0:
            return [torch.ones_like(reach)]
        thresholds = (largest * (1.0 - step / _THRESHOLDS) for step in range(_THRESHOLDS))
        return [source.readers.free((reach / threshold).clamp(min=1.0), 1.0) for threshold in thresholds]

    def _error(self, readers: Sequence[Reader], reach: torch.Tensor, power: torch.Tensor, scale: torch.Tensor) -> float:
        """``error(t)`` of the module's docstring, without the common 1 / 12."""
        step = 2.0 * float(reach.max()) / ((1 << self.a) - 1)
        total = 0.0
        for reader in readers:
            weight = reader.layer.scale_inputs(reader.of_inputs(scale, 1.0)).weight
            steps = weight.abs().amax((2, 3)) / ((1 << (self.w - 1)) - 1)
            power_of_inputs = reader.of_inputs(power, 0.0).reshape(weight.shape[0], 1, -1).sum(2) * weight.shape[3]
            total += step**2 * float(weight.square().sum()) + float((steps.square() * power_of_inputs).sum())
        return total
