from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.passes.canonicalize.sink_reshapes import SinkReshapes


class Model(nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(x, y)


def folded(x: Tensor) -> Tensor:
    return x.reshape(-1, 2, 6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: folded(x).relu(),
        lambda x, y: folded(x).sigmoid().clamp(0.1, 0.9),
        lambda x, y: folded(x) + folded(y),
        lambda x, y: folded(x) * folded(y) - 3.0,
        lambda x, y: folded(x) + 2.0,
    ],
)
def test_reshape_comes_last(rewrite: Callable, function: Callable) -> None:
    rewritten = rewrite(SinkReshapes(), Model(function), (1, 4, 3), (1, 4, 3))
    assert rewritten.ops["reshape"] == 1
    *_, last, output = rewritten.program.graph.nodes
    assert output.op == "output" and "reshape" in last.name


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: folded(x) + y[:, :2].reshape(-1, 2, 3).sum(2, keepdim=True).reshape(-1, 2, 1),
        lambda x, y: folded(x) + y.reshape(-1, 12)[:, :6].reshape(-1, 1, 6),  # broadcasts
        lambda x, y: folded(x).mean(1),
        lambda x, y: folded(x) + torch.ones(6),
    ],
)
def test_left_alone(rewrite: Callable, function: Callable) -> None:
    assert not rewrite(SinkReshapes(), Model(function), (1, 4, 3), (1, 4, 3)).result.modified


def test_reshape_read_elsewhere_is_left_alone(rewrite: Callable) -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        z = folded(x)
        return z.relu() * z.mean(2, keepdim=True)

    assert not rewrite(SinkReshapes(), Model(function), (1, 4, 3), (1, 4, 3)).result.modified
