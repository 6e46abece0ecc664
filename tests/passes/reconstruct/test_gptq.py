from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from qcompiler.passes.reconstruct.gptq import columns_of, gptq, quadratic
from qcompiler.passes.reconstruct.grid import Grid
from qcompiler.passes.reconstruct.layers import find_layers

GRID = Grid(-3, 3)


def problem(groups: int = 1, rows: int = 5, width: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight [G, N, K], Hessian [G, K, K] of correlated inputs, scale [G, N, K]."""
    weight = torch.randn(groups, rows, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = torch.randn(groups, 64, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = inputs @ torch.randn(width, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    scale = (weight.abs().amax(2, keepdim=True) / 3.0).expand_as(weight)
    return weight, 2.0 * inputs.transpose(1, 2) @ inputs, scale


def transcription(
    weight: NDArray[np.float64], hessian: NDArray[np.float64], scale: NDArray[np.float64], damping: float, act_order: bool
) -> NDArray[np.float64]:
    """Algorithm 1 of the paper for one matrix, column by column, without blocks: the inverse Hessian is updated by elimination."""
    order = np.argsort(-np.diag(hessian), kind="stable") if act_order else np.arange(len(hessian))
    left = weight[:, order].copy()
    damped = hessian[np.ix_(order, order)] + damping * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    inverse = np.linalg.inv(damped)
    integers = np.zeros_like(left)
    for i in range(left.shape[1]):
        integers[:, i] = np.clip(np.rint(left[:, i] / scale[:, order[i]]), -3, 3)
        error = (left[:, i] - integers[:, i] * scale[:, order[i]]) / inverse[i, i]
        left -= np.outer(error, inverse[i])  # columns before i have no entries left in this row of the inverse
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    result = np.empty_like(integers)
    result[:, order] = integers
    return result


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("damping", [0.01, 0.2])
def test_equals_a_plain_transcription(act_order: bool, damping: float) -> None:
    weight, hessian, scale = problem()
    expected = transcription(weight[0].numpy(), hessian[0].numpy(), scale[0].numpy(), damping, act_order)
    for columns in (1, 5, 128):  # lazy updates change nothing
        assert np.array_equal(gptq(weight, hessian, scale, GRID, damping, act_order, columns)[0].numpy(), expected)


def test_scales_by_groups_of_columns() -> None:
    weight, hessian, _ = problem()
    scale = (weight.reshape(1, 5, 3, 4).abs().amax(3, keepdim=True) / 3.0).expand(1, 5, 3, 4).reshape(weight.shape)
    expected = transcription(weight[0].numpy(), hessian[0].numpy(), scale[0].numpy(), 0.01, act_order=True)
    assert np.array_equal(gptq(weight, hessian, scale, GRID)[0].numpy(), expected)


def test_groups_are_independent() -> None:
    weight, hessian, scale = problem(groups=3)
    together = gptq(weight, hessian, scale, GRID)
    alone = [gptq(weight[g : g + 1], hessian[g : g + 1], scale[g : g + 1], GRID) for g in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_inputs_that_are_always_zero() -> None:
    weight, hessian, scale = problem()
    hessian[:, 4], hessian[:, :, 4] = 0.0, 0.0
    nearest = (weight / scale).round().clamp(-3, 3)
    assert torch.equal(gptq(weight, hessian, scale, GRID)[:, :, 4], nearest[:, :, 4])
    assert torch.equal(gptq(weight, torch.zeros_like(hessian), scale, GRID), nearest)


@pytest.mark.parametrize("act_order", [False, True])
def test_lowers_the_quadratic_error(act_order: bool) -> None:
    weight, hessian, scale = problem(rows=40, width=48)
    nearest = (weight / scale).round().clamp(-3, 3)
    solved = gptq(weight, hessian, scale, GRID, act_order=act_order)
    assert quadratic(solved * scale - weight, hessian) < 0.5 * quadratic(nearest * scale - weight, hessian)


def test_columns_of_a_grouped_convolution(cases: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
    x = cases.images(5, 0)[:, :1].expand(-1, 4, -1, -1) * torch.arange(1.0, 5.0)[:, None, None]
    case = cases.quantized(layer, x, x, w=8)
    (found,), _ = find_layers(case.qdq, case.reference)
    columns = columns_of(found, x)
    product = layer.weight.reshape(2, 3, -1) @ columns + layer.bias.reshape(2, 3, 1)  # [G, N, B * L]
    expected = layer(x)
    got = product.reshape(6, len(x), -1).transpose(0, 1).reshape(expected.shape)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("w", "factor"), [(3, 0.5), (2, 0.5)])
def test_a_layer_with_correlated_inputs(w: int, factor: float, cases: Any) -> None:
    case = cases.linear(w)
    assert case.error(case.run("gptq")) < factor * case.error(case.qdq)


def test_a_network(network: Any) -> None:
    result = network.run("gptq")
    assert network.error(result) < 0.5 * network.error(network.qdq)
    assert result.history[-1].notes[0] == "6 of 6 layers changed, in 4 blocks"


def test_transposed_convolutions_are_declined(cases: Any) -> None:
    torch.manual_seed(0)
    case = cases.quantized(nn.ConvTranspose2d(3, 4, 3), cases.images(8, 1), cases.images(8, 2), w=4)
    result = case.run("gptq")
    assert result.history[-1].notes[1].endswith("left alone: the columns of a transposed convolution share no input")
    assert not result.history[-1].modified
