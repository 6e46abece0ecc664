"""Small programs and passes for the tests of the pipeline."""

from __future__ import annotations

import pytest
import torch

from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.types import Stage


@pytest.fixture
def small_program() -> Program:
    """y = relu(x * w) at stage FLOAT."""
    builder = GraphBuilder()
    x = builder.input("x", (None, 3), torch.float32)
    product = builder.call(torch.ops.aten.mul.Tensor, x, builder.constant("w", torch.tensor([1.0, -2.0, 3.0])), name="product")
    result = builder.call(torch.ops.aten.relu.default, product, name="activation")
    specs = [ValueSpec(name, torch.float32, (None, 3)) for name in ("x", "y")]
    return Program(builder.finish(result), Stage.FLOAT, (specs[0],), (specs[1],))


@pytest.fixture
def data() -> list[torch.Tensor]:
    return list(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).split(4))
