from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.passes.canonicalize.normalize_arithmetic import NormalizeArithmetic
from qcompiler.passes.canonicalize.raise_softmax import RaiseSoftmax


def stable(m: nn.Module, x: Tensor) -> Tensor:
    exponentials = torch.exp(x - x.amax(-1, keepdim=True))
    return exponentials / exponentials.sum(-1, keepdim=True)


def plain(m: nn.Module, x: Tensor) -> Tensor:
    exponentials = x.exp()
    return exponentials / exponentials.sum(2, keepdim=True)


def without_dimensions(m: nn.Module, x: Tensor) -> Tensor:
    exponentials = torch.exp(x - x.amax(-1).unsqueeze(-1))
    return exponentials / exponentials.sum(-1).reshape(-1, 3, 1)


@pytest.mark.parametrize(
    "function", [stable, plain, without_dimensions, lambda m, x: x.softmax(2), lambda m, x: (x - x.amax(-1, keepdim=True)).softmax(-1)]
)
def test_golden(rewrite: Callable, network: type, function: Callable) -> None:
    rewritten = rewrite(RaiseSoftmax(), network(function), (2, 3, 8), before=[NormalizeArithmetic()])
    assert rewritten.expressions == ["aten.softmax.int(inputs_0, dim=-1)"]


def test_another_dimension(rewrite: Callable, network: type) -> None:
    rewritten = rewrite(RaiseSoftmax(), network(lambda m, x: x.softmax(1)), (2, 3, 4, 5))
    assert rewritten.expressions == [
        "aten.permute(inputs_0, dims=[0, 2, 3, 1])",
        "aten.softmax.int(permute, dim=-1)",
        "aten.permute(softmax_1, dims=[0, 3, 1, 2])",
    ]


@pytest.mark.parametrize(
    "function",
    [lambda m, x: x.softmax(-1), lambda m, x: x.exp() / x.sum(-1, keepdim=True), lambda m, x: (x - x.amax(1, keepdim=True)).softmax(-1)],
)
def test_left_alone(rewrite: Callable, network: type, function: Callable) -> None:
    assert not rewrite(RaiseSoftmax(), network(function), (2, 3, 8)).result.modified
