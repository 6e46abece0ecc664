from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.passes.canonicalize.normalize_arithmetic import NormalizeArithmetic
from qcompiler.passes.canonicalize.raise_layer_norm_moments import RaiseLayerNormMoments

ROWS = (2, 3, 8)


def last(m: nn.Module, x: Tensor) -> Tensor:
    mean, squares = x.mean(-1, keepdim=True), (x * x).mean(-1, keepdim=True)
    return (x - mean) * (torch.rsqrt(squares - mean * mean + 1e-3) * m.weight) + m.bias


def positions(m: nn.Module, x: Tensor) -> Tensor:
    """As Flax writes it, over the positions: the reductions lose their dimension, and views put it back."""
    mean, squares = x.sum(1) * (1 / 3), (x * x).sum(1) * (1 / 3)
    variance = torch.relu(squares - mean * mean)
    root = torch.reciprocal(torch.sqrt(variance + 1e-3)).reshape(-1, 1, 8)
    return (x - mean.unsqueeze(1)) * (root * m.columns) + m.columns


def parameters() -> dict[str, Tensor]:
    return {"weight": torch.rand(8) + 0.5, "bias": torch.randn(8), "columns": torch.rand(1, 3, 1) + 0.5}


def test_over_the_last_dimension(rewrite: Callable, network: type) -> None:
    rewritten = rewrite(RaiseLayerNormMoments(), network(last, **parameters()), ROWS, before=[NormalizeArithmetic()])
    assert [line.partition("(")[0] for line in rewritten.expressions] == ["aten.layer_norm"]


def test_over_positions(rewrite: Callable, network: type) -> None:
    rewritten = rewrite(RaiseLayerNormMoments(), network(positions, **parameters()), ROWS, before=[NormalizeArithmetic()])
    assert [line.partition("(")[0] for line in rewritten.expressions] == ["aten.permute", "aten.layer_norm", "aten.permute"]


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: (x - x.mean(-1, True)) * torch.rsqrt((x * x).mean(-1, True) - x.mean(1, True) ** 2 + 9),  # two dimensions
        lambda m, x: (x - x.mean(-1, True)) * torch.rsqrt((x * x).mean(-1, True) + x.mean(-1, True) ** 2 + 1),  # a sum
        lambda m, x: (x - x.sum(-1, True)) * torch.rsqrt((x * x).sum(-1, True) - x.sum(-1, True) ** 2 + 99),  # no means
    ],
)
def test_left_alone(rewrite: Callable, network: type, function: Callable) -> None:
    assert not rewrite(RaiseLayerNormMoments(), network(function), ROWS, before=[NormalizeArithmetic()]).result.modified
