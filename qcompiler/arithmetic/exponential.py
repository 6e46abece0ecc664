r"""Powers of two of fixed-point numbers: what every ``shift`` and ``poly`` form of a non-linear function stands on.

A difference d >= 0 of integers that stands for ``d * factor`` in base 2 becomes fixed point with 15 fraction bits, then a power::

    z = (min(d, limit) * multiplier + 2^(shift-1)) >> shift          ~ d * factor * 2^15
    n = z >> 15        f = z & (2^15 - 1)        m = mantissa(f)      ~ 2^15 * 2^(-f / 2^15), in [2^14, 2^15]
    2^-z              ~ m >> n

``mantissa`` is the form. ``shift`` (two chords; only shifts and additions), with g = min(f, 2^15 - f)::

    m = 2^15 - ((f + ((g + (g << 1)) >> 4)) >> 1)                     within -0.6 % .. +1.3 %

I-ViT (arXiv 2207.01405, section 3.3) takes one chord, ``m = 2^15 - (f >> 1)``, which is up to 6.1 % too large. ``poly`` (third order,
exact at both ends, 2^-u = 1 - u/2 - u (1 - u) (c0 - c1 u) with c0 = ln 2 - 1/2)::

    m = (2^16 - f - (g (C0 - ((C1 f) >> 15)) >> 14) + 1) >> 1         g = (f (2^15 - f)) >> 15, within 1.5e-4

I-BERT (arXiv 2101.01321, section 3.5) takes a second order, within 1.9e-3. Every intermediate fits int32 (``docs/arithmetic.md``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qcompiler.errors import VerificationError

FRACTION_BITS = 15
ONE = 1 << FRACTION_BITS
LARGEST_EXPONENT = 30  # of the power 2^-n: a shift of 31 and more means something else on every machine
POLYNOMIAL = (6270, 1275)  # C0 and C1 of least error, found by trying all: near 2^15 (ln 2 - 1/2) and 2^15 0.0397
_INT32_MAX = (1 << 31) - 1


def base2_constants(factor: float, reach: float, largest: int, fraction_bits: int = FRACTION_BITS) -> tuple[int, int, int]:
    """``(multiplier, shift, limit)`` of the module's formula for differences of 0..``largest``; the most precise that int32 holds.

    From ``limit`` on all differences are taken for it: their products with ``factor`` are at least ``reach``, or the next would pass 30.
    """
    factor = min(factor, float(LARGEST_EXPONENT))
    limit = min(largest, math.floor(reach / factor) + 1)
    if limit > 1 and limit * factor > LARGEST_EXPONENT:
        limit -= 1
    for shift in range(30, 0, -1):
        multiplier = round(math.ldexp(factor, fraction_bits + shift))
        if limit * multiplier + (1 << (shift - 1)) <= _INT32_MAX:
            return multiplier, shift, limit
    raise VerificationError(f"no fixed point for differences of up to {largest} steps of {factor:.6g}: use a smaller scale")


def check_base2(constants: Sequence[int], fraction_bits: int = FRACTION_BITS) -> None:
    """Raise VerificationError unless ``(multiplier, shift, limit)`` keep every step in int32 and the exponent at 30 or less."""
    multiplier, shift, limit = constants
    inside = multiplier >= 0 and limit >= 0 and 1 <= shift <= 30
    if (
        not inside
        or limit * multiplier + (1 << (shift - 1)) > _INT32_MAX
        or (limit * multiplier) >> (shift + fraction_bits) > LARGEST_EXPONENT
    ):
        raise VerificationError(f"the constants {multiplier}, {shift}, {limit} of its exponential leave int32: choose them by arithmetic")


def fixed_point(difference: Tensor, constants: Sequence[int]) -> Tensor:
    """``(min(d, limit) * multiplier + 2^(shift-1)) >> shift`` in int32, d >= 0."""
    multiplier, shift, limit = constants
    return (difference.to(torch.int32).clamp(max=limit) * multiplier + (1 << (shift - 1))) >> shift


def mantissa_shift(fraction: Tensor) -> Tensor:
    """The module's formula ``shift``: int32 in [2^14, 2^15]."""
    chord = torch.minimum(fraction, ONE - fraction)
    return ONE - ((fraction + ((chord + (chord << 1)) >> 4)) >> 1)


def mantissa_poly(fraction: Tensor) -> Tensor:
    """The module's formula ``poly``: int32 in [2^14, 2^15]."""
    first, second = POLYNOMIAL
    bow = (fraction * (ONE - fraction)) >> FRACTION_BITS
    slope = first - ((second * fraction) >> FRACTION_BITS)
    return (2 * ONE - fraction - ((bow * slope) >> (FRACTION_BITS - 1)) + 1) >> 1


MANTISSAS: dict[str, Callable[[Tensor], Tensor]] = {"shift": mantissa_shift, "poly": mantissa_poly}


def power(z: Tensor, form: str, fraction_bits: int = FRACTION_BITS) -> Tensor:
    """``2^-z`` with ``fraction_bits`` (15..30) of its own, rounded to nearest; z >= 0 has 15 and stays under 31."""
    exponent, mantissa = z >> FRACTION_BITS, MANTISSAS[form](z & (ONE - 1))
    rounding = (torch.ones_like(exponent) << exponent) >> 1
    return ((mantissa << (fraction_bits - FRACTION_BITS)) + rounding) >> exponent
