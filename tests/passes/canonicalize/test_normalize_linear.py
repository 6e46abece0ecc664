from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.passes.canonicalize.fold_constants import FoldConstants
from qcompiler.passes.canonicalize.normalize_linear import NormalizeLinear


class Product(nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function
        self.matrix = nn.Parameter(torch.randn(5, 4))
        self.square = nn.Parameter(torch.randn(5, 5))
        self.vector = nn.Parameter(torch.randn(4))
        self.long = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda m, x: x @ m.matrix, (1, 5)),
        (lambda m, x: x @ m.matrix, (1, 3, 5)),
        (lambda m, x: torch.mm(x, m.matrix), (1, 5)),
        (lambda m, x: torch.mm(x, m.matrix.t().contiguous().t()), (1, 5)),
        (lambda m, x: torch.addmm(m.vector, x, m.matrix), (1, 5)),
        (lambda m, x: torch.addmm(m.vector, x, m.matrix, beta=0.5, alpha=3), (1, 5)),
    ],
)
def test_constant_matrix(rewrite: Callable, function: Callable, shape: tuple[int, ...]) -> None:
    assert rewrite(NormalizeLinear(), Product(function), shape, before=[FoldConstants()]).ops == {"linear": 1}


@pytest.mark.parametrize(
    ("function", "notes"),
    [
        (lambda m, x: m.square @ x[:, :, None], 0),
        (lambda m, x: x[:, None, :] @ x[:, :, None], 0),
        (lambda m, x: x @ m.long, 1),
        (lambda m, x: torch.addmm(x @ m.matrix, x, m.matrix), 1),
    ],
)
def test_left_alone(rewrite: Callable, function: Callable, notes: int) -> None:
    rewritten = rewrite(NormalizeLinear(), Product(function), (1, 5))
    assert len([note for note in rewritten.result.notes if "left alone" in note]) == notes
    assert rewritten.ops["matmul"] + rewritten.ops["addmm"] == 1
