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


@pytest.mark.parametrize(
    ("function", "steps"),
    [
        (lambda x: torch.softmax(x, dim=-1), 1.001),
        (lambda x: nn.functional.layer_norm(x, (16,)), 1.1),
        (lambda x: nn.functional.layer_norm(x, (16,), -torch.ones(16), None), 1.1),
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


class Masked(nn.Module):
    """Softmax of scores of which some are left out."""

    def forward(self, x: Tensor) -> Tensor:
        drop = torch.arange(16) % 5 == 2
        return torch.softmax(x.masked_fill(drop, float("-inf")), dim=-1)


@pytest.mark.parametrize("form", ["table", "poly", "shift"])
def test_rounding_down_is_an_option(form: str, compile_network: Callable[..., object]) -> None:
    """No probability is larger than with rounding to nearest, none smaller by more than a step."""
    model = Function(lambda x: torch.softmax(x, dim=-1))
    near, down = (compile_network(model, (3, 7, 16), lower=f"softmax={form},rounding={how}") for how in ("nearest", "floor"))
    difference = (near.integer(*near.inputs) - down.integer(*near.inputs)) * 255
    assert difference.min() >= 0 and 0.99 < difference.max() < 1.01


@pytest.mark.parametrize(("form", "steps"), [("table", 1.001), ("poly", 1.001), ("shift", 3.001), ("shiftmax", 20), ("i-softmax", 12)])
@pytest.mark.parametrize("masked", [False, True])
def test_forms_of_softmax(form: str, steps: float, masked: bool, compile_network: Callable[..., object]) -> None:
    model = Masked() if masked else Function(lambda x: torch.softmax(x, dim=-1))
    compiled = compile_network(model, (3, 7, 16), lower=f"softmax={form}")
    node = next(node for node in compiled.integer.graph.nodes if node.target is torch.ops.qc.softmax.default)
    assert node.args[3] == form
    assert (node.args[2] is not None) == masked
    compiled.integer.verify()
    result = compiled.integer(*compiled.inputs)
    if masked:
        assert result[..., 2::5].abs().max() == 0
    scale = 1 / 255
    assert (result - model(*compiled.inputs)).abs().max() / scale < steps + 1


@pytest.mark.parametrize("form", ["poly", "shift"])
def test_scores_of_16_bits(form: str, compile_network: Callable[..., object]) -> None:
    function = Function(lambda x: torch.softmax(x @ x.transpose(1, 2), dim=-1))
    compiled = compile_network(function, (3, 7, 16), quantize="score_bits=16", lower=f"softmax={form}")
    node = next(node for node in compiled.integer.graph.nodes if node.target is torch.ops.qc.softmax.default)
    assert node.args[0].meta["val"].dtype == torch.int16
    compiled.integer.verify()
    assert compiled.steps_apart() < 3.5


def test_scores_of_16_bits_have_no_table(compile_network: Callable[..., object]) -> None:
    function = Function(lambda x: torch.softmax(x @ x.transpose(1, 2), dim=-1))
    with pytest.raises(UnsupportedOpError, match="quantize them to 8 bits, or lower with softmax=poly"):
        compile_network(function, (3, 7, 16), quantize="score_bits=16")


@pytest.mark.parametrize("form", ["newton", "i-layernorm", "i-bert"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: nn.functional.layer_norm(x, (16,), torch.linspace(-1, 2, 16), torch.linspace(1, -1, 16)),
        lambda x: nn.functional.rms_norm(x, (16,), torch.linspace(-1, 2, 16)),
        lambda x: nn.functional.normalize(x, dim=-1),
    ],
    ids=["layer norm", "rms norm", "l2"],
)
def test_forms_of_normalization(form: str, function: Callable[[Tensor], Tensor], compile_network: Callable[..., object]) -> None:
    compiled = compile_network(Function(function), (3, 7, 16), lower=f"normalize={form}")
    compiled.integer.verify()
    # Outputs have 16 bits here. newton keeps 11 bits of the largest value of a row; the papers round the mean to a step of the input.
    assert compiled.steps_apart() < (16 if form == "newton" else 4)


def test_a_papers_layer_norm_with_a_scale_of_zero(compile_network: Callable[..., object]) -> None:
    function = Function(lambda x: nn.functional.layer_norm(x, (16,), torch.zeros(16), torch.linspace(1, -1, 16)))
    assert compile_network(function, (3, 7, 16), lower="normalize=i-layernorm").steps_apart() < 1.1
