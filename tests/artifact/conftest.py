"""A small INTEGER program with every kind of content, and its artifact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qcompiler import artifact
from qcompiler.artifact import TestVector
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import PassRecord, Program, ValueSpec
from qcompiler.ir.provenance import Provenance
from qcompiler.ir.ranges import annotate
from qcompiler.ir.types import INT32, UINT8, QuantizedType, Stage
from qcompiler.pipeline.backend import CompiledProgram

qc = torch.ops.qc


@pytest.fixture(scope="session")
def program() -> Program:
    generator = torch.Generator().manual_seed(0)
    place = Provenance("net.py:7 in forward: x = self.conv(x)", "conv", ("capture", "lower-integer"))
    builder = GraphBuilder()
    x = builder.input("x", (None, 2, 4, 4), torch.uint8)
    weight = builder.constant("weight", torch.randint(-127, 128, (3, 2, 3, 3), generator=generator).to(torch.int8), place)
    bias = builder.constant("bias", torch.tensor([5, -6, 70], dtype=torch.int32), place)
    accumulator = builder.call(qc.convolution.default, x, weight, bias, [1, 1], [1] * 4, [1, 1], 1, 3, provenance=place)
    parameters = [builder.constant(name, torch.tensor(value, dtype=torch.int32)) for name, value in (("l", 8), ("m", 1 << 30), ("s", 14))]
    y = builder.call(qc.requantize.default, accumulator, *parameters, 0, 10, 0, 255, "high", 8, False, provenance=place)
    float32 = torch.float32
    input_type, output_type = QuantizedType(UINT8, (0.1,), (3,)), QuantizedType(UINT8, (0.30000001192092896,), (10,))
    for node, kind in ((x, input_type), (accumulator, QuantizedType(INT32, (0.5, 0.25, 0.125), axis=1)), (y, output_type)):
        node.meta["quantized"] = kind
    specs = ValueSpec("x", float32, (None, 2, 4, 4), input_type), ValueSpec("y", float32, (None, 3, 4, 4), output_type)
    history = (PassRecord("lower-integer", {"requantize": "auto", "narrow_tolerance": 0.02}, True, ("1 layer",)),)
    result = Program(builder.finish(y), Stage.INTEGER, specs[:1], specs[1:], history)
    annotate(result)
    return result


@pytest.fixture(scope="session")
def compiled() -> CompiledProgram:
    return CompiledProgram("x86-64-v3", {"library.so": b"\x7fELF not really", "plan.json": b"{}"}, ("one kernel",))


@pytest.fixture(scope="session")
def vectors(program: Program) -> tuple[TestVector, ...]:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randint(0, 256, (size, 2, 4, 4), generator=generator).to(torch.uint8) for size in (1, 2)]
    return tuple(TestVector((x,), program.run_integer(x)) for x in inputs)


@pytest.fixture
def path(tmp_path: Path, program: Program, compiled: CompiledProgram, vectors: tuple[TestVector, ...]) -> Path:
    file = tmp_path / "model.qca"
    artifact.write(file, program, compiled, vectors, recipe="int8")
    return file
