"""ONNX models as programs: constants folded, shape arithmetic gone, names and nodes kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper

from qcompiler.capture import capture
from qcompiler.ir.provenance import provenance_of
from qcompiler.ir.types import DynamicSize

Make = Callable[..., onnx.ModelProto]


def _targets(program: object) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]  # type: ignore[attr-defined]  # a program


def test_names_and_provenance(make: Make) -> None:
    model = make([helper.make_node("Relu", ["in.1"], ["out:0"], "/layer/Relu")], {"in.1": ["N", 4]}, {"out:0": ["N", 4]})
    program = capture(model)
    assert (program.inputs[0].name, program.outputs[0].name) == ("in.1", "out:0")
    relu = next(node for node in program.graph.nodes if node.op == "call_function")
    assert provenance_of(relu).source == "node '/layer/Relu' (Relu)" and provenance_of(relu).module_path == "/layer/Relu"
    x = torch.randn(3, 4)
    assert torch.equal(program.run(x)[0], torch.relu(x))


def test_constants_are_computed_before(make: Make) -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], value_floats=[1.0, 4.0]),
        helper.make_node("Sqrt", ["c"], ["s"]),
        helper.make_node("Cast", ["s"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["x", "s"], ["m"], "product"),
        helper.make_node("Cast", ["d"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["m", "f"], ["y"], "sum"),
    ]
    program = capture(make(nodes, {"x": ["N", 2]}, {"y": ["N", 2]}))
    assert _targets(program) == ["aten.mul.Tensor", "aten.add.Tensor"]
    assert torch.equal(program.run(torch.ones(1, 2))[0], torch.tensor([[2.0, 4.0]]))


@pytest.mark.parametrize("length", [5, DynamicSize("length", 1, 9)])
def test_shape_arithmetic_leaves_no_node(make: Make, length: int | DynamicSize) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
        helper.make_node("Gather", ["shape", "second"], ["length"]),
        helper.make_node("Mul", ["length", "two"], ["twice"]),
        helper.make_node("Div", ["twice", "two"], ["once"]),
        helper.make_node("Concat", ["batch", "once", "two", "half"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["y"], "view"),
    ]
    constants = {"first": [0], "second": [1], "two": [2], "half": [3]}
    model = make(nodes, {"x": ["N", "L", 6]}, {"y": ["N", "L", 2, 3]}, {name: np.array(value) for name, value in constants.items()})
    program = capture(model, dynamic_shapes={"x": {1: length}})  # type: ignore[dict-item]  # numbers too
    assert {target for target in _targets(program) if "sym_size" not in target} == {"aten.reshape.default"}
    x = torch.randn(2, 5, 6)
    assert torch.equal(program.run(x)[0], x.reshape(2, 5, 2, 3))


def test_branches_loops_and_functions(make: Make) -> None:
    def graph(op: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node(op, ["x"], ["r"])], op, [], [helper.make_tensor_value_info("r", 1, None)])

    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["going"]), helper.make_node("Add", ["a", "x"], ["b"])],
        "body",
        [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("c", 9))]
        + [helper.make_tensor_value_info("a", 1, None)],
        [helper.make_tensor_value_info("going", 9, []), helper.make_tensor_value_info("b", 1, None)],
    )
    nodes = [
        helper.make_node("If", ["yes"], ["t"], "if", then_branch=graph("Tanh"), else_branch=graph("Sigmoid")),
        helper.make_node("Loop", ["turns", "yes", "t"], ["l"], "loop", body=body),
        helper.make_node("MeanVarianceNormalization", ["l"], ["y"], "function", axes=[1]),
    ]
    program = capture(make(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}, {"yes": np.array(True), "turns": np.array(3)}))
    x = torch.randn(2, 4)
    value = torch.tanh(x) + 3 * x
    expected = (value - value.mean(1, keepdim=True)) / (value.var(1, keepdim=True, correction=0).sqrt() + 1e-9)
    torch.testing.assert_close(program.run(x)[0], expected)


def test_guards_of_exported_attention_and_counting_masks(make: Make) -> None:
    """As torch.onnx writes ``scaled_dot_product_attention`` with a mask."""
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"], "softmax"),
        helper.make_node("IsNaN", ["p"], ["n"], "guard"),
        helper.make_node("Where", ["n", "zero", "p"], ["y"], "where"),
    ]
    program = capture(make(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}, {"zero": np.zeros((), np.float32)}))
    assert _targets(program) == ["aten.softmax.int"]


def test_one_hot_times_a_matrix_is_an_embedding(make: Make) -> None:
    table = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Unsqueeze", ["x", "last"], ["u"]),
        helper.make_node("Equal", ["u", "count"], ["e"]),
        helper.make_node("Cast", ["e"], ["h"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["h", "table"], ["y"]),
    ]
    constants = {"last": np.array([2]), "count": np.arange(5).reshape(1, 1, 5), "table": table}
    model = make(nodes, {"x": ["N", 6]}, {"y": ["N", 6, 3]}, constants, types={"x": TensorProto.INT64})
    program = capture(model)
    assert "aten.embedding.default" in _targets(program)
    ids = torch.randint(0, 5, (2, 6))
    assert torch.equal(program.run(ids)[0], F.embedding(ids, torch.from_numpy(table)))


def test_half_precision_is_computed_in_float32(make: Make) -> None:
    model = make(
        [helper.make_node("Mul", ["x", "w"], ["y"], "product")],
        {"x": ["N", 2]},
        {"y": ["N", 2]},
        {"w": np.array([0.5, 2.0], np.float16)},
        types={"x": TensorProto.FLOAT16, "y": TensorProto.FLOAT16},
    )
    program = capture(model)
    assert program.inputs[0].dtype is program.outputs[0].dtype is torch.float32
    assert torch.equal(program.run(torch.ones(1, 2))[0], torch.tensor([[0.5, 2.0]]))
