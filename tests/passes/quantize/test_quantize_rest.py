from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import qcompiler as qc
from qcompiler.capture import capture
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.ir.verifier import prove_integer_only
from qcompiler.passes.quantize.quantize_rest import QuantizeRest
from qcompiler.passes.quantize.real_ranges import real_ranges
from qcompiler.pipeline.contract import PassContext

ops = torch.ops.qc
BYTE = ([0.02], [0], -1, 8, True)
WEIGHT = ([0.01], [0], -1, 8, True)


def rounded(x: torch.Tensor) -> torch.Tensor:
    return ops.dequantize(ops.quantize(x, *BYTE), *BYTE)


class Network(torch.nn.Module):
    """Layers as a tool leaves them that quantizes what linear layers and matrix products read, and nothing else."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("w", torch.randint(-100, 100, (8, 8), dtype=torch.int8))
        self.register_buffer("up", torch.randint(-100, 100, (8, 3, 2, 2), dtype=torch.int8))
        self.register_buffer("bias", torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 90.0]))

    def weight(self) -> torch.Tensor:
        return ops.dequantize(self.w, *WEIGHT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def block(m: Network, x: torch.Tensor) -> torch.Tensor:
    """Pre-norm attention with its residual stream, scores and GELU in float."""
    x = F.linear(rounded(x), m.weight())
    y = rounded(F.layer_norm(x, [8]))
    scores = rounded(F.linear(y, m.weight())) @ rounded(F.linear(y, m.weight())).transpose(1, 2) * 0.35
    x = x + rounded(scores.softmax(-1)) @ rounded(y)
    return F.linear(rounded(F.gelu(F.linear(rounded(F.layer_norm(x, [8])), m.weight()))), m.weight()) + x


def transposed(m: Network, x: torch.Tensor) -> torch.Tensor:
    """Of two groups, each with its part of the bias; one channel reaches far beyond what weights alone give."""
    y = F.conv_transpose2d(rounded(x).reshape(-1, 8, 2, 2), ops.dequantize(m.up, *WEIGHT), m.bias, groups=2)
    return F.gelu(y)


CASES: dict[str, Callable] = {
    "block": block,
    "sum behind a sum": lambda m, x: F.linear(rounded(x), m.weight()) + rounded(x) + 2 * rounded(x),
    "output": lambda m, x: F.relu(rounded(x) + F.linear(rounded(x), m.weight())),
    "transposed": transposed,
    "joined": lambda m, x: F.linear(rounded(torch.cat([F.linear(rounded(x), m.weight()), rounded(x)], 1)), m.weight()),
}


def program(name: str) -> tuple[Program, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 8)
    return capture(Network(CASES[name]), (x,)), x


@pytest.mark.parametrize("name", CASES)
def test_the_rest_is_integers_too(name: str) -> None:
    source, x = program(name)
    assert source.stage is Stage.QDQ
    integer = qc.quantize(source)
    assert "0 float ops" in prove_integer_only(integer)
    wanted = source(x)
    assert float((integer(x) - wanted).abs().max()) <= 0.02 * float(wanted.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_ranges_hold_what_is_computed(name: str) -> None:
    source, x = program(name)
    intervals = real_ranges(source.graph)
    values: dict[str, torch.Tensor] = {}

    class Record(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            values[n.name] = super().run_node(n)
            return values[n.name]

    Record(source.graph_module).run(x * 4)
    assert len(intervals) >= 5
    for node, interval in intervals.items():
        assert interval.low - 1e-4 <= float(values[node.name].min()) and float(values[node.name].max()) <= interval.high + 1e-4, node


def test_a_file_that_rounds_everything_is_left_alone() -> None:
    source = capture(Network(lambda m, x: F.linear(rounded(F.relu(F.linear(rounded(x), m.weight()))), m.weight())), (torch.randn(2, 4, 8),))
    result = QuantizeRest().run(source, PassContext())
    assert not result.modified and result.program is source


def test_weights_and_constants_in_float() -> None:
    """A layer that a tool left out, and positions that are added."""

    class LeftOut(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = torch.nn.Parameter(torch.randn(4, 8))
            self.linear = torch.nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(F.layer_norm(rounded(x) + self.positions, [8]))

    torch.manual_seed(0)
    x = torch.randn(3, 4, 8)
    source = capture(LeftOut().eval(), (x,))
    integer = qc.quantize(source)
    assert "0 float ops" in prove_integer_only(integer)
    assert float((integer(x) - source(x)).abs().max()) <= 0.02 * float(source(x).abs().max())
    notes = [note for record in integer.history if record.name == "quantize-rest" for note in record.notes]
    assert sum("weight to 8 bits a channel" in note for note in notes) == 1
    assert sum("constant to 16 bits" in note for note in notes) == 1
