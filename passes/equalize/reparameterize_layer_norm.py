"""``reparameterize-layer-norm``: quantization for each channel after a layer norm, at the price of one scale.

Calibration gives each channel c of the activation x its own range, hence scale s[c] and zero point z[c]. With one scale S and one zero
point Z for all of them, r = s / S and l[c] = -s[c] z[c] the least value of the range, L = -S Z:

    x = r x' + (l - r L)

x' is quantized with (S, Z) exactly as x was with (s, z). The layer norm gives x' and the next layers take r and l - r L over
(``migration``): no op is added, the float function stays, and the spread between channels is now in the weights, which have a scale for
each output channel. Source: RepQ-ViT (arXiv 2212.08254), section 3.2, where S and Z are the means of s and z.

clip:
    none    the range of a channel is what was seen.
    dual    both ends of each channel's range are chosen for the least squared error of ``bits`` (RepQuant, arXiv 2402.05628, "per-channel
            dual clipping"). RepQuant learns the two bounds by gradient; here a search over the histogram of the channel finds them.
outliers:
    none    S is the mean of the channels' scales.
    mad     S is the scale with the least mean absolute deviation from all of them, which is their median: a few channels with extreme
            scales no longer decide (DopQ-ViT, arXiv 2408.03291, "MAD-guided Optimal Scaling Factor").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from qcompiler.calibration.statistics import Observation, ObserverKind, ObserverSpec
from qcompiler.errors import CalibrationError
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.passes.equalize.migration import Affine, MigrationPass, Source, norm_sources
from qcompiler.pipeline.contract import Equivalent, Promise

_aten = torch.ops.aten

# A channel that hardly varies gets at least this share of the common scale: its range says nothing about its values to come.
_LEAST_RATIO = 1e-4


@dataclass(frozen=True)
class ReparameterizeLayerNorm(MigrationPass):
    """Ranges of single channels after a layer norm go into its weights and those of the next layers (RepQ-ViT).

    Options:
        bits: of the activations to come, 2..8.
        clip: how the range of a channel is chosen, ``none`` or ``dual``.
        outliers: how the common scale is chosen, ``none`` or ``mad``.
    """

    name: ClassVar[str] = "reparameterize-layer-norm"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Promise] = Equivalent(1e-4)

    bits: int = 8
    clip: Literal["none", "dual"] = "none"
    outliers: Literal["none", "mad"] = "none"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise CalibrationError(f"{self.name}: bits must be 2..8, got {self.bits}")

    def sources(self, program: Program) -> list[Source]:
        return [source for source in norm_sources(program) if source.node.target is _aten.layer_norm.default]

    def declines(self, source: Source) -> str | None:
        return source.readers.why_not_all()

    def observer(self, source: Source) -> ObserverSpec:
        kind: ObserverKind = "min-max" if self.clip == "none" else "mse"
        return ObserverSpec(kind, axis=-1, bits=self.bits, through_zero=False)

    def affine(self, source: Source, seen: Observation) -> Affine | None:
        ratio, shift = self.ratio_and_shift(seen)
        return Affine(ratio, shift, f"scales of channels were {float(ratio.min()):.2g} to {float(ratio.max()):.2g} of the common one")

    def ratio_and_shift(self, seen: Observation) -> tuple[torch.Tensor, torch.Tensor]:
        """r and l - r L of the module's docstring, [channels]."""
        steps = (1 << self.bits) - 1
        low, high = torch.tensor(seen.low, dtype=torch.float64), torch.tensor(seen.high, dtype=torch.float64)
        scales = (high - low) / steps
        common = float(scales.median() if self.outliers == "mad" else scales.mean())
        if common <= 0.0:
            return torch.ones_like(low), torch.zeros_like(low)
        scales = scales.clamp(min=_LEAST_RATIO * common)
        zero_point = round(min(max(float((-low / scales).mean()), 0.0), float(steps)))
        ratio = scales / common
        return ratio, low + ratio * (zero_point * common)
