from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.errors import PassError
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.types import Stage
from qcompiler.passes.reconstruct.blocks import find_blocks
from qcompiler.passes.reconstruct.layers import find_layers

Shape = list[tuple[str, str, int]]


def shape_of(case: Any, least: int = 1) -> Shape:
    """(source, output, number of layers) of each block."""
    layers, declined = find_layers(case.qdq, case.reference)
    assert not declined
    blocks = find_blocks(case.qdq, case.reference, layers, least)
    return [("+".join(n.name for n in block.sources), "+".join(n.name for n in block.outputs), len(block.layers)) for block in blocks]


def test_residual_blocks(network: Any) -> None:
    # The activation after a sum keeps its shape and belongs to the block before; pooling belongs to the classifier.
    assert shape_of(network) == [("x", "relu", 1), ("relu", "relu_2", 2), ("relu_2", "relu_4", 2), ("relu_4", "linear", 1)]


def test_blocks_of_at_least_so_many_layers(network: Any) -> None:
    assert shape_of(network, 3) == [("x", "relu_2", 3), ("relu_2", "linear", 3)]
    assert shape_of(network, 100) == [("x", "linear", 6)]


class Chain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(64, 3), nn.Sigmoid())


def test_a_chain_is_cut_after_each_layer(cases: Any) -> None:
    case = cases.quantized(Chain(), cases.images(8, 1), cases.images(8, 2), w=4)
    assert [layers for _, _, layers in shape_of(case)] == [1, 1, 1]
    assert shape_of(case)[-1][1] == "sigmoid"


class TwoPaths(nn.Module):
    """Two inputs and two outputs; what the second output reads bypasses the last layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last, self.side = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = F.relu(self.first(x) + self.second(y))
        return F.relu(self.last(z)), F.relu(self.side(z))


def test_several_inputs_and_outputs(cases: Any) -> None:
    from qcompiler.calibration.data import CalibrationData
    from qcompiler.capture import capture
    from qcompiler.pipeline.manager import PassManager
    from qcompiler.pipeline.text import parse_pipeline

    torch.manual_seed(0)
    inputs = (cases.images(32, 1), cases.images(32, 2).flip(2))
    program = PassManager(parse_pipeline("canonicalize")).run(capture(TwoPaths().eval(), inputs))
    data = CalibrationData([inputs], program.inputs)
    qdq = PassManager(parse_pipeline("quantize{w=3}")).run(program, data)
    layers, _ = find_layers(qdq, program)
    blocks = find_blocks(qdq, program, layers)
    assert [(len(block.sources), len(block.outputs), len(block.layers)) for block in blocks] == [(2, 1, 2), (1, 2, 2)]
    result = PassManager(parse_pipeline("reconstruct-blocks{steps=60}")).run(qdq, data, reference=program)
    for expected, before, after in zip(program.run(*inputs), qdq.run(*inputs), result.run(*inputs), strict=True):
        assert (after - expected).square().sum() < 0.9 * (before - expected).square().sum()


def test_no_float_output() -> None:
    builder = GraphBuilder()
    x = builder.input("x", (None, 3), torch.int32)
    y = builder.call(torch.ops.aten.neg.default, x)
    spec = ValueSpec("x", torch.int32, (None, 3))
    program = Program(builder.finish(y), Stage.QDQ, (spec,), (spec,))
    with pytest.raises(PassError, match="no float output"):
        find_blocks(program, program, [])
