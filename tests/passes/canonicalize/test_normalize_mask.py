from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qcompiler.passes.canonicalize.normalize_mask import NormalizeMask

IDS = torch.ones(2, 5, dtype=torch.int64)
KEEP = torch.ones(2, 5, dtype=torch.bool)


def members() -> dict[str, Tensor]:
    return {
        "number": torch.tensor(3),
        "vector": torch.tensor([1]),
        "every": torch.ones(1, 5, dtype=torch.bool),
        "column": torch.ones(5, 1, dtype=torch.bool),
    }


@pytest.mark.parametrize(
    ("function", "lines"),
    [
        (lambda m, x: x == m.number, ["eq_1 = aten.eq.Scalar(inputs_0, other=3)"]),
        (lambda m, x: m.number < x, ["gt = aten.gt.Scalar(inputs_0, other=3)"]),
        (lambda m, x: torch.ge(m.vector, x), ["le = aten.le.Scalar(inputs_0, other=1)"]),
        (lambda m, x: x.bool(), ["ne = aten.ne.Scalar(inputs_0, other=0)"]),
        (lambda m, x: ~(x > 0), ["le = aten.le.Scalar(inputs_0, other=0)"]),
        (lambda m, x: (x == 1).logical_not().logical_not(), ["eq_1 = aten.eq.Scalar(inputs_0, other=1)"]),
        (lambda m, x: (x > 0).logical_and(m.every), ["gt = aten.gt.Scalar(inputs_0, other=0)"]),
        (
            lambda m, x: (x > 0) & (x < 2) | (x == 7),
            [
                "gt = aten.gt.Scalar(inputs_0, other=0)",
                "lt = aten.lt.Scalar(inputs_0, other=2)",
                "bitwise_and = aten.bitwise_and.Tensor(gt, lt)",
                "eq = aten.eq.Scalar(inputs_0, other=7)",
                "bitwise_or = aten.bitwise_or.Tensor(bitwise_and, eq)",
            ],
        ),
        (
            lambda m, x: ~(x > 0).unsqueeze(1).expand(-1, 3, -1),
            [
                "le = aten.le.Scalar(inputs_0, other=0)",
                "unsqueeze_1 = aten.unsqueeze(le, dim=1)",
                "expand_1 = aten.expand(unsqueeze_1, size=[-1, 3, -1])",
            ],
        ),
    ],
)
def test_golden(rewrite: Callable, network: type, function: Callable, lines: list[str]) -> None:
    rewritten = rewrite(NormalizeMask(), network(function, **members()), IDS)
    assert rewritten.lines == lines


def test_neutral_constant_that_gives_the_shape(rewrite: Callable, network: type) -> None:
    model = network(lambda m, x: (x > 0).unsqueeze(1) & m.column, **members())
    rewritten = rewrite(NormalizeMask(), model, IDS)
    assert "expand" in rewritten.ops and "bitwise_and" not in rewritten.ops


@pytest.mark.parametrize("function", [lambda m, x: x == 2, lambda m, x: (x > 0) == (x < 3), lambda m, x: (x.float() > 0.5).logical_not()])
def test_left_alone(rewrite: Callable, network: type, function: Callable) -> None:
    assert not rewrite(NormalizeMask(), network(function), IDS).result.modified
