from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.passes.canonicalize.normalize_arithmetic import NormalizeArithmetic
from qcompiler.passes.canonicalize.raise_rms_norm import RaiseRmsNorm
from qcompiler.passes.canonicalize.remove_identities import RemoveIdentities

ROWS = (2, 3, 8)


def llama(m: nn.Module, x: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    return m.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


@pytest.mark.parametrize(
    ("function", "weight", "epsilon"),
    [
        (llama, True, 1e-6),
        (lambda m, x: x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5), False, 1e-5),
        (lambda m, x: x * ((x**2).mean(2, True) + 1e-5) ** -0.5, False, 1e-5),
        (lambda m, x: nn.functional.rms_norm(x, (8,), m.weight), True, torch.finfo(torch.float32).eps),
    ],
)
def test_golden(rewrite: Callable, network: type, function: Callable, weight: bool, epsilon: float) -> None:
    model = network(function, weight=torch.rand(8) + 0.5)
    rewritten = rewrite(RaiseRmsNorm(), model, ROWS, before=[RemoveIdentities(), NormalizeArithmetic()])
    names = [str(node.target) for node in rewritten.program.graph.nodes if node.op == "get_attr"]
    expected = f"aten.rms_norm(inputs_0, normalized_shape=[8], {names[0] if weight else 'weight=None'}, eps={epsilon})"
    assert rewritten.expressions == [expected]


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),  # another dimension
        lambda m, x: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6),
        lambda m, x: x.relu() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    ],
)
def test_left_alone(rewrite: Callable, network: type, function: Callable) -> None:
    assert not rewrite(RaiseRmsNorm(), network(function), ROWS, before=[NormalizeArithmetic()]).result.modified


def test_several_dimensions_are_declined(rewrite: Callable, network: type) -> None:
    rewritten = rewrite(RaiseRmsNorm(), network(lambda m, x: nn.functional.rms_norm(x, (3, 8))), ROWS)
    assert not rewritten.result.modified and "over several dimensions" in rewritten.result.notes[0]
