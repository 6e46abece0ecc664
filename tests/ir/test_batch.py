from __future__ import annotations

import pytest
import torch

from qcompiler.errors import CaptureError
from qcompiler.ir.batch import batch_symbol, check_independent_samples
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.types import Stage

_aten = torch.ops.aten


def program(*calls: tuple[object, ...], shape: tuple[int | None, ...] = (None, 4, 6)) -> Program:
    """x, then each (op, further arguments) applied to the value before it."""
    builder = GraphBuilder()
    value = builder.input("x", shape, torch.float32)
    for target, *rest in calls:
        value = builder.call(target, value, *rest)
    spec = ValueSpec("x", torch.float32, shape)
    return Program(builder.finish(value), Stage.FLOAT, (spec,), (ValueSpec("y", torch.float32, shape),))


@pytest.mark.parametrize(
    "calls",
    [
        [(_aten.relu.default,)],
        [(_aten.mean.dim, [2], True)],
        [(_aten.permute.default, [0, 2, 1]), (_aten.reshape.default, [-1, 24])],
        [(_aten.flip.default, [1, -1])],
        [(_aten.permute.default, [1, 0, 2]), (_aten.permute.default, [1, 0, 2])],
        [(_aten.permute.default, [2, 0, 1]), (_aten.reshape.default, [2, 3, -1, 4]), (_aten.select.int, 0, 1), (_aten.select.int, 0, 0)],
        [(_aten.unsqueeze.default, 0), (_aten.squeeze.dims, [0])],
        [(_aten.slice.Tensor, 1, 0, 2), (_aten.constant_pad_nd.default, [1, 1], 0.0)],
    ],
)
def test_independent(calls: list[tuple[object, ...]]) -> None:
    check_independent_samples(program(*calls))


@pytest.mark.parametrize(
    "calls",
    [
        [(_aten.mean.dim, [0], True)],
        [(_aten.permute.default, [1, 0, 2]), (_aten.relu.default,)],
        [(_aten.permute.default, [1, 0, 2]), (_aten.reshape.default, [-1, 24])],
        [(_aten.permute.default, [1, 0, 2]), (_aten.select.int, 1, 0)],
        [(_aten.reshape.default, [-1, 6])],
        [(_aten.slice.Tensor, 0, 0, 1)],
        [(_aten.select.int, 0, 0)],
        [(_aten.flip.default, [-3])],
    ],
)
def test_dependent(calls: list[tuple[object, ...]]) -> None:
    with pytest.raises(CaptureError, match="mixes the samples of a batch"):
        check_independent_samples(program(*calls))


def test_outputs_lead_with_the_batch() -> None:
    with pytest.raises(CaptureError, match="output 'y' has the batch elsewhere"):
        check_independent_samples(program((_aten.unsqueeze.default, 0)))


def test_fixed_batch_needs_no_proof() -> None:
    fixed = program((_aten.mean.dim, [0], True), shape=(2, 4, 6))
    assert batch_symbol(fixed) is None
    check_independent_samples(fixed)
    assert batch_symbol(program()) is not None
