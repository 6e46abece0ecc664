from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.passes.canonicalize.normalize_arithmetic import NormalizeArithmetic


class Model(nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("channels", torch.rand(4, 1) + 0.5)
        self.register_buffer("number", torch.tensor(2.5))
        self.register_buffer("integers", torch.arange(1, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.mark.parametrize(
    ("function", "ops"),
    [
        (lambda m, x: x - 3, {"add": 1}),
        (lambda m, x: torch.add(x, m.channels, alpha=2), {"add": 1}),
        (lambda m, x: torch.sub(x, m.channels, alpha=2), {"add": 1}),
        (lambda m, x: m.channels + x, {"add": 1}),
        (lambda m, x: m.channels * x, {"mul": 1}),
        (lambda m, x: 1 - x, {"mul": 1, "add": 1}),
        (lambda m, x: m.channels - x, {"mul": 1, "add": 1}),
        (lambda m, x: torch.rsub(x, 5.0, alpha=2), {"mul": 1, "add": 1}),
        (lambda m, x: x / 6, {"mul": 1}),
        (lambda m, x: x / m.channels, {"mul": 1}),
        (lambda m, x: m.number / (x.abs() + 1), {"abs": 1, "add": 1, "reciprocal": 1, "mul": 1}),
        (lambda m, x: torch.add(x, x.relu(), alpha=3), {"relu": 1, "mul": 1, "add": 1}),
        (lambda m, x: torch.sub(x, x.relu(), alpha=3), {"relu": 1, "mul": 1, "sub": 1}),
        (lambda m, x: torch.sub(x, x.relu(), alpha=-3), {"relu": 1, "mul": 1, "add": 1}),
        (lambda m, x: (x - m.channels + 2) - m.number, {"add": 1}),
        (lambda m, x: x * 2 / m.channels * 3, {"mul": 1}),
        (lambda m, x: x * x, {"pow": 1}),
        (lambda m, x: x.square(), {"pow": 1}),
        (lambda m, x: x + x, {"mul": 1}),
        (lambda m, x: x * m.number, {"mul": 1}),
        (lambda m, x: x + m.integers, {"add": 1}),
    ],
)
def test_forms(rewrite: Callable, function: Callable, ops: dict[str, int]) -> None:
    rewritten = rewrite(NormalizeArithmetic(), Model(function), (1, 4, 5))
    assert rewritten.result.modified
    assert {name: count for name, count in rewritten.ops.items() if count} == ops


def test_tensor_of_one_element_becomes_a_number(rewrite: Callable) -> None:
    program = rewrite(NormalizeArithmetic(), Model(lambda m, x: x * m.number), (1, 4, 5)).program
    call = next(node for node in program.graph.nodes if node.op == "call_function")
    assert call.args[1] == 2.5 and not list(program.graph_module.buffers())


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x + m.channels,
        lambda m, x: x * 0.5,
        lambda m, x: x + x.relu(),
        lambda m, x: x - x.relu(),
        lambda m, x: x * x.relu(),
        lambda m, x: x / (x.abs() + 1),
        lambda m, x: (x + 1) * 2,
    ],
)
def test_left_alone(rewrite: Callable, function: Callable) -> None:
    assert not rewrite(NormalizeArithmetic(), Model(function), (1, 4, 5)).result.modified


def test_inner_value_read_elsewhere_is_not_taken_in(rewrite: Callable) -> None:
    def function(m: nn.Module, x: Tensor) -> Tensor:
        y = x + 1
        return (y + 2) * y

    assert not rewrite(NormalizeArithmetic(), Model(function), (1, 4, 5)).result.modified
