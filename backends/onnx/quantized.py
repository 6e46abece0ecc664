"""Stages QDQ and FLOAT: float ops, and QuantizeLinear and DequantizeLinear where the program rounds.

The pairs are in the form that runtimes fuse: weights are int8 constants with a DequantizeLinear (per channel with ``axis``), activations
have scale and zero point of one tensor, biases are float. QuantizeLinear divides by the scale where the compiler multiplies by its
reciprocal, so that single values differ by a step.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from torch import Tensor

from qcompiler.backends.onnx import float_ops, hadamard, masks, movement, products
from qcompiler.backends.onnx.border import dequantize, narrowed, quantized_dtype
from qcompiler.backends.onnx.graph import DTYPES, FLOAT, GraphWriter
from qcompiler.backends.onnx.program import ProgramWriter
from qcompiler.backends.onnx.writers import Call, Operand, Registry, Writer
from qcompiler.errors import UnsupportedOpError
from qcompiler.ir.program import Program
from qcompiler.ir.stages import target_names
from qcompiler.ir.types import IntegerType, QuantizedType, Stage

_BORDERS = Registry()
_FLOAT_OPS = {name: writer for module in (hadamard, masks, movement, float_ops) for name, writer in module.WRITERS.items()}


@_BORDERS.writes("qc.quantize.default")
def quantize_linear(w: GraphWriter, call: Call) -> ir.Value:
    """QuantizeLinear; fewer bits than the dtype has are a Clip of the integers."""
    kind, axis = _kind(call), {}
    storage = quantized_dtype(w, kind.integer)
    scale, zero_point = np.asarray(kind.scale, np.float32), np.broadcast_to(np.asarray(kind.zero_point), (len(kind.scale),))
    if kind.axis is not None:
        axis = {"axis": kind.axis}
    else:
        scale, zero_point = scale[0], zero_point[0]
    operands = w.constant(scale, FLOAT, "scale"), w.constant(zero_point, storage, "zero_point")
    quantized = w.op("QuantizeLinear", call.value("x"), *operands, dtype=storage, **axis)
    return quantized if kind.integer.bits in (8, 16) else narrowed(w, quantized, kind.integer)


@_BORDERS.writes("qc.dequantize.default")
def dequantize_linear(w: GraphWriter, call: Call) -> ir.Value | Operand:
    """DequantizeLinear; of a constant written when it is read, so that a linear layer can have it transposed."""
    kind, x = _kind(call), call.operand("x")
    if x.constant is None:
        return dequantize(w, x.value, kind)
    weight = x.constant
    return Operand(call.result, lambda: _weight(w, weight, kind), transposed=lambda: _weight(w, weight.t(), _turned(kind)))


def _weight(w: GraphWriter, weight: Tensor, kind: QuantizedType) -> ir.Value:
    return dequantize(w, w.constant(weight, DTYPES[weight.dtype], "weight"), kind)


def _turned(kind: QuantizedType) -> QuantizedType:
    """Of the transposed matrix."""
    axis = None if kind.axis is None else 1 - kind.axis
    return QuantizedType(kind.integer, kind.scale, kind.zero_point, axis)


@_BORDERS.writes("qc.encode.default", "qc.decode.default")
def _unequal(w: GraphWriter, call: Call) -> ir.Value:
    raise UnsupportedOpError(
        "a quantizer with unequal steps has no QuantizeLinear: quantize with 'uniform' steps, or lower it and export format 'integer'"
    )


def _kind(call: Call) -> QuantizedType:
    integer = IntegerType(int(call["bits"]), bool(call["signed"]))
    return QuantizedType(integer, tuple(call["scale"]), tuple(call["zero_point"]), None if call["axis"] < 0 else int(call["axis"]))


FLOAT_WRITERS: dict[str, Writer] = {name: writer for name, writer in _FLOAT_OPS.items() if name in target_names(Stage.FLOAT)}
_GROUPS = "qc.scale_groups.default"
WRITERS: dict[str, Writer] = {**FLOAT_WRITERS, **_BORDERS, _GROUPS: products.WRITERS[_GROUPS]}
DECLINED = frozenset({"qc.encode.default", "qc.decode.default"})  # with an error of their own


def write_qdq(program: Program, opset: int) -> ir.Graph:
    """The graph of a QDQ program."""
    return ProgramWriter(program, WRITERS, opset).graph()


def write_float(program: Program, opset: int) -> ir.Graph:
    """The graph of a FLOAT program that was canonicalized."""
    return ProgramWriter(program, FLOAT_WRITERS, opset).graph()
