from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.capture import capture
from qcompiler.ir import edit
from qcompiler.ir.elementwise import clamp_bounds
from qcompiler.passes.canonicalize.fuse_activation import FuseActivation
from qcompiler.passes.canonicalize.normalize_arithmetic import NormalizeArithmetic
from qcompiler.pipeline.manager import PassManager


class Model(nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [
        (F.relu6, 0, 6),
        (lambda x: F.hardtanh(x, -1, 2), -1, 2),
        (lambda x: x.clamp_min(0), 0, math.inf),
        (lambda x: x.clamp(min=0), 0, math.inf),
        (lambda x: x.clip(-1, 1), -1, 1),
        (lambda x: x.clamp_max(3), -math.inf, 3),
        (lambda x: F.relu(x).clamp(max=4), 0, 4),
        (lambda x: F.relu(F.relu(x)), 0, math.inf),
        (lambda x: F.relu6(x.clamp(-2, 9)), 0, 6),
        (lambda x: x.clamp(-3, -2).clamp(1, 2), 1, 1),
        (lambda x: F.relu6(x).clamp(-5, 8).clamp_min(2), 2, 6),
    ],
)
def test_bounds(rewrite: Callable, function: Callable, low: float, high: float) -> None:
    program = rewrite(FuseActivation(), Model(function), (1, 40)).program
    (call,) = [node for node in program.graph.nodes if node.op == "call_function"]
    assert clamp_bounds(call) == (low, high)
    assert edit.is_call(call, torch.ops.aten.relu.default) == ((low, high) == (0, math.inf))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: F.relu6(x + 3) / 6, "hardsigmoid"),
        (lambda x: (x + 3).clamp(0, 6) * (1 / 6), "hardsigmoid"),
        (lambda x: (x / 6 + 0.5).clamp(0, 1), "hardsigmoid"),
        (lambda x: x * F.relu6(x + 3) / 6, "hardswish"),
        (lambda x: x * (F.relu6(x + 3) / 6), "hardswish"),
        (lambda x: F.hardtanh(3 + x, 0, 6) * 0.16666667 * x, "hardswish"),
        (lambda x: F.hardsigmoid(x) * x, "hardswish"),
        (lambda x: x * torch.sigmoid(x), "silu"),
        (lambda x: torch.sigmoid(x) * x, "silu"),
        (lambda x: x * torch.tanh(F.softplus(x)), "mish"),
        (lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), "gelu"),
        (lambda x: x * 0.5 * (torch.erf(x * 0.70710678) + 1), "gelu"),
        (lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3)))), "gelu"),
        (lambda x: x * 0.5 * (torch.tanh((x * x * x * 0.044715 + x) * 0.7978845608) + 1), "gelu"),
        (lambda x: (1 + torch.exp(-x)).reciprocal(), "sigmoid"),
    ],
)
def test_written_out_activations(rewrite: Callable, function: Callable, name: str) -> None:
    rewritten = rewrite(FuseActivation(), Model(function), (1, 40), before=[NormalizeArithmetic()])
    assert rewritten.ops == {name: 1}


@pytest.mark.parametrize(
    "function",
    [
        F.relu,
        lambda x: x.clamp(-1, 1),
        lambda x: x.clamp(2, 1),  # limits out of order: everything is 1
        lambda x: x * torch.sigmoid(x * 1.702),
        lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * torch.pow(x, 3)))),
        lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 2)))),
        lambda x: x * F.softplus(x, beta=2).tanh(),
        lambda x: x * (x + 2.9).clamp(0, 6) * (1 / 6),
        lambda x: (x * 0.2 + 0.5).clamp(0, 1),
    ],
)
def test_left_alone(rewrite: Callable, function: Callable) -> None:
    assert not rewrite(FuseActivation(), Model(function), (1, 40), before=[NormalizeArithmetic()]).result.modified


def test_other_factors_stay(rewrite: Callable) -> None:
    rewritten = rewrite(FuseActivation(), Model(lambda x: x * torch.sigmoid(x) * 2), (1, 40))
    assert rewritten.ops == {"silu": 1, "mul": 1}


def test_gate_of_another_value_is_left_alone(rewrite: Callable) -> None:
    class Gated(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x * torch.sigmoid(y)

    assert not rewrite(FuseActivation(), Gated(), (1, 4), (1, 4)).result.modified


def test_inner_clamp_read_elsewhere_stays(rewrite: Callable) -> None:
    def function(x: Tensor) -> Tensor:
        y = x.clamp(-1, 1)
        return y.clamp(0, 2) + y

    assert not rewrite(FuseActivation(), Model(function), (1, 40)).result.modified


def test_a_root_of_two_in_float16() -> None:
    """Models that were converted to float16 mean GELU: its nearest number is 1e-4 from the root."""
    x = torch.randn(4, 40)
    model = Model(lambda x: x * 0.5 * (torch.erf(x / 1.4140625) + 1))
    program = PassManager((NormalizeArithmetic(), FuseActivation())).run(capture(model, (x,)))
    assert [str(node.target) for node in program.graph.nodes if node.op == "call_function"] == ["aten.gelu.default"]
    assert float((program(x) - model(x)).abs().max()) <= 1e-4
