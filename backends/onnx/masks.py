"""Comparisons, masks, casts and positions of maxima."""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.backends.onnx.graph import BOOL, FLOAT, INT8, INT16, INT32, INT64, UINT8, GraphWriter
from qcompiler.backends.onnx.writers import Call, Registry

WRITERS = Registry()
_COMPARISONS = {"eq": "Equal", "ne": "Equal", "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual"}


@WRITERS.writes(*(f"aten.{name}.Scalar" for name in _COMPARISONS))
def compare(w: GraphWriter, call: Call) -> ir.Value:
    """With a number, in int64: every integer dtype and every number that a model writes fits."""
    x = call.value("self")
    wide = x if x.dtype == FLOAT else w.cast(x, INT64)
    assert wide.dtype is not None
    return compared(w, call.target.split(".")[1], wide, w.constant(call["other"], wide.dtype))


@WRITERS.writes(*(f"aten.{name}.Tensor" for name in _COMPARISONS))
def compare_tensors(w: GraphWriter, call: Call) -> ir.Value:
    """Element by element, in the wider of both dtypes."""
    a, b = call.value("self"), call.value("other")
    if a.dtype != b.dtype:
        common = FLOAT if FLOAT in (a.dtype, b.dtype) else INT64
        a, b = w.cast(a, common), w.cast(b, common)
    return compared(w, call.target.split(".")[1], a, b)


def compared(w: GraphWriter, name: str, a: ir.Value, b: ir.Value) -> ir.Value:
    """The comparison that torch calls ``name``."""
    result = w.op(_COMPARISONS[name], a, b, dtype=BOOL)
    return w.op("Not", result) if name == "ne" else result


@WRITERS.writes("aten.logical_not.default", "aten.bitwise_not.default")
def logical_not(w: GraphWriter, call: Call) -> ir.Value:
    """Of masks."""
    return w.op("Not", w.cast(call.value("self"), BOOL))


@WRITERS.writes("aten.logical_and.default", "aten.bitwise_and.Tensor", "aten.__and__.Tensor")
def logical_and(w: GraphWriter, call: Call) -> ir.Value:
    """Of masks."""
    return w.op("And", *(w.cast(call.value(name), BOOL) for name in ("self", "other")))


@WRITERS.writes("aten.bitwise_or.Tensor", "aten.logical_or.default", "aten.__or__.Tensor")
def logical_or(w: GraphWriter, call: Call) -> ir.Value:
    """Of masks."""
    return w.op("Or", *(w.cast(call.value(name), BOOL) for name in ("self", "other")))


@WRITERS.writes("aten.to.dtype", "aten._to_copy.default")
def convert(w: GraphWriter, call: Call) -> ir.Value:
    """Between dtypes."""
    return w.cast(call.value("self"), call.dtype)


@WRITERS.writes("aten.argmax.default")
def argmax(w: GraphWriter, call: Call) -> ir.Value:
    """The first of several maxima; without a dimension the position in the flattened tensor."""
    x = call.value("self")
    if x.dtype == INT16:
        x = w.cast(x, INT32)
    assert x.dtype in (INT8, UINT8, INT32, INT64, FLOAT)
    if call["dim"] is None:
        flat = w.op("ArgMax", w.op("Reshape", x, w.axes(-1)), dtype=INT64, axis=0, keepdims=0)
        return w.op("Reshape", flat, w.axes(*[1] * call.result.dim())) if call["keepdim"] else flat
    return w.op("ArgMax", x, dtype=INT64, axis=call["dim"], keepdims=int(call["keepdim"]))
