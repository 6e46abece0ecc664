"""Weights of 1 bit stay -1 and +1 whatever rounds them anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler import arithmetic
from qcompiler.ir.types import INT2
from qcompiler.passes.reconstruct.grid import BINARY, Grid
from qcompiler.passes.reconstruct.layers import find_layers, uses_its_grid

METHODS = [
    "gptq",
    "adaround{steps=60,batch=32}",
    "adaquant{steps=60,batch=32,learning_rate=0.05}",
    "reconstruct-blocks{steps=60,batch=32}",
    "tune-bias{steps=150}",
    "retune-batch-norm",
]


@given(st.floats(-5.0, 5.0), st.sampled_from([Grid(-3, 3), Grid(-8, 7), BINARY]))
def test_numbers_on_a_grid(number: float, grid: Grid) -> None:
    x = torch.tensor([number], dtype=torch.float64)
    members = torch.arange(grid.low, grid.high + 1, grid.step)
    nearest, below = grid.nearest(x), grid.below(x)
    assert nearest in members and float((x - nearest).abs()) == float((x - members).abs().min())
    assert below <= x < below + grid.step and int(below - grid.low) % grid.step == 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_them_binary(method: str, cases: Any) -> None:
    """And lowers the error of the outputs, as it does with more bits."""
    torch.manual_seed(0)
    case = cases.quantized(cases.residual(), cases.images(64, 1), cases.images(64, 2), w=1)
    result = case.run(method)
    layers, _ = find_layers(result, case.reference)
    assert len(layers) == 6
    assert all(layer.kind.integer == INT2 and arithmetic.is_binary(layer.integers) and layer.grid is BINARY for layer in layers)
    before, after = (
        float((program.run(case.samples)[0] - case.reference.run(case.samples)[0]).square().sum()) for program in (case.qdq, result)
    )
    assert after < 0.9 * before


def test_weights_change_their_sign(cases: Any) -> None:
    case = cases.linear(1)
    layers = [find_layers(program, case.reference)[0][0] for program in (case.qdq, case.run("gptq"))]
    assert not torch.equal(*(layer.integers for layer in layers))
    assert bool(uses_its_grid(layers[0]).all())
    assert case.error(case.run("gptq")) < 0.9 * case.error(case.qdq)


def test_a_weight_of_two_bits_with_a_zero_is_not_binary(cases: Any) -> None:
    (layer,), _ = find_layers((case := cases.linear(2)).qdq, case.reference)
    assert not bool(layer.integers.all()) and layer.grid == Grid(-1, 1)
