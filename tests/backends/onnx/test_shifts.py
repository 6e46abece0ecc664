"""Shifts of signed integers, floor division and bit lengths on all edges of both widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from qcompiler.backends.onnx import shifts
from qcompiler.backends.onnx.files import checked
from qcompiler.backends.onnx.graph import INT32, INT64, GraphWriter


def _run(session: Any, dtype: ir.DataType, write: Callable[..., ir.Value], *inputs: np.ndarray) -> np.ndarray:
    w = GraphWriter(13)
    values = [ir.Value(name=f"x{i}", type=ir.TensorType(dtype), shape=ir.Shape(x.shape)) for i, x in enumerate(inputs)]
    result = w.op("Identity", write(w, *values))
    result.shape = ir.Shape(inputs[0].shape)
    initializers = list(w.initializers.values())
    graph = ir.Graph(values, [result], nodes=w.nodes, initializers=initializers, opset_imports={"": 13}, name="shifts")
    run = session(checked(ir.Model(graph, ir_version=8)))
    found: np.ndarray = run(*(torch.from_numpy(x) for x in inputs))[0].numpy()
    return found


def _edges(kind: type[np.integer[Any]]) -> np.ndarray:
    limits = np.iinfo(kind)
    powers = [sign * (1 << k) + d for k in range(limits.bits - 1) for sign in (1, -1) for d in (-1, 0, 1)]
    return np.array([*(p for p in powers if limits.min <= p <= limits.max), limits.min, limits.max, 0, 123456789], kind)


KINDS = [(INT32, np.int32), (INT64, np.int64)]


@pytest.mark.parametrize(("dtype", "kind"), KINDS)
def test_shift_right(dtype: ir.DataType, kind: Any, session: Any) -> None:
    x = _edges(kind)
    for amount in (0, 1, 7, np.iinfo(kind).bits - 1):
        assert np.array_equal(_run(session, dtype, lambda w, v, a=amount: shifts.shift_right(w, v, a), x), x >> amount)
    amounts = (np.arange(len(x)) % np.iinfo(kind).bits).astype(kind)
    assert np.array_equal(_run(session, dtype, shifts.shift_right, x, amounts), x >> amounts)


@pytest.mark.parametrize(("dtype", "kind"), KINDS)
def test_shift_left_drops_the_high_bits(dtype: ir.DataType, kind: Any, session: Any) -> None:
    x = _edges(kind)
    amounts = (np.arange(len(x)) % np.iinfo(kind).bits).astype(kind)
    assert np.array_equal(_run(session, dtype, shifts.shift_left, x, amounts), x << amounts)
    assert np.array_equal(_run(session, dtype, lambda w, v: shifts.shift_left(w, v, 5), x), x << 5)


@pytest.mark.parametrize(("dtype", "kind"), KINDS)
def test_floor_divide(dtype: ir.DataType, kind: Any, session: Any) -> None:
    x = _edges(kind)
    x = x[x > np.iinfo(kind).min + (1 << 20)]  # the remainder is taken away first
    divisors = np.resize(np.array([1, 2, 3, 1000, -1, -7, -65536], kind), x.shape)
    assert np.array_equal(_run(session, dtype, shifts.floor_divide, x, divisors), x // divisors)


@pytest.mark.parametrize(("dtype", "kind"), KINDS)
def test_bit_length(dtype: ir.DataType, kind: Any, session: Any) -> None:
    x = _edges(kind)
    x = x[x >= 0]
    assert _run(session, dtype, shifts.bit_length, x).tolist() == [int(value).bit_length() for value in x]


@pytest.mark.parametrize(("dtype", "kind"), KINDS)
def test_bounds(dtype: ir.DataType, kind: Any, session: Any) -> None:
    """Integers of 64 bits that have equal high halves are where onnxruntime's own Clip, Min and Max are wrong."""
    x = _edges(kind)
    for op_type, expected in (("Min", np.minimum), ("Max", np.maximum)):
        assert np.array_equal(
            _run(session, dtype, lambda w, a, b, o=op_type: shifts.extreme(w, o, a, b), x, x[::-1].copy()), expected(x, x[::-1])
        )
    for low, high in ((1, None), (None, 30), (-7, 255)):

        def clip(w: GraphWriter, v: ir.Value, low: int | None = low, high: int | None = high) -> ir.Value:
            return shifts.clip(w, v, *(None if bound is None else w.constant(bound, dtype) for bound in (low, high)))

        assert np.array_equal(_run(session, dtype, clip, x), np.clip(x, low, high))
