from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.passes.canonicalize.collect_masks import CollectMasks
from qcompiler.passes.canonicalize.normalize_arithmetic import NormalizeArithmetic
from qcompiler.passes.canonicalize.normalize_mask import NormalizeMask

SCORES = (2, 3, 5, 5)
LOWEST = torch.finfo(torch.float32).min


def softmax_of(scores: Tensor) -> Tensor:
    return scores.softmax(-1)


def additive(mask: Tensor) -> Tensor:
    return (1.0 - mask[:, None, None, :].float()) * LOWEST


def inverted(mask: Tensor) -> Tensor:
    rest = 1.0 - mask[:, None, None, :].float()
    return rest.masked_fill(rest.bool(), LOWEST)


def test_golden(rewrite: Callable, network: type) -> None:
    bias = torch.linspace(-1, 1, 25).reshape(5, 5)
    bias[0, 3] = -100

    def attention(m: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        return softmax_of(x.masked_fill(mask[:, None, None, :] == 0, -1e4) + m.bias)

    rewritten = rewrite(CollectMasks(), network(attention, bias=bias), SCORES, torch.ones(2, 5, dtype=torch.int64))
    assert rewritten.lines[-4:] == [
        "add_1 = aten.add.Tensor(inputs_0, softmax_bias)",
        "bitwise_or = aten.bitwise_or.Tensor(softmax_drop, eq)",
        "masked_fill_1 = aten.masked_fill.Scalar(add_1, bitwise_or, value=-inf)",
        "softmax_1 = aten.softmax.int(masked_fill_1, dim=-1)",
    ]


MASKED = [
    lambda m, x, mask: softmax_of(x + additive(mask)),
    lambda m, x, mask: softmax_of(additive(mask) + x),
    lambda m, x, mask: softmax_of(x + inverted(mask)),
    lambda m, x, mask: softmax_of(x + additive(mask).expand(-1, 3, 5, 5)),
    lambda m, x, mask: softmax_of(x + torch.where(mask[:, None, None, :] != 0, 0.0, LOWEST)),
    lambda m, x, mask: softmax_of(x + torch.where(mask[:, None, None, :] == 0, -math.inf, 0.0)),
    lambda m, x, mask: softmax_of(torch.where(mask[:, None, None, :] != 0, x, -1e9)),
    lambda m, x, mask: softmax_of(torch.where(mask[:, None, None, :] == 0, -1e9, x)),
    lambda m, x, mask: softmax_of(x.masked_fill(mask[:, None, None, :] == 0, -1e9)),
    lambda m, x, mask: softmax_of(x + (mask[:, None, None, :] == 0).float() * -1e9),
]


@pytest.mark.parametrize("function", MASKED)
def test_masks(rewrite: Callable, network: type, function: Callable) -> None:
    before = [NormalizeMask(), NormalizeArithmetic()]
    rewritten = rewrite(CollectMasks(), network(function), SCORES, torch.ones(2, 5, dtype=torch.int64), before=before)
    masked, softmax = rewritten.lines[-2:]
    assert "aten.masked_fill.Scalar(inputs_0, " in masked and masked.endswith("value=-inf)")
    assert "aten.softmax.int(masked_fill" in softmax


def test_boolean_masks(rewrite: Callable, network: type) -> None:
    model = network(lambda m, x, keep: softmax_of(x + (1 - keep[:, None, None, :].to(x.dtype)) * -1e4))
    rewritten = rewrite(CollectMasks(), model, SCORES, torch.ones(2, 5, dtype=torch.bool), before=[NormalizeArithmetic()])
    assert rewritten.ops["logical_not"] == rewritten.ops["masked_fill"] == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x, mask: softmax_of(x + m.bias),  # bias alone is the form already
        lambda m, x, mask: softmax_of(x + mask[:, None, None, :].float()),  # leaves nothing out
        lambda m, x, mask: softmax_of(x + x.relu()),
        lambda m, x, mask: softmax_of(x.masked_fill(mask[:, None, None, :] == 0, -3.0)),
        lambda m, x, mask: softmax_of(x.masked_fill(mask[:, None, None, :] == 0, -math.inf)),
    ],
)
def test_left_alone(rewrite: Callable, network: type, function: Callable) -> None:
    model = network(function, bias=torch.randn(5, 5))
    assert not rewrite(CollectMasks(), model, SCORES, torch.ones(2, 5, dtype=torch.int64), before=[NormalizeMask()]).result.modified


def test_scores_that_others_read_are_left_alone(rewrite: Callable, network: type) -> None:
    def attention(m: nn.Module, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        masked = x + additive(mask).clamp(min=-80)
        return softmax_of(masked), masked

    assert not rewrite(CollectMasks(), network(attention), SCORES, torch.ones(2, 5, dtype=torch.int64)).result.modified
