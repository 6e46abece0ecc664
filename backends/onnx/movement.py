"""Ops that move, cut, join and repeat data, of any dtype."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import sympy

from qcompiler.backends.onnx.graph import BOOL, FLOAT, INT16, INT32, INT64, GraphWriter, Size
from qcompiler.backends.onnx.writers import Call, Operand, Registry
from qcompiler.ir.sizes import expression

WRITERS = Registry()
_INT64_MAX = (1 << 63) - 1


@WRITERS.writes("aten.view.default", "aten.reshape.default", "aten.flatten.using_ints", "aten.unflatten.int", "aten._unsafe_view.default")
def reshape(w: GraphWriter, call: Call) -> ir.Value:
    """All ways to write a new shape for the same elements."""
    return reshaped(w, call.operand("self"), call.result.shape)


def reshaped(w: GraphWriter, x: Operand, shape: Sequence[Size]) -> ir.Value:
    """Reshape; an unknown size stays where it stands (0), or is the only one that follows from the others (-1), or is computed."""
    sizes = [expression(size) for size in shape]
    before = [expression(size) for size in x.meta.shape]
    entries: list[int | None] = [int(size) if size.is_Integer else _kept(position, size, before) for position, size in enumerate(sizes)]
    if entries.count(None) == 1:
        entries[entries.index(None)] = -1
    if None not in entries:
        return w.op("Reshape", x.value, w.axes(*(entry for entry in entries if entry is not None)))
    return w.op("Reshape", x.value, w.shape(shape))


def _kept(position: int, size: sympy.Expr, before: Sequence[sympy.Expr]) -> int | None:
    return 0 if position < len(before) and before[position] == size else None


@WRITERS.writes("aten.permute.default")
def permute(w: GraphWriter, call: Call) -> ir.Value:
    """Any order of the dimensions."""
    rank = call.operand("self").rank
    return w.op("Transpose", call.value("self"), perm=[dim % rank for dim in call["dims"]])


@WRITERS.writes("aten.transpose.int")
def transpose(w: GraphWriter, call: Call) -> ir.Value:
    """Two dimensions change places."""
    order = list(range(call.operand("self").rank))
    first, second = call["dim0"], call["dim1"]
    order[first], order[second] = order[second], order[first]
    return w.op("Transpose", call.value("self"), perm=order)


@WRITERS.writes("aten.slice.Tensor")
def slice_tensor(w: GraphWriter, call: Call) -> ir.Value:
    """Slice clamps starts and ends to the size and counts negative ones from the end, as torch does."""
    start, end = (call["start"], 0), (call["end"], _INT64_MAX)
    ends = [w.size(default if value is None else value) for value, default in (start, end)]
    return w.op("Slice", call.value("self"), *ends, w.axes(call["dim"]), w.axes(call["step"]))


@WRITERS.writes("aten.select.int")
def select(w: GraphWriter, call: Call) -> ir.Value:
    """One index of a dimension, which goes."""
    return w.op("Gather", call.value("self"), w.constant(call["index"], INT64), axis=call["dim"])


@WRITERS.writes("aten.cat.default")
def cat(w: GraphWriter, call: Call) -> ir.Value:
    """Along one dimension."""
    return w.op("Concat", *(operand.value for operand in call["tensors"]), axis=call["dim"])


@WRITERS.writes("aten.constant_pad_nd.default")
def constant_pad(w: GraphWriter, call: Call) -> ir.Value:
    """torch lists pads from the last dimension on, (before, after); negative ones cut, in ONNX as well."""
    x, pads = call.operand("self"), list(call["pad"])
    before, after = [0] * x.rank, [0] * x.rank
    for position in range(len(pads) // 2):
        before[-1 - position], after[-1 - position] = pads[2 * position], pads[2 * position + 1]
    # onnxruntime pads no 16 bits.
    value = w.cast(x.value, INT32) if x.value.dtype in (INT16, BOOL) else x.value
    assert value.dtype is not None
    fill = w.constant(call["value"] if value.dtype == FLOAT else int(call["value"]), value.dtype)
    return w.cast(w.op("Pad", value, w.axes(*before, *after), fill, mode="constant"), call.dtype)


@WRITERS.writes("aten.expand.default")
def expand(w: GraphWriter, call: Call) -> ir.Value:
    """Repeat dimensions of size 1."""
    return w.op("Expand", call.value("self"), w.shape(call.result.shape))


@WRITERS.writes("aten.squeeze.dims")
def squeeze(w: GraphWriter, call: Call) -> ir.Value:
    """torch leaves dimensions of other sizes than 1 alone."""
    x = call.operand("self")
    axes = [dim for dim in call["dim"] if x.meta.shape[dim] == 1]
    return w.op("Squeeze", x.value, w.axes(*axes)) if axes else x.value


@WRITERS.writes("aten.unsqueeze.default")
def unsqueeze(w: GraphWriter, call: Call) -> ir.Value:
    """A new dimension of size 1."""
    return w.op("Unsqueeze", call.value("self"), w.axes(call["dim"]))


@WRITERS.writes("aten.clone.default", "aten.alias.default", "aten.detach.default")
def clone(w: GraphWriter, call: Call) -> ir.Value:
    """Nothing: ONNX values do not change."""
    return call.value("self")


@WRITERS.writes("aten.flip.default")
def flip(w: GraphWriter, call: Call) -> ir.Value:
    """Backwards along dimensions, as slices with a step of -1."""
    dims = list(call["dims"])
    ends = w.axes(*[-_INT64_MAX] * len(dims))
    return w.op("Slice", call.value("self"), w.axes(*[-1] * len(dims)), ends, w.axes(*dims), w.axes(*[-1] * len(dims)))
