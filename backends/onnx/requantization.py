"""``qc.requantize`` in its three forms and ``qc.add``: one unsigned shift for each rounding, every other addition folded into a constant.

The formulas are those of docs/arithmetic.md, sections 2 and 4. With parameters known, ``(x - z) M + r + 2^63`` is ``x M + c`` for one
constant c modulo 2^64, and the bias of the shift leaves with the zero point of the result.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from torch import Tensor

from qcompiler.backends.onnx import shifts
from qcompiler.backends.onnx.graph import INT32, INT64, UINT32, UINT64, GraphWriter
from qcompiler.backends.onnx.writers import Call, Registry

WRITERS = Registry()
_Integers = np.ndarray  # of Python integers: no width to think of
_SATURATION_LOW, _SATURATION_HIGH = -(1 << 15), (1 << 15) - 1
_LEAST_SHIFT_TO_INT32 = 34  # of 64 bits: what is left, and the bias with it, fits int32


@WRITERS.writes("qc.requantize.default")
def requantize(w: GraphWriter, call: Call) -> ir.Value:
    """``clamp(y + zero_point, low, high)`` with y by the form."""
    pre_shift, multiplier, shift = (_integers(call.parameter(name)) for name in ("pre_shift", "multiplier", "shift"))
    x, origin = call.value("x"), int(call["input_zero_point"])
    if call["form"] == "narrow":
        shifted, bias = _narrow(w, x, origin, pre_shift, multiplier, shift)
    elif call["form"] == "high":
        shifted, bias = _scaled(w, x, origin, multiplier << pre_shift, shift + 32)
    else:
        shifted, bias = _scaled(w, x, origin, multiplier, shift)
    return _saturate(w, call, shifted, bias)


@WRITERS.writes("qc.add.default")
def add(w: GraphWriter, call: Call) -> ir.Value:
    """``clamp((t_a + t_b + 2^(s-1)) >> s) + zero_point, low, high)``, t the high half of a product of each operand."""
    shift = int(call["shift"])
    # The rounding term of the sum enters one operand before its floor: it is a whole number of that floor's units.
    first = _high_half(w, call, "a", 1 << (shift - 1))
    second = _high_half(w, call, "b", 0)
    total = w.op("Add", first, second)  # t_a + t_b + 2^32 and the rounding
    shifted = w.op("BitShift", total, w.constant(shift, UINT64), direction="RIGHT")
    narrow = shift >= 3  # the bias 2^(32 - shift) and the result fit int32
    return _saturate(w, call, w.cast(shifted, INT32 if narrow else INT64), _integers_of(1 << (32 - shift)))


def _high_half(w: GraphWriter, call: Call, name: str, rounding: int) -> ir.Value:
    """``(((x - zero_point) << l) m >> 32) + rounding + 2^31`` as uint64."""
    multiplier = _integers(call.parameter(f"multiplier_{name}")) << _integers(call.parameter(f"pre_shift_{name}"))
    offset = (1 << 63) + (rounding << 32) - int(call[f"zero_point_{name}"]) * multiplier
    product = w.op("Mul", w.cast(call.value(name), UINT64), w.constant(multiplier, UINT64, f"multiplier_{name}"))
    total = w.op("Add", product, w.constant(offset, UINT64, f"offset_{name}"))
    return w.op("BitShift", total, w.constant(32, UINT64), direction="RIGHT")


def _scaled(w: GraphWriter, x: ir.Value, origin: int, multiplier: _Integers, shift: _Integers) -> tuple[ir.Value, _Integers]:
    """``((x - origin) multiplier + 2^(shift-1)) >> shift`` plus a bias, and that bias."""
    offset = (1 << 63) + _half_unit(shift) - origin * multiplier
    product = w.op("Mul", w.cast(x, UINT64), w.constant(multiplier, UINT64, "multiplier"))
    total = w.op("Add", product, w.constant(offset, UINT64, "offset"))
    shifted = w.op("BitShift", total, w.constant(shift, UINT64, "shift"), direction="RIGHT")
    dtype = INT32 if int(np.min(shift)) >= _LEAST_SHIFT_TO_INT32 else INT64
    return w.cast(shifted, dtype), (1 << 63) >> shift


def _narrow(
    w: GraphWriter, x: ir.Value, origin: int, pre_shift: _Integers, multiplier: _Integers, shift: _Integers
) -> tuple[ir.Value, _Integers]:
    """The 16-bit form in uint32, u carried with its bias: ``u m = (u + d) m - d m``."""
    offset = w.constant((1 << 31) + _half_unit(pre_shift) - origin, UINT32, "offset")
    biased = w.op("Add", w.cast(x, UINT32), offset)
    if np.any(pre_shift):
        biased = w.op("BitShift", biased, w.constant(pre_shift, UINT32, "pre_shift"), direction="RIGHT")
    bias = _collapsed((1 << 31) >> pre_shift)
    u = _clip(w, biased, bias + _SATURATION_LOW, bias + _SATURATION_HIGH)
    rounding = (_half_unit(shift) << 15) + (1 << 14)
    product = w.op("Mul", u, w.constant(multiplier, UINT32, "multiplier"))
    total = w.op("Add", product, w.constant((1 << 31) + rounding - bias * multiplier, UINT32, "rounding"))
    shifted = w.op("BitShift", total, w.constant(shift + 15, UINT32, "shift"), direction="RIGHT")
    return w.cast(shifted, INT32), (1 << 31) >> (shift + 15)


def _clip(w: GraphWriter, x: ir.Value, low: _Integers, high: _Integers) -> ir.Value:
    """Between bounds in uint32, which may lie under 0 (then they do not bind) and may differ by channel."""
    low, high = np.maximum(low, 0), np.minimum(high, (1 << 32) - 1)
    if np.size(low) == 1:
        return w.op("Clip", x, w.constant(low, UINT32, "low"), w.constant(high, UINT32, "high"))
    return w.op("Min", w.op("Max", x, w.constant(low, UINT32, "low")), w.constant(high, UINT32, "high"))


def _saturate(w: GraphWriter, call: Call, shifted: ir.Value, bias: _Integers) -> ir.Value:
    """``clamp(shifted - bias + zero_point, low, high)`` in the dtype of the result."""
    assert shifted.dtype is not None
    y = w.op("Sub", shifted, w.constant(_collapsed(bias - int(call["zero_point"])), shifted.dtype, "bias"))
    low, high = (w.constant(int(call[end]), shifted.dtype, end) for end in ("low", "high"))
    return w.cast(shifts.clip(w, y, low, high), call.dtype)


def _collapsed(values: _Integers | int) -> _Integers:
    """One number where all are equal: a scalar broadcasts faster."""
    flat = np.asarray(values, dtype=object).reshape(-1)
    return _integers_of(flat[0]) if all(value == flat[0] for value in flat) else np.asarray(values, dtype=object)


def _half_unit(shift: _Integers) -> _Integers:
    """``2^(shift-1)``, and 0 where ``shift`` is 0."""
    return _collapsed((_integers_of(1) << shift) >> 1)


def _integers(parameter: Tensor) -> _Integers:
    """As Python integers, one number where all are equal."""
    return _collapsed(np.asarray(parameter.cpu().numpy()).astype(object))


def _integers_of(value: int) -> _Integers:
    return np.asarray(value, dtype=object)
