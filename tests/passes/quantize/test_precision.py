"""Which option of ``quantize`` decides the bits of which value."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.ir.program import Program


class Attention(nn.Module):
    """Queries alone attend to themselves; then an MLP and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.fc1, self.fc2 = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.query(x)
        y = torch.softmax(q @ q.transpose(1, 2), dim=-1) @ q
        result: torch.Tensor = self.fc2(torch.nn.functional.gelu(self.fc1(y)))
        return result


def bits(options: str) -> dict[str, int]:
    """Bits of what each op gives."""
    torch.manual_seed(0)
    x = torch.randn(4, 5, 8)
    program: Program = qc.quantize(qc.capture(Attention().eval(), (x,)), [x], passes=f"canonicalize,quantize{{{options}}}")
    nodes = {node.name: node for node in program.graph.nodes}
    return {name: node.meta["quantized"].integer.bits for name, node in nodes.items() if f"{name}_quantize" in nodes}


def test_scores_functions_and_probabilities_have_bits_of_their_own() -> None:
    found = bits("w=4,a=4,score_bits=8,function_bits=7,probability_bits=6")
    assert found == {"x": 4, "linear": 4, "permute": 4, "matmul": 8, "softmax": 6, "matmul_1": 4, "linear_1": 7, "gelu": 4}


@pytest.mark.parametrize("options", ["w=4,a=5", "w=4,a=5,edge_bits=5"])
def test_without_options_all_have_the_bits_of_activations(options: str) -> None:
    assert set(bits(options).values()) == {5}


def test_first_and_last_layer_read_values_of_their_own_bits() -> None:
    found = bits("w=4,a=4,edge_bits=8")
    assert {name for name, width in found.items() if width == 8} == {"x", "gelu"}
