from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError
from qcompiler.ir import edit
from qcompiler.ir.layers import CHANNEL_AXIS, as_layer
from qcompiler.passes.equalize.equalize_cross_layer import EqualizeCrossLayer

IMAGE = (8, 3, 10, 10)


def network(*middle: nn.Module) -> nn.Module:
    """Two convolutions with weights far apart in their ranges."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
    with torch.no_grad():
        first.weight *= torch.logspace(-2, 2, 8).reshape(8, 1, 1, 1)
        second.weight /= torch.logspace(-2, 2, 8).reshape(1, 8, 1, 1)
    return nn.Sequential(first, *middle, second)


def magnitudes(program: object) -> tuple[Tensor, Tensor]:
    first, second = (as_layer(node) for node in edit.calls(program.graph, *CHANNEL_AXIS))
    return first.output_magnitudes(), second.input_magnitudes()


@pytest.mark.parametrize("middle", [[], [nn.ReLU()], [nn.LeakyReLU(0.2)], [nn.ReLU(), nn.MaxPool2d(2)], [nn.AvgPool2d(2)]])
def test_ranges_become_equal_channel_by_channel(middle: list[nn.Module], apply: Callable) -> None:
    done = apply(EqualizeCrossLayer(), network(*middle), torch.randn(IMAGE))
    assert done.difference < 1e-5
    assert torch.allclose(*magnitudes(done.result.program), rtol=2e-3)


def test_activations_with_one_scale_gain(apply: Callable) -> None:
    done = apply(EqualizeCrossLayer(), network(nn.ReLU()), torch.randn(IMAGE))
    assert done.gain(8, 8) > 15.0  # measured: 31 dB


def test_a_chain_settles(apply: Callable) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 6) for _ in range(4)]
    with torch.no_grad():
        for layer in layers:
            layer.weight *= torch.logspace(-1, 1, 6)
    done = apply(EqualizeCrossLayer(), nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())]), torch.randn(8, 6))
    assert done.difference < 1e-5
    weights = [as_layer(node) for node in edit.calls(done.result.program.graph, *CHANNEL_AXIS)]
    for before, after in zip(weights, weights[1:], strict=False):
        assert torch.allclose(before.output_magnitudes(), after.input_magnitudes(), rtol=0.01)


def test_relu6_does_not_commute(apply: Callable) -> None:
    done = apply(EqualizeCrossLayer(), network(nn.ReLU6()), torch.randn(IMAGE))
    assert not done.result.modified
    assert done.result.notes == ("nothing to do: no value that layers with constant weights read",)


def test_a_dead_channel_stays(apply: Callable) -> None:
    model = network(nn.ReLU())
    with torch.no_grad():
        model[0].weight[3] = 0.0
        model[2].weight[:, 5] = 0.0
    done = apply(EqualizeCrossLayer(), model, torch.randn(IMAGE))
    assert done.difference < 1e-5
    before, after = magnitudes(done.result.program)
    assert before[3] == 0.0 and after[5] == 0.0


def test_equal_ranges_are_nothing_to_do(apply: Callable) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        for layer in (model[0], model[1]):
            layer.weight.copy_(torch.eye(4))
    done = apply(EqualizeCrossLayer(), model, torch.randn(3, 4))
    assert not done.result.modified and done.result.notes == ("nothing to do: the channels are alike",)


def test_options() -> None:
    with pytest.raises(CalibrationError, match="rounds must be at least 1"):
        EqualizeCrossLayer(rounds=0)
