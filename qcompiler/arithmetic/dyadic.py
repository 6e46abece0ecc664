"""The choice of dyadic parameters: from a real factor and a proven bound to shifts and a multiplier, with the error they cost.

Factors are non-negative float64 tensors (one entry per channel, or a single one); a bound says ``|a| <= bound < 2^31`` for the
integers that will be multiplied. Derivations stand in ``docs/arithmetic.md``, sections 2 to 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qcompiler.errors import VerificationError

Form = Literal["high", "narrow", "exact64"]
FORMS: tuple[Form, ...] = ("high", "narrow", "exact64")
Real = float | Sequence[float] | Tensor
Integer = int | Sequence[int] | Tensor

DYADIC_PARAMETERS = ("pre_shift", "multiplier", "shift")
"""The tensors of a ``Dyadic``, as ``qc.requantize`` and kernels name them too, in their order."""

OUTPUT_LIMIT_8_BITS = 255  # |y - zero_point| that an 8-bit output can show: beyond it the final clamp decides
_INT32_MAX = (1 << 31) - 1
_INT16_MAX = (1 << 15) - 1
_WANTED_SHIFT = 8  # of the high form: with it the error that the multiplier adds stays under 2^-9
_LARGEST_HIGH_SHIFT = 30
_LARGEST_NARROW_SHIFT = 15
_LARGEST_EXACT64_SHIFT = 62


@dataclass(frozen=True, eq=False)
class Dyadic:
    """Parameters of one requantization: ``form`` and three int32 tensors of one shape (see ``requantize`` for the formulas)."""

    form: Form
    pre_shift: Tensor
    multiplier: Tensor
    shift: Tensor

    def factor(self) -> Tensor:
        """The real factor that the integers stand for, exact in float64.

        high: ``m 2^(l-32-s)``; narrow: ``m 2^(-15-k-s)``; exact64: ``m 2^-s``.
        """
        exponent = {
            "high": self.pre_shift - 32 - self.shift,
            "narrow": -15 - self.pre_shift - self.shift,
            "exact64": -self.shift,
        }[self.form]
        return self.multiplier * _power_of_two(exponent)

    def error_bound(self, factor: Real, bound: Integer, limit: int | None = None) -> Tensor:
        """Worst ``|y - a * factor|`` in output steps over all integers ``|a| <= bound``, per entry, before the zero point is added.

        The rounding costs 1/2 (nothing where the multiplier is 0), the multiplier ``bound * |self.factor() - factor|``; the narrow form
        rounds twice more (``_narrow_rounding``).
        With ``limit`` both ``y`` and ``a * factor`` are taken clamped to [-limit, limit], as an output type does; the narrow form needs
        it wherever its 16 bits saturate.
        """
        real, magnitude = _arguments(factor, bound)
        reach = magnitude.double()
        if limit is not None:
            reach = torch.minimum(reach, limit / real)  # a factor of 0 gives infinity, hence the bound itself
        multiplier = reach * (self.factor() - real).abs() * (1 + 2.0**-50)  # the last term covers the roundings of this very line
        rounding = 0.5 + self._narrow_rounding() if self.form == "narrow" else torch.tensor(0.5, dtype=torch.float64)
        total = multiplier + torch.where(self.multiplier > 0, rounding, 0.0)
        # The sum itself may round a small first term away.
        return torch.where(multiplier > 0, torch.nextafter(total, torch.full_like(total, math.inf)), total)

    def _narrow_rounding(self) -> Tensor:
        """Output steps lost by rounding ``u`` (half a unit of ``m 2^(-15-s)`` steps) and ``t`` (half a unit of ``2^-s`` steps)."""
        half_t = 0.5 * _power_of_two(-self.shift)
        half_u = half_t * self.multiplier / (1 << 15)
        return torch.where(self.pre_shift > 0, half_u, 0.0) + torch.where(self.shift > 0, half_t, 0.0)


@dataclass(frozen=True, eq=False)
class ResidualDyadic:
    """Parameters of ``residual_add``: int32 tensors for each operand and the shift that both share."""

    pre_shift_a: Tensor
    multiplier_a: Tensor
    pre_shift_b: Tensor
    multiplier_b: Tensor
    shift: int

    def factors(self) -> tuple[Tensor, Tensor]:
        """The real factors that the integers stand for: ``m 2^(l-32-s)`` for each operand, exact in float64."""
        return (
            self.multiplier_a * _power_of_two(self.pre_shift_a - 32 - self.shift),
            self.multiplier_b * _power_of_two(self.pre_shift_b - 32 - self.shift),
        )

    def error_bound(self, factor_a: Real, bound_a: Integer, factor_b: Real, bound_b: Integer) -> Tensor:
        """Worst ``|y - (a * factor_a + b * factor_b)|`` in output steps over ``|a| <= bound_a``, ``|b| <= bound_b``.

        One rounding costs 1/2, the two floors at most ``2 * 2^-s``, the multipliers ``bound * |error of factor|`` each.
        """
        own_a, own_b = self.factors()
        (real_a, magnitude_a), (real_b, magnitude_b) = _arguments(factor_a, bound_a), _arguments(factor_b, bound_b)
        multipliers = magnitude_a * (own_a - real_a).abs() + magnitude_b * (own_b - real_b).abs()
        return 0.5 + 2.0 ** (1 - self.shift) + multipliers * (1 + 2.0**-50)


def choose(factor: Real, bound: Integer, form: str = "auto", tolerance: float = 0.02, limit: int = OUTPUT_LIMIT_8_BITS) -> Dyadic:
    """Parameters in the form asked for; ``auto`` takes the first of narrow, high, exact64 that serves every channel.

    Narrow serves where it is representable and its error bound stays within 1/2 + ``tolerance`` of an output step for outputs clamped
    to ``limit`` around the zero point. Raises VerificationError where a form that was asked for by name cannot represent a factor.
    """
    real, magnitude = _arguments(factor, bound)
    if form == "auto":
        return _choose_automatically(real, magnitude, tolerance, limit)
    if form == "high":
        return choose_high(real, magnitude)
    if form == "narrow":
        return choose_narrow(real, magnitude, limit)
    if form == "exact64":
        return choose_exact64(real)
    raise VerificationError(f"unknown form of requantization '{form}': use auto, {', '.join(FORMS)}")


def _choose_automatically(real: Tensor, magnitude: Tensor, tolerance: float, limit: int) -> Dyadic:
    narrow, served = _narrow(real, magnitude, limit)
    if bool(served.all()) and bool((narrow.error_bound(real, magnitude, limit) <= 0.5 + tolerance).all()):
        return narrow
    high, served = _high(real, magnitude)
    return high if bool(served.all()) else choose_exact64(real)


def choose_high(factor: Real, bound: Integer) -> Dyadic:
    """``m`` even in [2^30, 2^31) (or 0), the least ``l`` that allows ``s >= 8`` and keeps ``bound << l`` in int32, ``s`` in 1..30.

    Factors under 2^-32 give 0, as every int32 times them rounds to 0. Raises VerificationError where no such ``l`` exists, which needs
    outputs of more than 2^28.
    """
    real, magnitude = _arguments(factor, bound)
    chosen, served = _high(real, magnitude)
    return _require(chosen, served, real, magnitude)


def choose_narrow(factor: Real, bound: Integer, limit: int = OUTPUT_LIMIT_8_BITS) -> Dyadic:
    """``m`` in [2^14, 2^15) (or 0) and the least ``k`` (so the finest ``u``) for which saturating ``u`` cannot be seen.

    That is: ``u`` stays in int16 for all ``|a| <= bound``, or its saturated values give at least ``limit`` and at most ``-limit``, where
    the final clamp has decided already. ``a + 2^(k-1)`` fits int32 and ``s <= 15``. Raises VerificationError for factors of 1 and more,
    and where no ``k`` serves.
    """
    real, magnitude = _arguments(factor, bound)
    chosen, served = _narrow(real, magnitude, limit)
    return _require(chosen, served, real, magnitude)


def choose_exact64(factor: Real) -> Dyadic:
    """``m`` in [2^30, 2^31) and ``s`` in 0..62; factors under 2^-32 give 0, as every int32 times them rounds to 0."""
    real, magnitude = _arguments(factor, _INT32_MAX)
    multiplier, exponent = _normalize(real, 31)
    shift = -exponent
    underflow = shift > _LARGEST_EXACT64_SHIFT
    zero = (multiplier == 0) | underflow
    chosen = _dyadic("exact64", torch.zeros_like(shift), multiplier, shift, zero)
    return _require(chosen, zero | (shift >= 0), real, magnitude)


def choose_residual(factor_a: Real, bound_a: Integer, factor_b: Real, bound_b: Integer) -> ResidualDyadic:
    """Multipliers (even, under 2^31) and pre-shifts of both operands for the largest common ``s`` in 1..30 that 32 bits allow.

    Allowed means: ``bound << l`` fits int32 for both operands and every channel, and so does the sum
    ``bound_a factor_a 2^s + bound_b factor_b 2^s + 2^(s-1)``, with 2 units for the roundings of the multipliers.
    Raises VerificationError where not even ``s = 1`` is.
    """
    a, b = _arguments(factor_a, bound_a), _arguments(factor_b, bound_b)
    for shift in range(_LARGEST_HIGH_SHIFT, 0, -1):
        operand_a, operand_b = _residual_operand(*a, shift), _residual_operand(*b, shift)
        largest = float((a[0] * a[1]).max() + (b[0] * b[1]).max()) * 2.0**shift + 2.0 ** (shift - 1) + 2
        if operand_a is not None and operand_b is not None and largest < _INT32_MAX:
            return ResidualDyadic(*operand_a, *operand_b, shift)
    raise VerificationError(
        f"no 32-bit residual add for factors up to {float(a[0].max()):.6g} and {float(b[0].max()):.6g} with bounds {int(a[1].max())} and "
        f"{int(b[1].max())}: the sum may leave int32, requantize the operands first"
    )


def _residual_operand(real: Tensor, magnitude: Tensor, shift: int) -> tuple[Tensor, Tensor] | None:
    """Pre-shift and even multiplier of one operand, ``m = factor * 2^(32 + s - l)``; None where ``bound << l`` leaves int32."""
    half, exponent = _normalize(real, 30)
    pre_shift = exponent + 31 + shift
    # Where the pre-shift would be negative the multiplier takes fewer bits instead.
    small = (real * 2.0 ** (31 + shift)).round().clamp(max=(1 << 30) - 1).to(torch.int64)
    half, pre_shift = torch.where(pre_shift < 0, small, half), pre_shift.clamp(min=0)
    pre_shift = torch.where(half == 0, 0, pre_shift)
    if bool((pre_shift > _largest_pre_shift(magnitude)).any()):
        return None
    return pre_shift.to(torch.int32), (2 * half).to(torch.int32)


def _high(real: Tensor, magnitude: Tensor) -> tuple[Dyadic, Tensor]:
    """Parameters of the form high and, per entry, whether they serve."""
    half, exponent = _normalize(real, 30)  # real = 2 half * 2^(exponent - 1), 2 half = m
    least_difference = exponent + 31  # l - s, from l - 32 - s = exponent - 1
    limit = _largest_pre_shift(magnitude)
    pre_shift = torch.minimum((least_difference + _WANTED_SHIFT).clamp(min=0), limit)
    shift = pre_shift - least_difference
    zero = (half == 0) | (shift > _LARGEST_HIGH_SHIFT)  # a factor under 2^-32: every int32 times it rounds to 0
    return _dyadic("high", pre_shift, 2 * half, shift.clamp(min=1), zero), zero | (shift >= 1)


def _narrow(real: Tensor, magnitude: Tensor, limit: int) -> tuple[Dyadic, Tensor]:
    """Parameters of the form narrow and, per entry, whether they serve."""
    multiplier, exponent = _normalize(real, 15)
    total = -15 - exponent  # k + s
    pre_shift = torch.full_like(total, -1)
    for k in range(30, -1, -1):
        pre_shift = torch.where(_narrow_serves(multiplier, total, magnitude, k, limit), k, pre_shift)
    zero = (multiplier == 0) | ((pre_shift < 0) & (magnitude * real < 0.5))  # no k serves, but every product rounds to 0
    return _dyadic("narrow", pre_shift.clamp(min=0), multiplier, (total - pre_shift).clamp(min=0), zero), zero | (pre_shift >= 0)


def _narrow_serves(multiplier: Tensor, total: Tensor, magnitude: Tensor, k: int, limit: int) -> Tensor:
    """Whether pre-shift ``k`` is right: nothing overflows, and ``u`` saturates only where the final clamp has decided."""
    shift = total - k
    half = (1 << k) >> 1
    fits = (magnitude + half) >> k <= _INT16_MAX
    amount = shift.clamp(0, _LARGEST_NARROW_SHIFT)
    rounding = (((1 << amount) >> 1) << 15) + (1 << 14)
    # The positive side has the smaller magnitude: u = 2^15 - 1 gives at most what u = -2^15 gives.
    top = (_INT16_MAX * multiplier + rounding) >> (amount + 15)
    bottom = (-(_INT16_MAX + 1) * multiplier + rounding) >> (amount + 15)
    decided = (top >= limit) & (bottom <= -limit)
    return (fits | decided) & (magnitude + half <= _INT32_MAX) & (shift >= 0) & (shift <= _LARGEST_NARROW_SHIFT)


def _normalize(real: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """``real = multiplier * 2^exponent`` to the nearest, multiplier in [2^(bits-1), 2^bits) (0 for 0), both int64."""
    mantissa, exponent = torch.frexp(real)
    multiplier = (mantissa * 2.0**bits).round().to(torch.int64)
    carried = multiplier == 1 << bits
    multiplier = torch.where(carried, multiplier >> 1, multiplier)
    return multiplier, exponent.to(torch.int64) - bits + carried


def _power_of_two(exponent: Tensor) -> Tensor:
    """``2^exponent`` in float64, exactly (torch's own power is not promised to be), for exponents from -1022 to 1023."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def _largest_pre_shift(magnitude: Tensor) -> Tensor:
    """Largest ``l`` with ``magnitude << l < 2^31``: 31 less the bit length; 30 for a magnitude of 0."""
    _, bit_length = torch.frexp(magnitude.double())
    return (31 - bit_length.to(torch.int64)).clamp(max=30)


def _dyadic(form: Form, pre_shift: Tensor, multiplier: Tensor, shift: Tensor, zero: Tensor) -> Dyadic:
    """Where ``zero`` holds: multiplier 0 and the plainest shifts."""
    return Dyadic(
        form,
        torch.where(zero, 0, pre_shift).to(torch.int32),
        torch.where(zero, 0, multiplier).to(torch.int32),
        torch.where(zero, 1, shift).to(torch.int32),
    )


def _require(chosen: Dyadic, served: Tensor, real: Tensor, magnitude: Tensor) -> Dyadic:
    if bool(served.all()):
        return chosen
    where = int((~served).reshape(-1).nonzero()[0])
    advice = "raise the scale of the result" if chosen.form == "exact64" else "use the form 'auto'"
    raise VerificationError(
        f"the form '{chosen.form}' cannot multiply integers up to {int(magnitude.reshape(-1)[where])} by "
        f"{float(real.reshape(-1)[where]):.6g} (entry {where}): {advice}"
    )


def _arguments(factor: Real, bound: Integer) -> tuple[Tensor, Tensor]:
    """Factor as float64 and bound as int64, checked and of one shape: the factor's (for a single factor the largest bound counts)."""
    real = torch.as_tensor(factor, dtype=torch.float64)
    magnitude = torch.as_tensor(bound, dtype=torch.int64)
    if not bool((torch.isfinite(real) & (real >= 0)).all()):
        raise VerificationError("factors of a requantization must be finite and not negative: check the scales around it")
    if bool(((magnitude < 0) | (magnitude > _INT32_MAX)).any()):
        raise VerificationError(f"bounds of a requantization must lie in [0, {_INT32_MAX}]: its input must be proven to fit int32")
    if real.numel() == 1:
        magnitude = magnitude.max().reshape(real.shape)
    return real, magnitude.expand_as(real)
