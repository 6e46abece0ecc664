from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.passes.canonicalize.fold_constants import FoldConstants
from qcompiler.passes.canonicalize.normalize_arithmetic import NormalizeArithmetic
from qcompiler.passes.canonicalize.raise_layer_norm import RaiseLayerNorm

ROWS = (2, 3, 8)


def squared(m: nn.Module, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return m.weight * centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5) + m.bias


def twice(m: nn.Module, x: Tensor) -> Tensor:
    variance = (x - x.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True)
    return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(variance + 1e-5)


def by_variance(m: nn.Module, x: Tensor) -> Tensor:
    return (x - x.mean(2, True)) * (x.var(-1, unbiased=False, keepdim=True) + 1e-3) ** -0.5 * m.weight


def parameters() -> dict[str, Tensor]:
    return {"weight": torch.rand(8) + 0.5, "bias": torch.randn(8)}


@pytest.mark.parametrize(
    ("function", "call"),
    [
        (squared, "aten.layer_norm(inputs_0, normalized_shape=[8], {}, {}, eps=1e-05)"),
        (twice, "aten.layer_norm(inputs_0, normalized_shape=[8], weight=None, bias=None, eps=1e-05)"),
        (by_variance, "aten.layer_norm(inputs_0, normalized_shape=[8], {}, bias=None, eps=0.001)"),
    ],
)
def test_golden(rewrite: Callable, network: type, function: Callable, call: str) -> None:
    rewritten = rewrite(RaiseLayerNorm(), network(function, **parameters()), ROWS, before=[NormalizeArithmetic()])
    assert len(rewritten.lines) == 1
    names = [str(node.target) for node in rewritten.program.graph.nodes if node.op == "get_attr"]
    assert rewritten.lines[0].partition(" = ")[2] == call.format(*names)


def test_several_dimensions(rewrite: Callable, network: type) -> None:
    model = network(lambda m, x: m.norm(x), norm=nn.LayerNorm((3, 8)))
    nn.init.normal_(model.norm.weight)
    nn.init.normal_(model.norm.bias)
    rewritten = rewrite(RaiseLayerNorm(), model, (2, 4, 3, 8))
    assert rewritten.ops == {"reshape": 2, "layer_norm": 1}


def convnext(m: nn.Module, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    return m.weight[:, None, None] * ((x - mean) / torch.sqrt(variance + 1e-6)) + m.bias[:, None, None]


def rows_of_columns(m: nn.Module, x: Tensor) -> Tensor:
    return (x - x.mean(2, keepdim=True)) * torch.rsqrt(x.var(2, unbiased=False, keepdim=True) + 1e-6) * m.weight[:, None] + m.bias[:, None]


@pytest.mark.parametrize(("function", "shape"), [(convnext, (2, 8, 3, 5)), (rows_of_columns, (2, 3, 8, 5)), (convnext, (2, 8, 8, 8))])
def test_another_dimension(rewrite: Callable, network: type, function: Callable, shape: tuple[int, ...]) -> None:
    model = network(function, **parameters())
    rewritten = rewrite(RaiseLayerNorm(), model, shape, before=[FoldConstants(), NormalizeArithmetic()])
    assert rewritten.ops == {"permute": 2, "layer_norm": 1}


def test_constants_along_another_dimension_than_the_normalized_one_stay(rewrite: Callable, network: type) -> None:
    model = network(lambda m, x: F.layer_norm(x.transpose(1, 3), (8,)).permute(0, 3, 1, 2) * m.weight, **parameters())
    assert not rewrite(RaiseLayerNorm(), model, (2, 8, 8, 8), before=[NormalizeArithmetic()]).result.modified


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: F.layer_norm(x, (8,), m.weight, m.bias),
        lambda m, x: (x - x.mean(1, keepdim=True)) * torch.rsqrt(x.var(2, unbiased=False, keepdim=True) + 1e-5),
        lambda m, x: (x - x.mean((1, 2), keepdim=True)) * torch.rsqrt(x.var((1, 2), unbiased=False, keepdim=True) + 1e-5),
        lambda m, x: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-5),  # with Bessel's correction
        lambda m, x: F.layer_norm(x, (8,)) * m.weight[:, None, None].mean(0),
    ],
)
def test_left_alone(rewrite: Callable, network: type, function: Callable) -> None:
    before = [NormalizeArithmetic()]
    assert not rewrite(RaiseLayerNorm(), network(function, **parameters()), ROWS, before=before).result.modified
