from __future__ import annotations

import pytest
import torch
from torch import fx

from qcompiler.errors import VerificationError
from qcompiler.ir import edit
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.provenance import Provenance
from qcompiler.ir.types import Stage

aten = torch.ops.aten


@pytest.fixture
def program() -> Program:
    builder = GraphBuilder()
    x = builder.input("x", (None, 3, 8, 8), torch.float32)
    weight = builder.constant("conv.weight", torch.randn(4, 3, 3, 3), Provenance(module_path="conv"))
    y = builder.call(
        aten.conv2d.default, x, weight, None, [1, 1], [1, 1], provenance=Provenance("model.py:7 in forward: y", "conv", ("capture",))
    )
    z = builder.call(aten.relu.default, y)
    specs = ValueSpec("x", torch.float32, (None, 3, 8, 8)), ValueSpec("relu", torch.float32, (None, 4, 8, 8))
    return Program(builder.finish(z), Stage.FLOAT, specs[:1], specs[1:])


def node_named(program: Program, name: str) -> fx.Node:
    return next(node for node in program.graph.nodes if node.name == name)


def test_copy_shares_tensors_and_keeps_names_and_meta(program: Program) -> None:
    copied = edit.copy(program)
    assert [n.name for n in copied.graph.nodes] == [n.name for n in program.graph.nodes]
    assert [n.meta for n in copied.graph.nodes] == [n.meta for n in program.graph.nodes]
    assert copied.graph_module.conv_weight is program.graph_module.conv_weight
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(copied(x), program(x))


def test_editing_a_copy_leaves_the_original_alone(program: Program) -> None:
    before = program.graph_module.code, [dict(n.meta) for n in program.graph.nodes]
    copied = edit.copy(program)
    relu = node_named(copied, "relu")
    edit.replace(relu, relu.args[0])  # type: ignore[arg-type]
    node_named(copied, "conv2d").meta["provenance"] = Provenance()
    edit.erase_dead(copied)
    assert (program.graph_module.code, [dict(n.meta) for n in program.graph.nodes]) == before
    assert [n.name for n in copied.graph.nodes] == ["x", "conv_weight", "conv2d", "output"]


def test_insert_call_computes_the_value_with_the_symbolic_batch(program: Program) -> None:
    conv = node_named(program, "conv2d")
    node = edit.insert_call(program.graph, aten.max_pool2d.default, (conv, [2, 2]), after=conv, provenance_from=[conv], made_by="test-pass")
    batch, *rest = node.meta["val"].shape
    assert isinstance(batch, torch.SymInt) and rest == [4, 4, 4]
    assert batch.node.expr == node_named(program, "x").meta["val"].shape[0].node.expr
    assert node.meta["provenance"] == Provenance("model.py:7 in forward: y", "conv", ("capture", "test-pass"))


def test_insert_call_takes_one_place(program: Program) -> None:
    conv = node_named(program, "conv2d")
    with pytest.raises(ValueError, match="not both"):
        edit.insert_call(program.graph, aten.relu.default, (conv,), before=conv, after=conv)


def test_replace_by_a_wrapper_of_the_old_node_keeps_the_wrapper_reading_it(program: Program) -> None:
    conv = node_named(program, "conv2d")
    wrapper = edit.insert_call(program.graph, aten.neg.default, (conv,), after=conv)
    edit.replace(conv, wrapper)
    assert wrapper.args == (conv,)
    assert node_named(program, "relu").args == (wrapper,)
    edit.finish(program.graph_module)


def test_constants_are_flat_unique_and_precede_the_calls(program: Program) -> None:
    first = edit.add_constant(program.graph_module, "conv.weight", torch.ones(2))
    second = edit.add_constant(program.graph_module, "0 weight", torch.ones(3, dtype=torch.int32))
    assert (first.name, second.name) == ("conv_weight_1", "constant_0_weight")
    assert [n.name for n in program.graph.nodes][:4] == ["x", "conv_weight", "conv_weight_1", "constant_0_weight"]
    assert second.meta["val"].dtype == torch.int32 and second.meta["val"].fake_mode is edit.fake_mode_of(program.graph)
    assert torch.equal(edit.constant_value(first), torch.ones(2))  # type: ignore[arg-type]
    assert edit.constant_value(node_named(program, "relu")) is None
    assert edit.constant_value(3) is None


def test_erase_dead_removes_calls_constants_and_buffers(program: Program) -> None:
    edit.add_constant(program.graph_module, "unused", torch.ones(2))
    program.graph_module.register_buffer("orphan", torch.ones(2))
    assert edit.erase_dead(program)
    assert dict(program.graph_module.named_buffers()).keys() == {"conv_weight"}
    assert not edit.erase_dead(program)


def test_unused_inputs_stay(program: Program) -> None:
    conv, x = node_named(program, "conv2d"), node_named(program, "x")
    constant = edit.add_constant(program.graph_module, "image", torch.ones(1, 3, 8, 8))
    conv.replace_input_with(x, constant)
    edit.erase_dead(program)
    assert x in program.graph.nodes


def test_propagate_follows_a_changed_constant(program: Program) -> None:
    program.graph_module.conv_weight = torch.randn(6, 3, 1, 1)
    edit.propagate(program.graph_module)
    assert node_named(program, "relu").meta["val"].shape[1:] == (6, 10, 10)


def test_argument_by_position_keyword_and_default(program: Program) -> None:
    conv = node_named(program, "conv2d")
    assert edit.argument(conv, "padding") == [1, 1]
    assert edit.argument(conv, "groups") == 1
    with pytest.raises(VerificationError, match=r"'conv2d' \(aten.conv2d.default\) at model.py:7 .* has no argument 'paddings'"):
        edit.argument(conv, "paddings")


def test_users_in_topological_order(program: Program) -> None:
    conv, relu = node_named(program, "conv2d"), node_named(program, "relu")
    early = edit.insert_call(program.graph, aten.neg.default, (conv,), after=conv)
    assert edit.users_of(conv) == (early, relu)
    assert list(edit.calls(program.graph, aten.neg.default, aten.relu.default)) == [early, relu]


def test_evaluate_names_the_node_without_a_value(program: Program) -> None:
    del node_named(program, "conv2d").meta["val"]
    with pytest.raises(VerificationError, match=r"'conv2d' .* has no meta 'val'"):
        edit.evaluate(node_named(program, "relu"))
