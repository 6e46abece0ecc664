"""Floats to integers and back in the file: the formulas of ``arithmetic.quantize`` and ``dequantize``, bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qcompiler.backends.onnx.export import make_model
from qcompiler.backends.onnx.files import checked
from qcompiler.errors import UnsupportedOpError
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.types import INT8, INT16, INT32, UINT8, IntegerType, QuantizedType, Stage


def _through(kind: QuantizedType) -> Program:
    """A program that gives its input back, channels in dimension 1."""
    builder = GraphBuilder()
    x = builder.input("x", (None, 3, 50), kind.integer.dtype)
    graph_module = builder.finish(builder.call(torch.ops.aten.clone.default, x))
    spec = ValueSpec("x", torch.float32, (None, 3, 50), kind)
    return Program(graph_module, Stage.INTEGER, (spec,), (ValueSpec("y", torch.float32, (None, 3, 50), kind),))


def _values(kind: QuantizedType, seed: int) -> Tensor:
    """Around every kind of tie: float32 neighbours of (n + 1/2) scale, and far outside the range."""
    random = np.random.default_rng(seed)
    steps = random.integers(kind.integer.low - 3, kind.integer.high + 3, (4, 3, 50)) + 0.5
    scales = np.resize(np.asarray(kind.scale, np.float32), 3).reshape(3, 1)
    values = (steps * scales).astype(np.float32)
    moved = np.nextafter(values, random.choice(np.array([-np.inf, np.inf], np.float32), values.shape)).astype(np.float32)
    moved[0, 0, :4] = (np.inf, -np.inf, 3e38, -3e38)
    return torch.from_numpy(np.where(random.random(values.shape) < 0.5, values, moved))


KINDS = {
    "uint8": QuantizedType(UINT8, (0.018591560423374176,), (113,)),
    "int8": QuantizedType(INT8, (0.0037,), (-7,)),
    "4 bits": QuantizedType(IntegerType(4, False), (0.31,), (3,)),
    "5 bits, signed": QuantizedType(IntegerType(5, True), (0.1,), (0,)),
    "int16": QuantizedType(INT16, (0.000123,), (0,)),
    "12 bits, signed": QuantizedType(IntegerType(12, True), (0.03,), (0,)),
    "12 bits": QuantizedType(IntegerType(12, False), (0.03,), (77,)),
    "channels": QuantizedType(INT8, (0.11, 0.0052, 1.7), (0,), 1),
    "channels with zero points": QuantizedType(UINT8, (0.11, 0.0052, 1.7), (3, 0, 200), 1),
}


@pytest.mark.parametrize("name", KINDS)
def test_equals_the_formulas(name: str, session: Any) -> None:
    program = _through(QuantizedType(KINDS[name].integer, tuple(float(np.float32(s)) for s in KINDS[name].scale), *_rest(KINDS[name])))
    x = _values(KINDS[name], 0)
    (want,), (got,) = program.run(x), session(checked(make_model(program, "integer", 21)))(x)
    assert torch.equal(want, got)


def _rest(kind: QuantizedType) -> tuple[tuple[int, ...], int | None]:
    return kind.zero_point, kind.axis


def test_widths_that_quantize_linear_does_not_have() -> None:
    with pytest.raises(UnsupportedOpError, match="from opset 21 on, not 20"):
        make_model(_through(KINDS["int16"]), "integer", 20)
    with pytest.raises(UnsupportedOpError, match="at most 16 bits, not i20"):
        make_model(_through(QuantizedType(IntegerType(20, True), (0.1,))), "integer", 21)


def test_accumulators_leave_through_a_scale_for_each_channel(session: Any) -> None:
    builder = GraphBuilder()
    x = builder.input("x", (None, 3), torch.int32)
    kind = QuantizedType(INT32, (0.5, 0.001, 3.0), (0,), 1)
    spec = ValueSpec("x", torch.int32, (None, 3))
    graph_module = builder.finish(builder.call(torch.ops.aten.clone.default, x))
    program = Program(graph_module, Stage.INTEGER, (spec,), (ValueSpec("y", torch.float32, (None, 3), kind),))
    values = torch.randint(-(1 << 31), (1 << 31) - 1, (9, 3)).to(torch.int32)
    assert torch.equal(program.run(values)[0], session(checked(make_model(program, "integer", 13)))(values)[0])
