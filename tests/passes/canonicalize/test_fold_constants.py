from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qcompiler.ir import edit
from qcompiler.passes.canonicalize.fold_constants import FoldConstants


class Standardized(nn.Module):
    """Weight standardization, and constants made in ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(1, keepdim=True)
        return nn.functional.linear(x, weight * 2) + torch.arange(4).flip(0) + torch.full((4,), 0.5)


def test_what_depends_on_parameters_alone_is_computed(rewrite: Callable) -> None:
    rewritten = rewrite(FoldConstants(), Standardized(), (1, 6))
    assert rewritten.ops == {"linear": 1, "add": 2}
    assert len(list(rewritten.program.graph_module.buffers())) == 3


def test_value_is_that_of_the_op(rewrite: Callable) -> None:
    model = Standardized()
    program = rewrite(FoldConstants(), model, (1, 6)).program
    linear = next(node for node in program.graph.nodes if edit.is_call(node, torch.ops.aten.linear.default))
    with torch.no_grad():
        assert torch.equal(edit.constant_value(linear.args[1]), (model.weight - model.weight.mean(1, keepdim=True)) * 2)


def test_what_depends_on_inputs_is_left_alone(rewrite: Callable) -> None:
    assert not rewrite(FoldConstants(), nn.Linear(6, 4), (1, 6)).result.modified
