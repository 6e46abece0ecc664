"""Powers of two, reciprocals and the papers' exponentials on vectors of int32: the formulas of ``arithmetic`` one to one."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx.script import builder as T

from qcompiler.arithmetic.exponential import FRACTION_BITS, ONE, POLYNOMIAL
from qcompiler.arithmetic.reciprocal import DIVISION_STEPS, RECIPROCAL_START, RECIPROCAL_STEPS
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates import vectors as v
from qcompiler.backends.tvm.templates.emission import Expr


def shift_right(x: Expr, amount: int) -> Expr:
    """All lanes by the same number."""
    return T.Bind(T.shift_right(x, v.like(x, amount)))


def shift_left(x: Expr, amount: int) -> Expr:
    """All lanes by the same number."""
    return T.Bind(T.shift_left(x, v.like(x, amount)))


def fixed_point(difference: Expr, constants: Sequence[int]) -> Expr:
    """``arithmetic.exponential.fixed_point``."""
    multiplier, shift, limit = constants
    bounded = v.minimum(difference, v.like(difference, limit))
    return shift_right(T.Bind(bounded * v.like(bounded, multiplier) + v.like(bounded, 1 << (shift - 1))), shift)


def power(z: Expr, form: str, fraction_bits: int = FRACTION_BITS) -> Expr:
    """``arithmetic.exponential.power``."""
    exponent, fraction = shift_right(z, FRACTION_BITS), T.Bind(T.bitwise_and(z, v.like(z, ONE - 1)))
    mantissa = {"shift": _mantissa_shift, "poly": _mantissa_poly}[form](fraction)
    rounding = shift_right(T.Bind(T.shift_left(v.like(z, 1), exponent)), 1)
    scaled = shift_left(mantissa, fraction_bits - FRACTION_BITS) if fraction_bits > FRACTION_BITS else mantissa
    return T.Bind(T.shift_right(T.Bind(scaled + rounding), exponent))


def _mantissa_shift(fraction: Expr) -> Expr:
    chord = v.minimum(fraction, T.Bind(v.like(fraction, ONE) - fraction))
    return T.Bind(v.like(fraction, ONE) - shift_right(T.Bind(fraction + shift_right(T.Bind(chord + shift_left(chord, 1)), 4)), 1))


def _mantissa_poly(fraction: Expr) -> Expr:
    first, second = POLYNOMIAL
    bow = shift_right(T.Bind(fraction * T.Bind(v.like(fraction, ONE) - fraction)), FRACTION_BITS)
    slope = T.Bind(v.like(fraction, first) - shift_right(T.Bind(fraction * v.like(fraction, second)), FRACTION_BITS))
    bend = shift_right(T.Bind(bow * slope), FRACTION_BITS - 1)
    return shift_right(T.Bind(v.like(fraction, 2 * ONE + 1) - fraction - bend), 1)


def newton_reciprocal(f: Expr) -> Expr:
    """``arithmetic.reciprocal.newton_reciprocal``."""
    y = T.Bind(v.like(f, RECIPROCAL_START) - f)
    for _ in range(RECIPROCAL_STEPS):
        correction = T.Bind(v.like(f, 65536) - shift_right(T.Bind(f * y), 14))
        y = shift_right(T.Bind(y * correction), 15)
    return y


def wide_reciprocal(f: Expr) -> Expr:
    """``arithmetic.reciprocal.wide_reciprocal`` of uint64 lanes; every factor is below 2^32."""
    y = shift_left(e.cast(newton_reciprocal(e.cast(shift_right(f, 16), "int32")), "uint64"), 16)
    for _ in range(DIVISION_STEPS):
        correction = shift_right(T.Bind(v.like(f, 1 << 62) - v.low_product(f, y)), 31)
        y = shift_right(v.low_product(y, correction), 30)
    return y


def quotient(magnitude: Expr, step: int) -> tuple[Expr, Expr]:
    """``magnitude // -step`` and the rest, for magnitudes >= 0 and a negative step: the floors of the papers, both signs turned."""
    result = T.Bind(T.truncdiv(magnitude, v.like(magnitude, -step)))
    return result, T.Bind(magnitude - result * v.like(result, -step))


def shift_exponential(magnitude: Expr, step: int, n: int) -> Expr:
    """``arithmetic.i_vit.shift_exponential`` of p = -magnitude <= 0, as uint32 lanes."""
    p = T.Bind(v.like(magnitude, 0) - magnitude)
    scaled = T.Bind(p + shift_right(p, 1) - shift_right(p, 4))
    q, rest = quotient(v.minimum(T.Bind(v.like(p, 0) - scaled), v.like(p, -n * step)), step)
    mantissa = e.cast(T.Bind(v.like(rest, -2 * step) - rest), "uint32")
    return shift_right(T.Bind(T.shift_left(mantissa, e.cast(T.Bind(v.like(q, n) - q), "uint32"))), 1)


def polynomial(magnitude: Expr, constants: Sequence[int], n: int) -> tuple[Expr, Expr]:
    """``arithmetic.i_bert.polynomial`` of p = -magnitude <= 0; its result fits int32."""
    step, b, c = constants
    q, rest = quotient(v.minimum(magnitude, v.like(magnitude, -n * step)), step)
    value = T.Bind(v.like(rest, c) - rest * T.Bind(v.like(rest, b) - rest))
    return v.maximum(value, v.like(value, 0)), q
