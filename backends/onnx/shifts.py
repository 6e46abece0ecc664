"""Exact arithmetic on two's-complement integers with ONNX ops, whose BitShift knows unsigned integers only.

For ``|x| < 2^(w-1)``, w the width::

    x >> s  =  ((x + 2^(w-1)) >> s, unsigned)  -  (2^(w-1) >> s)

because 2^(w-1) is a multiple of 2^s and an integer commutes with floor. The sum is taken modulo 2^w, so it never overflows. Where a
constant is added before the shift or after it anyway (a rounding term, a zero point), the biases join it and cost nothing.
"""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.backends.onnx.graph import BOOL, INT32, INT64, UINT32, UINT64, GraphWriter

UNSIGNED = {INT32: UINT32, INT64: UINT64}
WIDTH = {INT32: 32, UINT32: 32, INT64: 64, UINT64: 64}
Amount = ir.Value | int


def shift_right(w: GraphWriter, x: ir.Value, amount: Amount) -> ir.Value:
    """``floor(x / 2^amount)`` of int32 or int64; amounts in 0..width - 1, a number or a tensor that broadcasts."""
    if isinstance(amount, int) and amount == 0:
        return x
    signed = _signed(x)
    unsigned = UNSIGNED[signed]
    half = w.constant(1 << (WIDTH[signed] - 1), unsigned)
    shifts = _amounts(w, amount, unsigned)
    shifted = w.op("BitShift", w.op("Add", w.cast(x, unsigned), half), shifts, direction="RIGHT")
    if isinstance(amount, int):
        bias = w.constant(1 << (WIDTH[signed] - 1 - amount), unsigned)
    else:
        bias = w.op("BitShift", half, shifts, direction="RIGHT")
    return w.cast(w.op("Sub", shifted, bias), signed)


def shift_left(w: GraphWriter, x: ir.Value, amount: Amount) -> ir.Value:
    """``x 2^amount`` modulo the width of int32 or int64."""
    signed = _signed(x)
    if isinstance(amount, int):
        return x if amount == 0 else w.op("Mul", x, w.constant(1 << amount, signed))
    unsigned = UNSIGNED[signed]
    return w.cast(w.op("BitShift", w.cast(x, unsigned), _amounts(w, amount, unsigned), direction="LEFT"), signed)


def floor_divide(w: GraphWriter, x: ir.Value, divisor: ir.Value) -> ir.Value:
    """``floor(x / divisor)``: Mod has the sign of the divisor, so the division of what is left of x has no remainder."""
    return w.op("Div", w.op("Sub", x, w.op("Mod", x, divisor)), divisor)


def extreme(w: GraphWriter, op_type: str, a: ir.Value, b: ir.Value) -> ir.Value:
    """``Min`` or ``Max``. Of int64 by a comparison: there onnxruntime's Min, Max and Clip take the low halves as signed (seen in 1.31)."""
    if a.dtype != INT64:
        return w.op(op_type, a, b)
    ahead = w.op("Less" if op_type == "Min" else "Greater", a, b, dtype=BOOL)
    return w.op("Where", ahead, a, b, dtype=INT64)


def clip(w: GraphWriter, x: ir.Value, low: ir.Value | None, high: ir.Value | None) -> ir.Value:
    """``min(max(x, low), high)``; a bound that is None does not bind."""
    if x.dtype != INT64:
        return w.op("Clip", x, low, high)
    for op_type, bound in (("Max", low), ("Min", high)):
        x = x if bound is None else extreme(w, op_type, x, bound)
    return x


def bit_length(w: GraphWriter, x: ir.Value) -> ir.Value:
    """int32: bits of x >= 0, the number of powers of two that are at most x."""
    signed = _signed(x)
    powers = w.constant([1 << k for k in range(WIDTH[signed] - 1)], signed, "powers_of_two")
    wide = w.op("Unsqueeze", x, w.axes(-1))
    reached = w.cast(w.op("GreaterOrEqual", wide, powers, dtype=BOOL), INT32)
    return w.op("ReduceSum", reached, w.axes(-1), keepdims=0)


def _amounts(w: GraphWriter, amount: Amount, unsigned: ir.DataType) -> ir.Value:
    return w.constant(amount, unsigned) if isinstance(amount, int) else w.cast(amount, unsigned)


def _signed(x: ir.Value) -> ir.DataType:
    assert x.dtype in UNSIGNED, x.dtype
    return x.dtype
