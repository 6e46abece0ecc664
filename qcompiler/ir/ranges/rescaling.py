"""Ranges of what rounds to another scale, by the op's own reference kernel at both ends: requantize, add, clamp, tables, codes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from qcompiler.errors import VerificationError
from qcompiler.ir.edit import argument
from qcompiler.ir.provenance import describe
from qcompiler.ir.ranges.bounds import (
    INT32_RANGE,
    Bounds,
    Known,
    at_ends,
    check_add_multiplier,
    check_high_multiplier,
    check_limits,
    check_parameter,
    constant_of,
    prove_pre_shift,
    require,
    type_range,
)

_TABLE_ENTRIES = 256


def requantize(node: fx.Node, known: Known) -> Bounds:
    """Monotone: both ends, after the form's own proof that no step overflows."""
    x = known[argument(node, "x")]
    a = x.minus(argument(node, "input_zero_point"))
    require(node, a, INT32_RANGE, "x - input_zero_point", "use a smaller input zero point")
    _FORMS[argument(node, "form")](node, a)
    check_limits(node)
    return at_ends(node, {"x": x})


def _prove_high(node: fx.Node, a: Bounds) -> None:
    check_parameter(node, "shift", 1, 30)
    check_high_multiplier(node, "multiplier")
    prove_pre_shift(node, a, "pre_shift")


def _prove_narrow(node: fx.Node, a: Bounds) -> None:
    pre_shift = check_parameter(node, "pre_shift", 0, 31)
    check_parameter(node, "shift", 0, 15)
    check_parameter(node, "multiplier", 0, (1 << 15) - 1)
    half = (torch.ones_like(pre_shift) << pre_shift) >> 1
    require(node, Bounds(a.low, a.high + half), INT32_RANGE, "a + 2^(pre_shift - 1)", "use the form 'high'")


def _prove_exact64(node: fx.Node, a: Bounds) -> None:
    # |a m| + 2^61 < 2^62 + 2^61 fits int64 for every int32 a.
    check_parameter(node, "pre_shift", 0, 0)
    check_parameter(node, "shift", 0, 62)
    check_parameter(node, "multiplier", 0, (1 << 31) - 1)


_FORMS: dict[str, Callable[[fx.Node, Bounds], None]] = {"high": _prove_high, "narrow": _prove_narrow, "exact64": _prove_exact64}


def add(node: fx.Node, known: Known) -> Bounds:
    """Monotone in each operand; with a negative multiplier its ends change places."""
    operands = {name: known[argument(node, name)] for name in ("a", "b")}
    shift = argument(node, "shift")
    if not 1 <= shift <= 31:
        raise VerificationError(f"{describe(node)}: shift is {shift}, outside [1, 31]; choose the multipliers anew")
    low, high = torch.tensor(1 << (shift - 1)), torch.tensor(1 << (shift - 1))
    for name, bounds in list(operands.items()):
        centred = bounds.minus(argument(node, f"zero_point_{name}"))
        require(node, centred, INT32_RANGE, f"{name} - zero_point_{name}", "use a smaller zero point")
        multiplier = check_add_multiplier(node, f"multiplier_{name}")
        # Proven before the ends are exchanged: afterwards the low one may be the larger.
        shifted = prove_pre_shift(node, centred, f"pre_shift_{name}").rising_with(multiplier)
        operands[name] = bounds.rising_with(multiplier)
        # High halves as arithmetic.residual_add takes them; both fit int64 for int32 factors.
        low, high = low + (shifted.low * multiplier >> 32), high + (shifted.high * multiplier >> 32)
    require(
        node, Bounds(low, high), INT32_RANGE, "the sum of both high halves and the rounding term", "choose smaller pre-shifts and shift"
    )
    check_limits(node)
    return at_ends(node, operands)


def clamp(node: fx.Node, known: Known) -> Bounds:
    """Monotone."""
    low, high, limits = argument(node, "low"), argument(node, "high"), torch.iinfo(node.meta["val"].dtype)
    if low > high or low > limits.max or high < limits.min:
        raise VerificationError(f"{describe(node)}: no value of its type lies in [{low}, {high}]; correct low and high")
    return at_ends(node, {"x": known[argument(node, "x")]})


def lookup(node: fx.Node, known: Known) -> Bounds:
    """The entries that the indices reach."""
    operand = argument(node, "x")
    x = known[operand].along(min(1, known[operand].low.ndim - 1))
    table, first = constant_of(node, "table"), torch.iinfo(operand.meta["val"].dtype).min
    if table.shape[-1] != _TABLE_ENTRIES:
        raise VerificationError(f"{describe(node)}: its table has {table.shape[-1]} entries; give one for each of the 256 values")
    entries = torch.arange(first, first + _TABLE_ENTRIES)
    reached = (entries >= x.low[:, None]) & (entries <= x.high[:, None])
    limits = torch.iinfo(torch.int64)
    low = table.masked_fill(~reached, limits.max).amin(1)
    high = table.masked_fill(~reached, limits.min).amax(1)
    shape = (1, -1, *[1] * (known[operand].low.ndim - 2)) if known[operand].low.ndim > 1 else (-1,)
    bounds = Bounds(low.reshape(shape), high.reshape(shape))
    require(node, bounds, type_range(node), "the table", "rebuild it for the type that the op declares")
    return bounds


def bucketize(node: fx.Node, known: Known) -> Bounds:
    """Monotone: as many codes as there are boundaries, and one."""
    boundaries, bits = constant_of(node, "boundaries"), argument(node, "bits")
    if bool((boundaries.diff() < 0).any()) or boundaries.numel() >= 1 << bits:
        raise VerificationError(f"{describe(node)}: its {boundaries.numel()} boundaries are not sorted, or too many for {bits} bits")
    return at_ends(node, {"x": known[argument(node, "x")]})
