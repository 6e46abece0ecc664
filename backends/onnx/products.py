"""Convolutions, linear layers and products of activations: ConvInteger and MatMulInteger, with unsigned operands only.

onnxruntime multiplies unsigned by signed bytes with an instruction that saturates pairs of products at 16 bits where the processor has no
VNNI, and int8 weights of the whole range reach that. Unsigned by unsigned bytes it multiplies exactly everywhere, so signed operands
move up by 128 and have the zero point 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import torch

from qcompiler import arithmetic
from qcompiler.backends.onnx.graph import INT8, INT16, INT32, UINT8, UINT32, GraphWriter
from qcompiler.backends.onnx.writers import Call, Operand, Registry
from qcompiler.errors import UnsupportedOpError

WRITERS = Registry()
_SIGN = 128


@dataclass(frozen=True)
class _Byte:
    """uint8 integers that stand for ``(value - zero_point) 2^position``."""

    value: ir.Value
    zero_point: int
    position: int


@WRITERS.writes("qc.convolution.default")
def convolution(w: GraphWriter, call: Call) -> ir.Value:
    """``conv(x - pad_value) + bias + pad_value sum(weight)``: ConvInteger pads with the zero point of x, which is the pad value."""
    weight, bias = call.parameter("weight"), call.parameter("bias").to(torch.int64)
    top, bottom, left, right = call["padding"]
    origin = int(call["pad_value"]) if any(call["padding"]) else 0
    if not _holds(call.operand("x"), origin):
        raise UnsupportedOpError(
            f"it pads {call.operand('x').meta.dtype} with {origin}, which that dtype does not hold: pad with a value of it"
        )
    (x,) = _bytes(w, call.value("x"), origin)
    accumulator = w.op(
        "ConvInteger",
        x.value,
        w.constant(_unsigned(weight), UINT8, "weight"),
        w.constant(x.zero_point, UINT8),
        w.constant(_SIGN, UINT8),
        dtype=INT32,
        strides=list(call["stride"]),
        pads=[top, left, bottom, right],
        dilations=list(call["dilation"]),
        group=int(call["groups"]),
    )
    offset = bias + origin * weight.sum((1, 2, 3), dtype=torch.int64)
    return w.op("Add", accumulator, w.constant(offset.to(torch.int32).reshape(-1, 1, 1), INT32, "bias"))


@WRITERS.writes("qc.scale_groups.default")
def scale_groups(w: GraphWriter, call: Call) -> Operand:
    """The int8 weight that codes and factors stand for, as a constant."""
    weight = arithmetic.scale_groups(call.parameter("codes"), call.parameter("factors"), int(call["length"]))
    return Operand(call.result, lambda: w.constant(weight, INT8, "weight"), weight)


@WRITERS.writes("qc.linear.default")
def linear(w: GraphWriter, call: Call) -> ir.Value:
    """``x @ weight^T + bias``, inputs of 16 bits byte by byte."""
    weight = w.constant(_unsigned(call.parameter("weight")).t(), UINT8, "weight")
    column = _Byte(weight, _SIGN, 0)
    products = [_product(w, part, column) for part in _bytes(w, call.value("x"), 0)]
    return w.op("Add", _total(w, products), w.constant(call.parameter("bias"), INT32, "bias"))


@WRITERS.writes("qc.matmul.default")
def matmul(w: GraphWriter, call: Call) -> ir.Value:
    """``(a - zero_point_a) @ (b - zero_point_b)``, operands of 16 bits byte by byte; in int32 where no byte holds a zero point."""
    if not all(_holds(call.operand(name), int(call[f"zero_point_{name}"])) for name in ("a", "b")):
        return w.op("MatMul", *(centred(w, call.value(name), int(call[f"zero_point_{name}"])) for name in ("a", "b")))
    left = _bytes(w, call.value("a"), int(call["zero_point_a"]))
    right = _bytes(w, call.value("b"), int(call["zero_point_b"]))
    return _total(w, [_product(w, a, b) for a in left for b in right])


@WRITERS.writes("qc.multiply.default")
def multiply(w: GraphWriter, call: Call) -> ir.Value:
    """``(a - zero_point_a) (b - zero_point_b)`` in int32."""
    return w.op("Mul", *(centred(w, call.value(name), int(call[f"zero_point_{name}"])) for name in ("a", "b")))


def centred(w: GraphWriter, x: ir.Value, zero_point: int) -> ir.Value:
    """``x - zero_point`` in int32."""
    wide = w.cast(x, INT32)
    return w.op("Sub", wide, w.constant(zero_point, INT32)) if zero_point else wide


def _holds(x: Operand, value: int) -> bool:
    """Whether the dtype of x has the value."""
    limits = torch.iinfo(x.meta.dtype)
    return bool(limits.min <= value <= limits.max)


def _product(w: GraphWriter, a: _Byte, b: _Byte) -> ir.Value:
    zero_points = (w.constant(part.zero_point, UINT8) for part in (a, b))
    product = w.op("MatMulInteger", a.value, b.value, *zero_points, dtype=INT32)
    position = a.position + b.position
    return w.op("Mul", product, w.constant(1 << position, INT32)) if position else product


def _bytes(w: GraphWriter, x: ir.Value, zero_point: int) -> list[_Byte]:
    """``x - zero_point`` as unsigned bytes. A zero point of 16 bits has bytes too: ``z = 2^8 (z >> 8) + (z & 255)``."""
    if x.dtype == UINT8:
        return [_Byte(x, zero_point, 0)]
    moved = w.op("Add", w.cast(x, INT32), w.constant(_SIGN if x.dtype == INT8 else _SIGN << 8, INT32))
    if x.dtype == INT8:
        return [_Byte(w.cast(moved, UINT8), zero_point + _SIGN, 0)]
    assert x.dtype == INT16
    high = w.op("BitShift", w.cast(moved, UINT32), w.constant(8, UINT32), direction="RIGHT")
    return [_Byte(w.cast(high, UINT8), (zero_point >> 8) + _SIGN, 8), _Byte(w.cast(moved, UINT8), zero_point & 255, 0)]


def _total(w: GraphWriter, parts: list[ir.Value]) -> ir.Value:
    total = parts[0]
    for part in parts[1:]:
        total = w.op("Add", total, part)
    return total


def _unsigned(weight: torch.Tensor) -> torch.Tensor:
    """int8 moved up by 128."""
    return (weight.to(torch.int16) + _SIGN).to(torch.uint8)
