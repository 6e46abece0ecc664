from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler import artifact
from qcompiler.artifact import Artifact
from qcompiler.artifact.container import MANIFEST, unpack
from qcompiler.artifact.file import from_bytes, to_bytes
from qcompiler.artifact.packing import Packing, from_json, packings, to_json
from qcompiler.errors import ArtifactError
from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.ir.types import IntegerType, QuantizedType
from qcompiler.pipeline.backend import CompiledProgram


@given(st.sampled_from([1, 2, 4]), st.lists(st.integers(1, 7), max_size=3), st.integers(0, 2**32 - 1))
def test_round_trip(bits: int, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    high = 1 << bits >> 1
    tensor = torch.randint(-high, high, shape, generator=generator).to(torch.int8)
    tensor = 2 * tensor + 1 if bits == 1 else tensor
    packing = Packing(bits, tuple(shape))
    packed = packing.pack(tensor)
    assert packed.numel() == -(-tensor.numel() * bits // 8)
    assert torch.equal(packing.unpack(packed), tensor)


def test_two_four_and_eight_a_byte_the_first_one_lowest() -> None:
    assert Packing(4, (3,)).pack(torch.tensor([1, -2, 7], dtype=torch.int8)).tolist() == [0xE1, 0x07]
    assert Packing(2, (5,)).pack(torch.tensor([1, -2, -1, 0, 1], dtype=torch.int8)).tolist() == [0b00111001, 0b01]
    assert Packing(1, (9,)).pack(torch.tensor([-1, 1, 1, -1, -1, 1, 1, 1, -1], dtype=torch.int8)).tolist() == [0b00011001, 0b1]


def _with_weight_bits(program: Program, bits: int) -> Program:
    """The weight in the range of so many bits, and its type says so."""
    program = edit.copy(program)
    (node,) = (node for node in program.graph.nodes if node.op == "get_attr" and str(node.target) == "weight")
    program.graph_module.weight = edit.constant_value(node).clamp(-(1 << bits - 1), (1 << bits - 1) - 1)  # type: ignore[union-attr]
    node.meta["quantized"] = QuantizedType(IntegerType(bits, signed=True), (0.5, 0.25, 0.125), axis=0)
    return program


@pytest.mark.parametrize(("bits", "stored"), [(2, 2), (3, 4), (4, 4), (5, 8)])
def test_an_artifact_stores_what_the_type_says(program: Program, compiled: CompiledProgram, tmp_path: Path, bits: int, stored: int) -> None:
    narrow = _with_weight_bits(program, bits)
    artifact.write(tmp_path / "model.qca", narrow, compiled, ())
    manifest = json.loads(unpack((tmp_path / "model.qca").read_bytes())[MANIFEST])
    assert manifest["packed"] == ({"weight": {"bits": stored, "shape": [3, 2, 3, 3]}} if stored < 8 else {})
    again = artifact.read(tmp_path / "model.qca").program
    x = torch.randint(0, 256, (2, 2, 4, 4)).to(torch.uint8)
    assert torch.equal(*(each.graph_module.get_buffer("weight") for each in (again, narrow)))
    assert all(map(torch.equal, again.run_integer(x), narrow.run_integer(x)))


def test_only_constants_of_few_bits_everywhere_are_packed(program: Program) -> None:
    narrow = _with_weight_bits(program, 4)
    assert packings(narrow) == {"weight": Packing(4, (3, 2, 3, 3))}
    (node,) = (node for node in narrow.graph.nodes if str(node.target) == "weight")
    node.meta["quantized"] = replace(node.meta["quantized"], integer=IntegerType(8, signed=True))
    assert packings(narrow) == {}


def test_what_pack_does_not_give_is_refused() -> None:
    with pytest.raises(ArtifactError, match="packed integers are followed by others in their last byte"):
        Packing(4, (1,)).unpack(torch.tensor([0x21], dtype=torch.uint8))
    with pytest.raises(ArtifactError, match=r"packed integers are uint8 \[2\] for the shape \[3\], found \[1\]"):
        Packing(4, (3,)).unpack(torch.zeros(1, dtype=torch.uint8))


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"weight": 4},
        {"weight": {"bits": 4}},
        {"weight": {"bits": 3, "shape": [1]}},
        {"weight": {"bits": True, "shape": [1]}},
        {"weight": {"bits": 4, "shape": [True]}},
        {"weight": {"bits": 4, "shape": ""}},
        {"weight": {"bits": 1, "shape": [0, 1 << 80]}},  # no byte, but more than a size can be
    ],
)
def test_descriptions_are_read_strictly(value: object) -> None:
    with pytest.raises(ArtifactError, match="the manifest"):
        from_json(value)
    packed = {"weight": Packing(2, (3, 5))}
    assert from_json(to_json(packed)) == packed


def _with_weight(program: Program, weight: torch.Tensor, bits: int) -> Program:
    program = edit.copy(program)
    program.graph_module.weight = weight  # type: ignore[assignment]  # a buffer
    (node,) = (node for node in program.graph.nodes if str(node.target) == "weight")
    node.meta["quantized"] = QuantizedType(IntegerType(bits, signed=True), (0.5, 0.25, 0.125), axis=0)
    return program


@pytest.mark.parametrize("bits", [2, 8])
def test_weights_that_are_all_minus_one_and_one_take_a_bit_each(
    program: Program, compiled: CompiledProgram, tmp_path: Path, bits: int
) -> None:
    signs = torch.randint(0, 2, (3, 2, 3, 3), generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(torch.int8)
    binary = _with_weight(program, signs, bits)
    artifact.write(tmp_path / "model.qca", binary, compiled, ())
    stored = safetensors.torch.load(unpack((tmp_path / "model.qca").read_bytes())["weights.safetensors"])
    assert stored["weight"].numel() == -(-54 // 8)
    again = artifact.read(tmp_path / "model.qca").program
    x = torch.randint(0, 256, (2, 2, 4, 4)).to(torch.uint8)
    assert torch.equal(again.graph_module.get_buffer("weight"), signs)
    assert all(map(torch.equal, again.run_integer(x), binary.run_integer(x)))


def test_one_zero_and_a_weight_is_not_binary(program: Program) -> None:
    signs = torch.ones(3, 2, 3, 3, dtype=torch.int8)
    assert packings(_with_weight(program, signs, 2))["weight"].bits == 1
    signs[2, 1, 2, 2] = 0
    assert packings(_with_weight(program, signs, 2))["weight"].bits == 2
    assert packings(_with_weight(program, signs - 1, 1))["weight"].bits == 2, "a type of 1 bit holds -1 and 0"


def test_a_binary_weight_in_two_bits_is_no_artifact(program: Program, compiled: CompiledProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte sequence for each content: what this release stores in 1 bit is refused in 2."""
    binary = Artifact(_with_weight(program, torch.ones(3, 2, 3, 3, dtype=torch.int8), 2), compiled)
    with monkeypatch.context() as patch:
        patch.setattr("qcompiler.artifact.packing.is_binary", lambda integers: False)
        data = to_bytes(binary)
        from_bytes(data)
    with pytest.raises(ArtifactError, match="the manifest does not describe the rest of the file"):
        from_bytes(data)
