"""Quantizers whose steps are not equal: sorted boundaries (which code a value gets) and levels (what each code means).

    encode(x) = number of boundaries <= x          decode(c) = levels[c]

so that a code rises with its value. Every level is an integer of at most 16 bits times one scale, which is the largest magnitude divided
by 2^14: at INTEGER the pair is ``qc::bucketize`` and a table of int16, and a product with 8-bit integers goes on in int32. 2^14 and
not 2^15 - 1, so that halving is exact: level 2^-k of a logarithmic quantizer is the integer 2^(14 - k), one shift.

``bits`` counts codes honestly: 2^bits of them, zero among them. The papers round to 2^bits levels and let what lies below the last one
be zero as well, which is a code more; here the smallest level gives way.

kind                    levels for x in [0, m], m: the largest value
``log2``                m 2^-i (FQ-ViT, arXiv 2111.13824, "Log-Int-Softmax")
``log-sqrt2``           m 2^(-i/2), which is m 2^-ceil(i/2) and that times sqrt 2 if i is odd (RepQ-ViT, arXiv 2212.08254, "Scale
                        Reparameterization for Softmax Activations")
``adalog``              m 2^(-i q/37) - t, the integer q by search; t moves the least value to 0 (AdaLog, arXiv 2407.12951, "Adaptive
                        Logarithm Base Quantizer" and its bias reparameterization for GELU)
``shift-uniform-log2``  m 2^round(l + i d) - h: equal steps d in log2(x + h), h by search (I&S-ViT, arXiv 2311.10126)
``tanq``                equal steps in tan(a (2 x / m - 1)), a by search: fine near both ends (DopQ-ViT, arXiv 2408.03291, "Tan Quantizer")
``twin-uniform``        half of the codes for a fine range [0, D], half for all of it, D by search; for values of a GELU half for each
                        sign (PTQ4ViT, arXiv 2111.12293, "Twin Uniform Quantization")

``log2``, ``log-sqrt2`` and ``adalog`` round the logarithm, as the papers do; the others round to the nearest level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from qcompiler.calibration.statistics import Observation
from qcompiler.errors import CalibrationError, UnknownNameError

LevelKind = Literal["log2", "log-sqrt2", "adalog", "shift-uniform-log2", "tanq", "twin-uniform"]
LEVEL_KINDS: tuple[LevelKind, ...] = get_args(LevelKind)

# The largest magnitude as an integer; a power of two, see the module's docstring.
_LARGEST = 1 << 14
# AdaLog, section 3.2: the base is 2^(-q/r) with r = 37. The authors' code searches q from 10 to 110; more than 4 bits want finer bases.
_ADALOG_R = 37
_ADALOG_Q = range(1, 111)
# I&S-ViT, the authors' candidates for the shift.
_SHIFTS = (0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5, 1.0)
# Angles of the tangent quantizer, up to pi / 2 exclusively; at 0 it is the uniform quantizer.
_ANGLES = tuple(0.05 * step for step in range(1, 31))
# The fine range of a twin quantizer is 2^-m of the whole one (PTQ4ViT, section 3.2: shifts align the two).
_TWIN_SHIFTS = range(1, 9)
# RepQ-ViT, the authors' code: the largest value is one of these quantiles, or the maximum.
_QUANTILES = (1.0, 0.99999, 0.9999, 0.999)
_SAMPLE = 1 << 14


@dataclass(frozen=True)
class Levels:
    """``len(levels) == len(boundaries) + 1``; both strictly rising. ``scale``: every level is an int16 times it."""

    boundaries: tuple[float, ...]
    levels: tuple[float, ...]
    scale: float

    def __post_init__(self) -> None:
        rising = all(a < b for values in (self.boundaries, self.levels) for a, b in zip(values, values[1:], strict=False))
        if len(self.levels) != len(self.boundaries) + 1 or not rising:
            raise CalibrationError(f"{len(self.levels)} levels and {len(self.boundaries)} boundaries do not make a quantizer")

    @property
    def integers(self) -> tuple[int, ...]:
        """The levels in steps of ``scale``."""
        return tuple(round(level / self.scale) for level in self.levels)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """The number of boundaries <= x, as uint8."""
        return torch.bucketize(x, torch.tensor(self.boundaries, dtype=x.dtype), right=True).to(torch.uint8)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.levels, dtype=torch.float32)[codes.long()]

    def round(self, x: torch.Tensor) -> torch.Tensor:
        """Both at once: what the value is after quantization."""
        return self.decode(self.encode(x))

    def error(self, x: torch.Tensor) -> float:
        """Mean squared error on ``x``."""
        return float((self.round(x).double() - x.double()).square().mean())


def levels(kind: str, bits: int, data: Observation | torch.Tensor) -> Levels:
    """The quantizer of ``kind`` with at most 2^bits codes for values like ``data``.

    Args:
        kind: one of ``LEVEL_KINDS``.
        bits: 2..8.
        data: values themselves (any shape; every search minimizes the squared error on them), or what is known of their range alone. Then
            ``stand_in`` takes their place: probabilities where the range starts at zero, values of a GELU where it does not.

    Raises:
        CalibrationError: ``bits`` is out of range, there is no positive value, or a quantizer of magnitudes meets negative values.
        UnknownNameError: there is no such kind.
    """
    if kind not in _MAKERS:
        raise UnknownNameError("quantizer", kind, LEVEL_KINDS)
    if not 2 <= bits <= 8:
        way_out = "set quantize.a, or quantize.probability_bits=2 for a softmax alone, or take the quantizer 'uniform'"
        raise CalibrationError(f"quantizer '{kind}': bits must be 2..8, got {bits}: {way_out}")
    values = (stand_in(data) if isinstance(data, Observation) else data).detach().reshape(-1).float()
    if values.numel() == 0 or not bool(torch.isfinite(values).all()) or float(values.max()) <= 0.0:
        raise CalibrationError(f"quantizer '{kind}': the values must be finite and some of them positive")
    return _MAKERS[kind](bits, _thinned(values))


def stand_in(seen: Observation) -> torch.Tensor:
    """Values that spread over [low, high] as probabilities do (low = 0), or as a GELU's results do (low < 0); always the same ones.

    Probabilities: ``high exp(-8 u)`` with u uniform, a power law. GELU: that of a normal variable, scaled so that the largest is ``high``.
    """
    low, high = min(seen.low), max(seen.high)
    uniform = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    if low >= 0.0:
        return (max(high, 0.0) * torch.exp(-8.0 * uniform)).float()
    normal = torch.special.ndtri(uniform)
    curve = torch.nn.functional.gelu(normal * (high / float(normal.max())))
    return torch.cat([curve.clamp(min=low), torch.tensor([low, high], dtype=torch.float64)]).float()


def _thinned(values: torch.Tensor) -> torch.Tensor:
    """At most a few ten thousand values, with both extremes: searches need no more."""
    if values.numel() <= _SAMPLE:
        return values
    step = values.numel() // _SAMPLE + 1
    return torch.cat([values[::step], values.min().reshape(1), values.max().reshape(1)])


def _best(candidates: Iterable[Levels], values: torch.Tensor) -> Levels:
    return min(candidates, key=lambda candidate: candidate.error(values))


def _quantiles(values: torch.Tensor) -> tuple[float, ...]:
    """Candidates for the largest value; positive."""
    found = torch.quantile(values, torch.tensor(_QUANTILES))
    return tuple(dict.fromkeys(float(high) for high in found if high > 0.0))


def _rounded(reals: Iterable[float], between: Callable[[float, float], float], largest: float) -> Levels:
    """Levels on the common scale, each once, with a boundary ``between`` each two neighbours."""
    scale = _float32(largest / _LARGEST)
    integers = sorted({round(real / scale) for real in reals})
    rounded = [integer * scale for integer in integers]
    boundaries = tuple(between(low, high) for low, high in zip(rounded, rounded[1:], strict=False))
    return Levels(boundaries, tuple(rounded), scale)


def _float32(scale: float) -> float:
    """A scale as types hold it."""
    return float(torch.tensor(scale, dtype=torch.float32))


def _middle(low: float, high: float) -> float:
    return (low + high) / 2.0


def _logarithmic(exponents: list[float], high: float, shift: float = 0.0) -> Levels:
    """``high 2^-e - shift`` for rising e, with zero (before the shift) below the last; neighbours part where the logarithm is rounded."""
    scale = _float32(max(high - shift, shift) / _LARGEST)
    entries: dict[int, float] = {}
    for exponent in exponents:
        integer = round((high * 2.0**-exponent - shift) / scale)
        entries.setdefault(integer, exponent)
    lowest = round(-shift / scale)
    kept = sorted((integer, exponent) for integer, exponent in entries.items() if integer > lowest)
    half = (exponents[1] - exponents[0]) / 2.0  # of the logarithmic step: where a level gives way to the one below it
    boundaries = tuple(high * 2.0 ** -(exponent + half) - shift for _, exponent in kept)
    return Levels(boundaries, (lowest * scale, *(integer * scale for integer, _ in kept)), scale)


def _refuse_negative(kind: str, values: torch.Tensor) -> None:
    if float(values.min()) < 0.0:
        raise CalibrationError(f"quantizer '{kind}' is for values from 0 up, but the least is {float(values.min()):.4g}: use 'adalog'")


def _log_of_base(kind: str, step: float) -> Callable[[int, torch.Tensor], Levels]:
    def make(bits: int, values: torch.Tensor) -> Levels:
        _refuse_negative(kind, values)
        exponents = [index * step for index in range((1 << bits) - 1)]
        return _best((_logarithmic(exponents, high) for high in _quantiles(values)), values)

    return make


def _adalog(bits: int, values: torch.Tensor) -> Levels:
    shift = max(-float(values.min()), 0.0)
    codes = range((1 << bits) - 1)

    def make(q: int, high: float) -> Levels:
        return _logarithmic([index * q / _ADALOG_R for index in codes], high, shift)

    largest, *quantiles = _quantiles(values + shift)
    errors = {q: make(q, largest).error(values) for q in _ADALOG_Q}
    best_q = min(errors, key=errors.__getitem__)
    return _best((make(best_q, high) for high in (largest, *quantiles)), values)


def _shift_uniform_log2(bits: int, values: torch.Tensor) -> Levels:
    """In units of the largest value, so that a quantizer scales with its values; a shift is above -least for the logarithm to exist."""
    least, largest = float(values.min()), float(values.max())
    lowest = max(-least / largest, 0.0)
    last = (1 << bits) - 1

    def make(shift: float) -> Levels:
        low, high = math.log2(least / largest + shift), math.log2(1.0 + shift)
        powers = (2.0 ** round(low + index * (high - low) / last) - shift for index in range(last + 1))
        return _rounded((largest * power for power in powers), _middle, largest * max(1.0, shift))

    return _best((make(lowest + shift) for shift in _SHIFTS), values)


def _tangent(bits: int, values: torch.Tensor) -> Levels:
    least, largest = min(float(values.min()), 0.0), float(values.max())
    last = (1 << bits) - 1

    def make(angle: float) -> Levels:
        steep = math.tan(angle)
        shares = [(math.atan(steep * (2.0 * index / last - 1.0)) / angle + 1.0) / 2.0 for index in range(last + 1)]
        return _rounded((least + (largest - least) * share for share in shares), _middle, max(largest, -least))

    return _best((make(angle) for angle in _ANGLES), values)


def _twin_uniform(bits: int, values: torch.Tensor) -> Levels:
    least, largest = float(values.min()), float(values.max())
    half = 1 << (bits - 1)

    def make(fine: float) -> Levels:
        fine_levels = [fine * index / half for index in range(half)]
        coarse_levels = [largest * (index + 1) / half for index in range(half)]
        return _rounded([*fine_levels, *coarse_levels], _middle, max(largest, -least))

    if least < 0.0:  # PTQ4ViT's twin for GELU: one half for each sign
        negative, positive = [least * index / half for index in range(1, half + 1)], [largest * i / (half - 1) for i in range(half)]
        return _rounded([*negative, *positive], _middle, max(largest, -least))
    return _best((make(largest * 2.0**-shift) for shift in _TWIN_SHIFTS), values)


_MAKERS: Mapping[str, Callable[[int, torch.Tensor], Levels]] = {
    "log2": _log_of_base("log2", 1.0),
    "log-sqrt2": _log_of_base("log-sqrt2", 0.5),
    "adalog": _adalog,
    "shift-uniform-log2": _shift_uniform_log2,
    "tanq": _tangent,
    "twin-uniform": _twin_uniform,
}
