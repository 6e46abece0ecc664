from __future__ import annotations

import torch

from qcompiler.ir import edit
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.provenance import Provenance
from qcompiler.ir.types import Stage
from qcompiler.ir.verifier import verify

aten = torch.ops.aten


def test_a_built_graph_keeps_the_conventions_and_shares_one_batch() -> None:
    builder = GraphBuilder()
    x, y = (builder.input(name, (None, 3), torch.float32) for name in ("x", "y"))
    place = Provenance("m.py:1 in forward: x + y")
    total = builder.call(aten.add.Tensor, x, y, alpha=2, name="total", provenance=place)
    shape = (None, 3)
    specs = tuple(ValueSpec(name, torch.float32, shape) for name in ("x", "y", "total"))
    program = Program(builder.finish(total), Stage.FLOAT, specs[:2], specs[2:])
    verify(program)
    assert x.meta["val"].shape[0].node.expr == y.meta["val"].shape[0].node.expr == total.meta["val"].shape[0].node.expr
    assert (total.name, total.meta["provenance"]) == ("total", place)
    assert torch.equal(program(torch.ones(2, 3), torch.ones(2, 3)), torch.full((2, 3), 3.0))  # type: ignore[arg-type]


def test_padding_keeps_the_batch_symbolic() -> None:
    builder = GraphBuilder()
    x = builder.input("x", (None, 3, 4, 4), torch.float32)
    for target in (aten.constant_pad_nd.default, aten.pad.default):
        y = builder.call(target, x, [1, 1, 0, 0, 2, 2])
        assert isinstance(y.meta["val"].shape[0], torch.SymInt) and y.meta["val"].shape[1:] == (7, 4, 6)


def test_constants_by_hint_and_by_name() -> None:
    builder = GraphBuilder()
    first, second = builder.constant("conv.weight", torch.ones(2)), builder.constant("conv.weight", torch.zeros(2))
    again = builder.attribute("alias", "conv_weight")
    assert [node.name for node in (first, second, again)] == ["conv_weight", "conv_weight_1", "alias"]
    assert edit.constant_value(again) is not None and torch.equal(edit.constant_value(again), torch.ones(2))  # type: ignore[arg-type]
