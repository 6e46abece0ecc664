"""Where floats become integers and integers become floats again, as ``arithmetic.quantize`` and ``dequantize`` have it.

``QuantizeLinear`` divides by the scale; the formula of the compiler multiplies by the reciprocal, which float32 rounds otherwise now and
then. The exact form therefore multiplies first and quantizes with a scale of 1: nothing but the rounding is left to QuantizeLinear.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.backends.onnx.graph import FLOAT, INT8, INT16, INT32, UINT8, GraphWriter
from qcompiler.errors import UnsupportedOpError
from qcompiler.ir.types import IntegerType, QuantizedType

UINT16 = ir.DataType.UINT16
OPSET_OF_16_BITS = 21  # from here on QuantizeLinear knows int16


def quantize_exactly(w: GraphWriter, x: ir.Value, kind: QuantizedType, rank: int) -> ir.Value:
    """``clamp(rint(x float32(1 / scale)) + zero_point, low, high)`` in the storage dtype of ``kind``.

    Raises:
        UnsupportedOpError: 16 bits before opset 21, or more than 16 bits.
    """
    storage = quantized_dtype(w, kind.integer)
    shape = [1] * rank
    if kind.axis is not None:
        shape[kind.axis] = -1
    reciprocal = (np.float32(1) / np.asarray(kind.scale, np.float32)).reshape(shape if kind.axis is not None else ())
    scaled = w.op("Mul", x, w.constant(reciprocal, FLOAT, "reciprocal_of_scale"))
    unit = w.constant(np.ones(len(kind.zero_point), np.float32) if len(kind.zero_point) > 1 else np.float32(1), FLOAT, "unit")
    zero_point = w.constant(list(kind.zero_point) if len(kind.zero_point) > 1 else kind.zero_point[0], storage, "zero_point")
    attributes = {"axis": kind.axis} if kind.axis is not None and len(kind.zero_point) > 1 else {}
    quantized = w.op("QuantizeLinear", scaled, unit, zero_point, dtype=storage, **attributes)
    return narrowed(w, quantized, kind.integer)


def narrowed(w: GraphWriter, quantized: ir.Value, integer: IntegerType) -> ir.Value:
    """Clamped to fewer bits than the dtype has, and in the dtype that torch stores such integers in."""
    bits = 8 if quantized.dtype in (INT8, UINT8) else 16
    value = quantized if quantized.dtype in (INT8, UINT8) else w.cast(quantized, storage_dtype(integer))
    if integer.bits == bits:
        return value
    if value.dtype == INT16:  # onnxruntime has no Clip of 16 bits
        return w.cast(_clip(w, w.cast(value, INT32), integer), INT16)
    return _clip(w, value, integer)


def dequantize(w: GraphWriter, x: ir.Value, kind: QuantizedType) -> ir.Value:
    """``float32(q - zero_point) scale``; zero points only where DequantizeLinear has them, else they are subtracted before."""
    scales = w.constant(np.asarray(kind.scale if kind.axis is not None else kind.scale[0], np.float32), FLOAT, "scale")
    zero_points = np.broadcast_to(np.asarray(kind.zero_point, np.int64), (len(kind.scale),))
    attributes = {"axis": kind.axis} if kind.axis is not None else {}
    if x.dtype in (UINT8, INT8, UINT16) or (x.dtype == INT16 and w.opset >= OPSET_OF_16_BITS):
        offsets = w.constant(zero_points if kind.axis is not None else zero_points[0], x.dtype, "zero_point")
        return w.op("DequantizeLinear", x, scales, offsets, dtype=FLOAT, **attributes)
    wide = w.cast(x, INT32)
    if zero_points.any():
        offset = zero_points[0] if len(set(zero_points.tolist())) == 1 else None
        if offset is None:
            raise UnsupportedOpError("zero points that differ by channel beyond 8 bits have no form in ONNX: quantize symmetrically")
        wide = w.op("Sub", wide, w.constant(offset, INT32, "zero_point"))
    return w.op("DequantizeLinear", wide, scales, dtype=FLOAT, **attributes)


def storage_dtype(integer: IntegerType) -> ir.DataType:
    """As torch stores it: unsigned 9 to 16 bits in int32."""
    if integer.bits <= 8:
        return INT8 if integer.signed else UINT8
    return INT16 if integer.signed and integer.bits <= 16 else INT32


def quantized_dtype(w: GraphWriter, integer: IntegerType) -> ir.DataType:
    """The narrowest dtype of QuantizeLinear that holds the integers."""
    if integer.bits <= 8:
        return INT8 if integer.signed else UINT8
    if integer.bits > 16:
        raise UnsupportedOpError(f"QuantizeLinear has at most 16 bits, not {integer}: quantize to fewer bits")
    if w.opset < OPSET_OF_16_BITS:
        raise UnsupportedOpError(f"QuantizeLinear knows {integer} from opset {OPSET_OF_16_BITS} on, not {w.opset}: ask for a newer opset")
    return INT16 if integer.signed else UINT16


def _clip(w: GraphWriter, x: ir.Value, integer: IntegerType) -> ir.Value:
    assert x.dtype is not None
    return w.op("Clip", x, w.constant(integer.low, x.dtype), w.constant(integer.high, x.dtype))
