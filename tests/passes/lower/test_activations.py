"""Forms of the non-linear functions: which op each option gives, and how far its result is from the simulation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import PassError, UnknownNameError

SHAPE = (3, 7, 16)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "erf": torch.erf,
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("option", "steps"), [("poly", 1.001), ("shift", 3.001)])
def test_our_forms_stay_within_steps_of_the_simulation(
    function: str, option: str, steps: float, compile_network: Callable[..., object]
) -> None:
    compiled = compile_network(Function(FUNCTIONS[function]), SHAPE, lower=f"activation={option}")
    assert "qc.nonlinear" in compiled.ops and "qc.lookup" not in compiled.ops
    compiled.integer.verify()
    assert compiled.steps_apart() < steps


@pytest.mark.parametrize(
    ("function", "option", "form"),
    [
        ("gelu", "shift-gelu", "shift-gelu"),
        ("silu", "shift-gelu", "shift"),
        ("gelu", "i-gelu", "i-gelu"),
        ("erf", "i-gelu", "i-gelu"),
        ("exp", "i-gelu", "i-exp"),
        ("tanh", "i-gelu", "poly"),
    ],
)
def test_papers_have_some_functions_and_ours_stand_in_for_the_others(
    function: str, option: str, form: str, compile_network: Callable[..., object]
) -> None:
    compiled = compile_network(Function(FUNCTIONS[function]), SHAPE, lower=f"activation={option}")
    forms = [node.args[3] for node in compiled.integer.graph.nodes if node.target is torch.ops.qc.nonlinear.default]
    assert forms == [form]


def test_functions_without_an_integer_form_stay_tables(compile_network: Callable[..., object]) -> None:
    compiled = compile_network(Function(nn.functional.hardswish), SHAPE, lower="activation=poly")
    assert "qc.lookup" in compiled.ops and "qc.nonlinear" not in compiled.ops


def test_an_unknown_form_names_the_nearest(compile_network: Callable[..., object]) -> None:
    with pytest.raises((UnknownNameError, PassError), match="unknown form of activation 'polly': did you mean 'poly'"):
        compile_network(Function(torch.tanh), SHAPE, lower="activation=polly")
