"""Tables, thresholds, rows of tables, clamps."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from qcompiler import arithmetic
from qcompiler.backends.onnx.graph import BOOL, DTYPES, INT16, INT32, INT64, GraphWriter
from qcompiler.backends.onnx.writers import Call, Registry

WRITERS = Registry()


@WRITERS.writes("qc.lookup.default")
def lookup(w: GraphWriter, call: Call) -> ir.Value:
    """Gather; with a table for each channel the rows lie one behind the other."""
    table, x = call.parameter("table"), call.operand("x")
    index = w.cast(x.value, INT32)
    if table.dim() == 2:
        lowest = torch.iinfo(x.meta.dtype).min
        rows = torch.arange(table.shape[0], dtype=torch.int32) * table.shape[1] - lowest
        index = w.op("Add", index, w.constant(rows.reshape(-1, *[1] * (x.rank - 2)), INT32, "rows"))
        return _gather(w, call, table.reshape(-1), index)
    return _gather(w, call, _from_zero(table, x.meta.dtype), index)


@WRITERS.writes("qc.bucketize.default")
def bucketize(w: GraphWriter, call: Call) -> ir.Value:
    """Of up to 16 bits: a table of the answers. Else a binary search that every element takes the same steps of."""
    x, boundaries = call.operand("x"), call.parameter("boundaries")
    if x.meta.dtype == torch.int32:
        return w.cast(_search(w, w.cast(x.value, INT64), boundaries), call.dtype)
    limits = torch.iinfo(x.meta.dtype)
    answers = arithmetic.bucketize(torch.arange(limits.min, limits.max + 1), boundaries)
    return _gather(w, call, _from_zero(answers, x.meta.dtype), w.cast(x.value, INT32))


@WRITERS.writes("qc.embedding.default")
def embedding(w: GraphWriter, call: Call) -> ir.Value:
    """Rows of the table."""
    ids = call.value("ids")
    index = ids if ids.dtype in (INT32, INT64) else w.cast(ids, INT32)
    return w.op("Gather", call.value("weight"), index, axis=0)


@WRITERS.writes("qc.clamp.default")
def clamp(w: GraphWriter, call: Call) -> ir.Value:
    """Bounds outside of the dtype do not bind; onnxruntime has no Clip of 16 bits."""
    x, limits = call.value("x"), torch.iinfo(call.operand("x").meta.dtype)
    wide = w.cast(x, INT32) if x.dtype == INT16 else x
    assert wide.dtype is not None
    low, high = max(call["low"], limits.min), min(call["high"], limits.max)
    return w.cast(w.op("Clip", wide, w.constant(low, wide.dtype), w.constant(high, wide.dtype)), call.dtype)


def _gather(w: GraphWriter, call: Call, table: Tensor, index: ir.Value) -> ir.Value:
    values = table.to(call.result.dtype)
    return w.op("Gather", w.constant(values, DTYPES[values.dtype], "table"), index, dtype=call.dtype, axis=0)


def _from_zero(table: Tensor, dtype: torch.dtype) -> Tensor:
    """A table that starts at the lowest value of ``dtype``, turned to start at 0: Gather counts negative indices from the end."""
    return torch.roll(table, torch.iinfo(dtype).min)


def _search(w: GraphWriter, x: ir.Value, boundaries: Tensor) -> ir.Value:
    """How many of the sorted boundaries are at most x: the bits of the answer from the highest on."""
    steps = int(boundaries.numel()).bit_length()
    padded = np.full(max(1, (1 << steps) - 1), np.iinfo(np.int64).max)
    padded[: boundaries.numel()] = boundaries.numpy()
    table = w.constant(padded, INT64, "boundaries")
    position = w.op("Mul", w.cast(x, INT64), w.constant(0, INT64))
    for step in (1 << k for k in reversed(range(steps))):
        probe = w.op("Gather", table, w.op("Add", position, w.constant(step - 1, INT64)), dtype=INT64, axis=0)
        reached = w.cast(w.op("GreaterOrEqual", x, probe, dtype=BOOL), INT64)
        position = w.op("Add", position, w.op("Mul", reached, w.constant(step, INT64)))
    return position
