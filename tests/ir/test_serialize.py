from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from qcompiler.errors import ArtifactError
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import PassRecord, Program, ValueSpec
from qcompiler.ir.provenance import Provenance
from qcompiler.ir.serialize import canonical_json, dump, load
from qcompiler.ir.types import UINT8, QuantizedType, Stage
from qcompiler.ir.verifier import verify

aten, qc = torch.ops.aten, torch.ops.qc


def again(program: Program) -> Program:
    description, tensors = dump(program)
    return load(json.loads(canonical_json(description)), tensors)


@pytest.mark.parametrize("seed", range(40))
def test_integer_programs_survive_unchanged(seed: int, random_program: Callable[[int], Program]) -> None:
    program = random_program(seed)
    copied = again(program)
    assert copied.text() == program.text()
    assert (copied.inputs, copied.outputs, copied.history) == (program.inputs, program.outputs, program.history)
    verify(copied)
    kind = program.inputs[0].dtype
    x = torch.randn(2, *program.inputs[0].shape[1:]).to(kind)  # type: ignore[arg-type]
    assert torch.equal(copied(x), program(x))  # type: ignore[arg-type]


def float_program() -> Program:
    """Attributes of every kind: numbers, infinity, lists with None, dtypes, keyword arguments, several results."""
    builder = GraphBuilder()
    x = builder.input("x", (None, 4), torch.float32)
    clamped = builder.call(aten.clamp.default, x, float("-inf"), 3.5, provenance=Provenance("a.py:1 in f: y", "m", ("capture",)))
    halves = builder.call(aten.chunk.default, clamped, 2, 1)
    first = builder.call(operator.getitem, halves, 0)
    moved = builder.call(aten.to.dtype, first, torch.float32)
    copied = builder.call(aten.clone.default, moved, memory_format=torch.contiguous_format)
    weight = builder.constant("weight", torch.randn(2, 2))
    shared = builder.attribute("weight_again", "weight")
    y = builder.call(aten.linear.default, copied, weight)
    z = builder.call(aten.linear.default, y, shared)
    specs = ValueSpec("x", torch.float32, (None, 4)), ValueSpec("z", torch.float32, (None, 2))
    history = (PassRecord("fold", {"clip": True, "scale": 0.1, "names": ("a", "b")}, True, ("noted",)),)
    return Program(builder.finish(z), Stage.FLOAT, specs[:1], specs[1:], history)


def test_float_programs_survive_unchanged() -> None:
    program = float_program()
    copied = again(program)
    assert copied.text() == program.text()
    x = torch.randn(3, 4)
    assert torch.equal(copied(x), program(x))  # type: ignore[arg-type]
    assert torch.equal(copied.graph_module.weight, program.graph_module.weight)  # type: ignore[arg-type]


def described() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    builder = GraphBuilder()
    x = builder.input("x", (None, 4), torch.uint8)
    weight = builder.constant("weight", torch.ones(2, 4, dtype=torch.int8))
    y = builder.call(qc.linear.default, x, weight, builder.constant("bias", torch.ones(2, dtype=torch.int32)))
    x_type = QuantizedType(UINT8, (0.5,), (3,))
    x.meta["quantized"] = x_type
    specs = ValueSpec("x", torch.float32, (None, 4), x_type), ValueSpec("y", torch.int32, (None, 2))
    description, tensors = dump(Program(builder.finish(y), Stage.INTEGER, specs[:1], specs[1:]))
    return json.loads(canonical_json(description)), tensors


