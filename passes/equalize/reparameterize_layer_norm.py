"""``reparameterize-layer-norm``: quantization for each channel after a layer norm, at the price of one scale.

Calibration gives each channel c of the activation x its own range, hence scale s[c] and zero point z[c]. With one scale S and one zero
point Z for all of them, r = s / S and l[c] = -s[c] z[c] the least value of the range, L = -S Z:

    x = r x' + (l - r L)

x' is quantized with (S, Z) exactly as x was with (s, z). The layer norm gives x' and the next layers take r and l - r L over
(``migration``): no op is added, the float function stays, and the spread between channels is now in the weights, which have a scale for
each output channel. Source: RepQ-ViT (arXiv 2212.08254), section 3.2, where S and Z are the means of s and z.

Few values. The next value of a channel is outside of the range of n values before it with probability 2 / (n + 1): where a norm gives
one row a sample (behind a pooling, a class token), a hundred samples leave a range that clips. For normal values of deviation σ this costs
2 σ² / (n ln n), and rounding within the range (2 / 3) σ² ln(n) / 4^bits: clipping costs less from n (ln n)² = 3 · 4^bits on, 3,054
values at 8 bits and 51 at 4. With fewer, a channel's range is mean ± k σ, where k is what so many normal values reach. Mean and σ are
estimates too, with errors of variance σ² / n and (for ln σ) 1 / 2n: they are drawn to the mean of all channels by the share of their
spread that is error (James and Stein, "Estimation with Quadratic Loss", 1961), so that channels that are alike stay alike.

clip:
    none    the range of a channel is what was seen, or follows from its moments where few values were.
    dual    both ends of each channel's range are chosen for the least squared error of ``bits`` (RepQuant, arXiv 2402.05628, "per-channel
            dual clipping"). RepQuant learns the two bounds by gradient; here a search over the histogram of the channel finds them.
outliers:
    none    S is the mean of the channels' scales.
    mad     S is the scale with the least mean absolute deviation from all of them, which is their median: a few channels with extreme
            scales no longer decide (DopQ-ViT, arXiv 2408.03291, "MAD-guided Optimal Scaling Factor").
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from statistics import NormalDist
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
        kind: ObserverKind = "moments" if self.clip == "none" else "mse"
        return ObserverSpec(kind, axis=-1, bits=self.bits, through_zero=False)

    def affine(self, source: Source, seen: Observation) -> Affine | None:
        ratio, shift = self.ratio_and_shift(seen)
        return Affine(ratio, shift, f"scales of channels were {float(ratio.min()):.2g} to {float(ratio.max()):.2g} of the common one")

    def ratio_and_shift(self, seen: Observation) -> tuple[torch.Tensor, torch.Tensor]:
        """r and l - r L of the module's docstring, [channels]."""
        steps = (1 << self.bits) - 1
        low, high = _ranges(seen, self.bits)
        scales = (high - low) / steps
        common = float(scales.median() if self.outliers == "mad" else scales.mean())
        if common <= 0.0:
            return torch.ones_like(low), torch.zeros_like(low)
        scales = scales.clamp(min=_LEAST_RATIO * common)
        zero_point = round(min(max(float((-low / scales).mean()), 0.0), float(steps)))
        ratio = scales / common
        return ratio, low + ratio * (zero_point * common)


def _ranges(seen: Observation, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The range of each channel, [channels]: what was seen, or of few values what their moments say."""
    low, high = torch.tensor(seen.low, dtype=torch.float64), torch.tensor(seen.high, dtype=torch.float64)
    enough = enough_values(bits)
    if not 1 < seen.count < enough or not max(seen.deviation) > 0.0:
        return low, high
    deviation = torch.tensor(seen.deviation, dtype=torch.float64)
    deviation = deviation.clamp(min=_LEAST_RATIO * float(deviation.max()))
    mean = _shrunk(torch.tensor(seen.mean, dtype=torch.float64), float(deviation.square().mean()) / seen.count)
    deviation = _shrunk(deviation.log(), 1.0 / (2 * seen.count)).exp()
    reach = NormalDist().inv_cdf(1.0 - 1.0 / enough) * deviation
    return mean - reach, mean + reach


def _shrunk(values: torch.Tensor, noise: float) -> torch.Tensor:
    """Estimates with an error of variance ``noise`` each, drawn to their mean as far as the error explains how they differ."""
    centre, spread = values.mean(), float(values.var(correction=0))
    return centre + max(0.0, 1.0 - noise / spread) * (values - centre) if spread > 0.0 else values


def enough_values(bits: int) -> int:
    """The least n with n (ln n)² >= 3 · 4^bits: from so many values on, what they leave outside of their range costs less than rounding."""
    return next(n for n in itertools.count(2) if n * math.log(n) ** 2 >= 3 * 4**bits)
