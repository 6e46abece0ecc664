from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from qcompiler.passes.canonicalize.join_constants import JoinConstants


def with_tokens(m: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([m.first.expand(x.shape[0], -1, -1), m.second.expand(x.shape[0], -1, -1), x, m.third.expand(x.shape[0], -1, -1)], 1)


def tokens() -> dict[str, Tensor]:
    return {"first": torch.randn(1, 1, 4), "second": torch.randn(1, 1, 4), "third": torch.randn(1, 2, 4)}


def test_golden(rewrite: Callable, network: type) -> None:
    rewritten = rewrite(JoinConstants(), network(with_tokens, **tokens()), (1, 3, 4))
    assert rewritten.lines == [
        "constant_pad_nd = aten.constant_pad_nd(inputs_0, pad=[0, 0, 2, 2], value=0.0)",
        "add = aten.add.Tensor(constant_pad_nd, cat_constant)",
    ]


def test_along_another_dimension(rewrite: Callable, network: type) -> None:
    model = network(lambda m, x: torch.cat([x, m.rest.expand(x.shape[0], -1, -1, -1)], 2), rest=torch.randn(1, 3, 1, 5))
    assert rewrite(JoinConstants(), model, (1, 3, 4, 5)).ops == {"constant_pad_nd": 1, "add": 1}


@pytest.mark.parametrize(
    "function", [lambda m, x: torch.cat([x, x * 2], 1), lambda m, x: torch.cat([x, m.first.expand(x.shape[0], -1, -1), x], 1)]
)
def test_two_computed_values_are_left_alone(rewrite: Callable, network: type, function: Callable) -> None:
    assert not rewrite(JoinConstants(), network(function, **tokens()), (1, 3, 4)).result.modified


def test_a_sequence_is_declined(rewrite: Callable, network: type) -> None:
    model = network(lambda m, x: torch.cat([m.first.expand(x.shape[0], -1, -1), x], 1), **tokens())
    rewritten = rewrite(JoinConstants(), model, (2, 3, 4), dynamic_shapes={0: {1: Dim("sequence", min=1, max=8)}})
    assert not rewritten.result.modified and "known at run time only" in rewritten.result.notes[0]
