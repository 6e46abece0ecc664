"""Maxima and sums over windows and dimensions, dilation: ``arithmetic.pooling`` in ONNX."""

from __future__ import annotations

import onnx_ir as ir
import torch

from qcompiler.arithmetic.pooling import adaptive_windows
from qcompiler.backends.onnx.graph import INT8, INT32, UINT8, GraphWriter
from qcompiler.backends.onnx.products import centred
from qcompiler.backends.onnx.writers import Call, Operand, Registry
from qcompiler.errors import UnsupportedOpError

WRITERS = Registry()


@WRITERS.writes("qc.max_pool2d.default")
def max_pool2d(w: GraphWriter, call: Call) -> ir.Value:
    """MaxPool where onnxruntime has it (8 bits, images); else one shifted slice after the other."""
    x, padding = call.operand("x"), list(call["padding"])
    top, bottom, left, right = padding
    kernel, dilation = list(call["kernel"]), list(call["dilation"])
    if x.value.dtype in (INT8, UINT8) and x.rank == 4 and max(top, bottom) < kernel[0] and max(left, right) < kernel[1]:
        pads, strides = [top, left, bottom, right], list(call["stride"])
        return w.op("MaxPool", x.value, kernel_shape=kernel, strides=strides, pads=pads, dilations=dilation)
    wide = _padded(w, w.cast(x.value, INT32), x.rank, padding, torch.iinfo(x.meta.dtype).min)
    for dim in (-2, -1):
        wide = _slide(w, wide, _spatial(x, dim, padding), dim, kernel[dim], call["stride"][dim], dilation[dim], "Max")
    return w.cast(wide, call.dtype)


@WRITERS.writes("qc.sum_pool2d.default")
def sum_pool2d(w: GraphWriter, call: Call) -> ir.Value:
    """Sums of ``x - zero_point``; the border is 0."""
    x, padding = call.operand("x"), list(call["padding"])
    total = _padded(w, centred(w, x.value, int(call["zero_point"])), x.rank, padding, 0)
    for dim in (-2, -1):
        total = _slide(w, total, _spatial(x, dim, padding), dim, call["kernel"][dim], call["stride"][dim], 1, "Add")
    return total


@WRITERS.writes("qc.adaptive_max_pool2d.default")
def adaptive_max_pool2d(w: GraphWriter, call: Call) -> ir.Value:
    """Maximum over torch's adaptive windows."""
    x = call.operand("x")
    wide = w.cast(x.value, INT32)
    for dim in (-2, -1):
        wide = _adaptive(w, wide, x, dim, call["output_size"][dim], "ReduceMax")
    return w.cast(wide, call.dtype)


@WRITERS.writes("qc.adaptive_sum_pool2d.default")
def adaptive_sum_pool2d(w: GraphWriter, call: Call) -> ir.Value:
    """Sums of ``x - zero_point`` over torch's adaptive windows."""
    x = call.operand("x")
    total = centred(w, x.value, int(call["zero_point"]))
    for dim in (-2, -1):
        total = _adaptive(w, total, x, dim, call["output_size"][dim], "ReduceSum")
    return total


@WRITERS.writes("qc.sum.default")
def reduce_sum(w: GraphWriter, call: Call) -> ir.Value:
    """int32 sum of ``x - zero_point`` over dimensions (none given: all)."""
    x = centred(w, call.value("x"), int(call["zero_point"]))
    return reduce(w, "ReduceSum", x, call["dim"] or list(range(call.operand("x").rank)), bool(call["keepdim"]))


@WRITERS.writes("qc.dilate.default")
def dilate(w: GraphWriter, call: Call) -> ir.Value:
    """Each element gets ``factor - 1`` copies of ``value`` behind it along a dimension of its own, which then joins the dilated one."""
    x, value = call.operand("x"), int(call["value"])
    sizes = [_fixed(x, -2), _fixed(x, -1)]
    result = w.cast(x.value, INT32)
    for position, factor in enumerate(call["factor"]):
        if factor == 1:
            continue
        axis = x.rank - 1 + position  # of the new dimension
        pads = [0] * (2 * x.rank + 2)
        pads[x.rank + 1 + axis] = factor - 1
        wide = w.op("Pad", w.op("Unsqueeze", result, w.axes(axis)), w.axes(*pads), w.constant(value, INT32), mode="constant")
        kept = (sizes[position] - 1) * factor + 1
        sizes[position] *= factor
        joined = w.op("Reshape", wide, w.axes(*[0] * (x.rank - 2), *sizes))
        result = sliced(w, joined, axis - 1, 0, kept)
        sizes[position] = kept
    return w.cast(result, call.dtype)


def reduce(w: GraphWriter, op_type: str, x: ir.Value, axes: list[int], keepdims: bool) -> ir.Value:
    """A reduction; axes became an input at opset 13 (ReduceSum) and 18 (the others)."""
    if op_type == "ReduceSum" or w.opset >= 18:
        return w.op(op_type, x, w.axes(*axes), keepdims=int(keepdims))
    return w.op(op_type, x, axes=axes, keepdims=int(keepdims))


def sliced(w: GraphWriter, x: ir.Value, dim: int, start: int, end: int, step: int = 1) -> ir.Value:
    """``x[start:end:step]`` along one dimension."""
    return w.op("Slice", x, w.axes(start), w.axes(end), w.axes(dim), w.axes(step))


def _padded(w: GraphWriter, x: ir.Value, rank: int, padding: list[int], value: int) -> ir.Value:
    """int32 with a border around the last two dimensions."""
    if not any(padding):
        return x
    top, bottom, left, right = padding
    none = [0] * (rank - 2)
    return w.op("Pad", x, w.axes(*none, top, left, *none, bottom, right), w.constant(value, INT32), mode="constant")


def _spatial(x: Operand, dim: int, padding: list[int]) -> int:
    """Height or width with its padding."""
    return _fixed(x, dim) + sum(padding[:2] if dim == -2 else padding[2:])


def _fixed(x: Operand, dim: int) -> int:
    size = x.meta.shape[dim]
    if not isinstance(size, int):
        raise UnsupportedOpError(f"pooling over the dynamic size {size} has no ONNX form: capture the model with that size fixed")
    return size


def _slide(w: GraphWriter, x: ir.Value, size: int, dim: int, kernel: int, stride: int, dilation: int, op_type: str) -> ir.Value:
    """Reduce windows along ``dim``: window o has the elements ``o stride + i dilation``, i < kernel."""
    count = (size - dilation * (kernel - 1) - 1) // stride + 1
    result = None
    for i in range(kernel):
        start = i * dilation
        part = sliced(w, x, dim, start, start + (count - 1) * stride + 1, stride)
        result = part if result is None else w.op(op_type, result, part)
    assert result is not None
    return result


def _adaptive(w: GraphWriter, x: ir.Value, operand: Operand, dim: int, count: int, op_type: str) -> ir.Value:
    """Reduce torch's adaptive windows along ``dim``."""
    size = _fixed(operand, dim)
    windows = adaptive_windows(size, count)
    if len(windows) == 1:
        return reduce(w, op_type, x, [dim], keepdims=True)
    parts = [reduce(w, op_type, sliced(w, x, dim, start, end), [dim], keepdims=True) for start, end in windows]
    return w.op("Concat", *parts, axis=dim)
