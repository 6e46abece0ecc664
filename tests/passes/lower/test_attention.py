from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import UnsupportedOpError
from qcompiler.ir.types import INT16


class Attention(nn.Module):
    """Pre-norm self-attention around a shortcut, with some negative scales in its LayerNorm."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.query_key_value, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        with torch.no_grad():
            self.norm.weight.copy_(torch.linspace(-1.0, 2.0, width))
            self.norm.bias.copy_(torch.linspace(0.5, -0.5, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.query_key_value(self.norm(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5, dim=-1)
        return x + self.projection((weights @ value).transpose(1, 2).reshape(batch, tokens, width))


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_attention_is_integers_only_and_close_to_its_simulation(compile_network: Callable[..., Any]) -> None:
    torch.manual_seed(1)
    compiled = compile_network(Attention(), (3, 7, 16))
    assert {"qc.normalize", "qc.matmul", "qc.softmax", "qc.add"} <= set(compiled.ops)
    compiled.integer.verify()
    # Softmax and LayerNorm round once in QDQ and a few times in integers: steps of the 8-bit operands, each small against the output.
    assert compiled.integer.inputs[0].quantized is not None and compiled.integer.inputs[0].quantized.integer == INT16
    assert compiled.steps_apart() < 4


# A LayerNorm that is an output has 16 bits; its core keeps 11 bits of each row's largest magnitude (docs/arithmetic.md).
@pytest.mark.parametrize(
    ("function", "steps"),
    [
        (lambda x: torch.softmax(x, dim=-1), 1.001),
        (lambda x: nn.functional.layer_norm(x, (16,)), 16.0),
        (lambda x: nn.functional.layer_norm(x, (16,), -torch.ones(16), None), 16.0),
        (lambda x: nn.functional.layer_norm(x, (16,)) @ x.transpose(1, 2), 1.1),
        (lambda x: x @ x.transpose(1, 2), 1.001),
    ],
)
def test_each_op_within_a_step_of_its_simulation(
    function: Callable[[Tensor], Tensor], steps: float, compile_network: Callable[..., Any]
) -> None:
    assert compile_network(Function(function), (3, 7, 16)).steps_apart() < steps


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.softmax(x, dim=1), "runs over dimension 1, not the last"),
        (lambda x: nn.functional.layer_norm(x, (7, 16)), "runs over several dimensions"),
    ],
)
def test_rejections(function: Callable[[Tensor], Tensor], message: str, compile_network: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedOpError, match=message):
        compile_network(Function(function), (3, 7, 16), canonicalize=False)