def node(description: Mapping[str, Any], name: str) -> dict[str, Any]:
    entry: dict[str, Any] = next(entry for entry in description["nodes"] if entry.get("name") == name)
    return entry


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=1), "format version 1, this qcompiler reads 2"),
        (lambda d: d.pop("format"), "format version None"),
        (lambda d: d.update(more=1), "unknown field 'more'"),
        (lambda d: d.pop("history"), "damaged .KeyError: 'history'"),
        (lambda d: d.update(stage="analog"), "damaged .*'analog' is not a valid Stage"),
        (lambda d: node(d, "linear").update(target="os.system"), "uses the op 'os.system', which stage integer"),
        (lambda d: node(d, "linear").update(target="aten.relu.default"), "uses the op 'aten.relu.default', which stage integer"),
        (lambda d: node(d, "linear").update(kwargs={"x=print(1), y": 1}), "has no argument 'x=print"),
        (lambda d: node(d, "linear").update(more=1), "node 'linear' is not what its description says: field 'more'"),
        (lambda d: node(d, "linear").pop("value"), "node 'linear' is not what its description says: field 'value'"),
        (lambda d: node(d, "linear")["value"].update(dtype="int8"), "field 'value'"),
        (lambda d: node(d, "linear")["args"].__setitem__(0, {"node": "output"}), "reads the node 'output' before it is computed"),
        (lambda d: node(d, "linear")["args"].__setitem__(0, {"eval": "1"}), "damaged .KeyError: 'eval'"),
        (lambda d: node(d, "linear")["args"].pop(), "damaged"),
        (lambda d: node(d, "linear").update(name="x"), "second node 'x', or the name is reserved"),
        (lambda d: node(d, "linear").update(name="a b"), "the name 'a b', which is no identifier"),
        (lambda d: node(d, "x").update(name="x, y=print(1)"), "which is no identifier"),
        (lambda d: node(d, "x").update(name="lambda"), "which is no identifier"),
        (lambda d: node(d, "weight").update(attribute="weight.data"), "which is no identifier"),
        (lambda d: node(d, "weight").update(attribute="missing"), "constant 'missing' is missing"),
        (lambda d: node(d, "weight").update(sha256="0" * 64), "node 'weight' is not what its description says: field 'sha256'"),
        (lambda d: node(d, "weight").update(op="module"), "kind 'module'|belongs to no constant"),
        (lambda d: node(d, "x")["quantized"].update(bits=True), "holds True where it needs int"),
        (lambda d: node(d, "x")["quantized"].update(scale=[-1.0]), "scales must be positive"),
        (lambda d: node(d, "x")["provenance"].update(made_by="abc"), "field 'provenance'"),
        (lambda d: d["nodes"].pop(), "has no output node at its end"),
        (lambda d: d["nodes"].insert(0, d["nodes"][0]), "specifies no input for the node 'x'"),
        (lambda d: d.update(nodes=[]), "damaged"),
        (lambda d: d["inputs"][0].update(dtype="complex1024"), "damaged"),
        (lambda d: d["inputs"][0].update(shape=[None, 4.0]), "holds 4.0 where it needs int"),
        (lambda d: d["outputs"][0].update(more=1), "the field 'outputs' of the program's description"),
    ],
)
def test_anything_unknown_or_inconsistent_is_rejected(change: Callable[[dict[str, Any]], object], message: str) -> None:
    description, tensors = described()
    change(description)
    with pytest.raises(ArtifactError, match=message) as error:
        load(description, tensors)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("description", [[], None, "text", {"format": 2}])
def test_what_is_no_description_is_rejected(description: Any) -> None:
    with pytest.raises(ArtifactError):
        load(description, {})


def test_tensors_are_exactly_those_of_the_constants() -> None:
    description, tensors = described()
    with pytest.raises(ArtifactError, match="the tensor 'more' belongs to no constant"):
        load(description, tensors | {"more": torch.ones(1)})
    with pytest.raises(ArtifactError, match="constant 'bias' is missing"):
        load(description, {"weight": tensors["weight"]})
    with pytest.raises(ArtifactError, match="field 'sha256'"):
        load(description, tensors | {"bias": tensors["bias"] + 1})


def test_reserved_names_of_constants_are_rejected() -> None:
    description, tensors = described()
    node(description, "weight")["attribute"] = "forward"
    tensors["forward"] = tensors.pop("weight")
    with pytest.raises(ArtifactError, match="constant 'forward' has a reserved name"):
        load(description, tensors)


def test_programs_with_unknown_ops_are_not_written() -> None:
    builder = GraphBuilder()
    x = builder.input("x", (None, 4), torch.uint8)
    y = builder.call(aten.bitwise_not.default, x)
    spec = ValueSpec("x", torch.uint8, (None, 4))
    with pytest.raises(ArtifactError, match="uses the op 'aten.bitwise_not.default'"):
        dump(Program(builder.finish(y), Stage.INTEGER, (spec,), (spec,)))
