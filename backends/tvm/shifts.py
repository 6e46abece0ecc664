"""Shifts by amounts that are only known at run time.

TVM's bound analysis takes an unknown amount to lie anywhere in its type and then derives wrong bounds: it has replaced
``clamp((x + (1 << (s - 2))) >> (s - 1), 0, 255)`` by 0. Amounts are therefore masked to the bits that a shift can use, which changes
no amount that is legal and lets the analysis see its range.
"""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Expr


def amount(value: Expr) -> Expr:
    """``value`` in [0, bits of its dtype), provably."""
    dtype = value.ty.dtype
    return value & tirx.const(63 if dtype == "int64" else 31, dtype)


def rounding_shift(value: Expr, shift: Expr) -> Expr:
    """(value + 2^(shift-1)) >> shift; shift 0 has no rounding term."""
    one, bounded = tirx.const(1, value.ty.dtype), amount(shift)
    return (value + ((one << bounded) >> one)) >> bounded
