from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.ir import edit
from qcompiler.passes.equalize.split_linear import SplitLinear

WIDTH, HEADS = 12, 2


def by_parts(y: Tensor) -> tuple[Tensor, ...]:
    """timm's order: part, head, channel."""
    return y.reshape(y.shape[0], y.shape[1], 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)


def by_heads(y: Tensor) -> tuple[Tensor, ...]:
    """GPT-NeoX's order: head, part and channel."""
    return y.unflatten(-1, (HEADS, -1)).transpose(1, 2).chunk(3, dim=-1)


def plain(y: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in y.chunk(3, dim=-1))


class Attention(nn.Module):
    def __init__(self, parts: Callable[[Tensor], tuple[Tensor, ...]], bias: bool = True) -> None:
        super().__init__()
        self.parts, self.qkv = parts, nn.Linear(WIDTH, 3 * WIDTH, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(self.qkv(x))
        return ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("parts", [by_parts, by_heads, plain])
def test_each_part_has_a_layer_of_its_own(parts: Callable, bias: bool, apply: Callable) -> None:
    torch.manual_seed(0)
    done = apply(SplitLinear(), Attention(parts, bias), torch.randn(3, 5, WIDTH))
    layers = list(edit.calls(done.result.program.graph, torch.ops.aten.linear.default))
    assert [layer.meta["val"].shape[-1] for layer in layers] == [WIDTH] * 3
    assert done.difference < 1e-5 and "is cut into 3 layers" in done.notes


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda y: y[..., :5] @ y[..., 5:10].transpose(1, 2), "the parts overlap or leave channels out"),
        (lambda y: y[:, :2] * y[:, 2:4], "it is not cut along its channels"),
        (lambda y: (lambda z: z[:, :18] * z[:, 18:])(y.reshape(y.shape[0], -1, 5)), "a reshape mixes its channels with other dimensions"),
    ],
)
def test_what_is_left_alone(function: Callable, reason: str, apply: Callable) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, 3 * WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = function(self.linear(x))
            return result

    done = apply(SplitLinear(), Network(), torch.randn(3, 5, WIDTH))
    assert not done.result.modified and reason in done.notes


def test_a_layer_that_something_else_reads_is_no_candidate(apply: Callable) -> None:
    class Network(Attention):
        def forward(self, x: Tensor) -> Tensor:
            y = self.qkv(x)
            q, k, _ = self.parts(y)
            return (q @ k.transpose(-2, -1)).mean((1, 2, 3)) + y.mean((1, 2))

    done = apply(SplitLinear(), Network(plain), torch.randn(1, 5, WIDTH))
    assert not done.result.modified and done.result.notes == ()
