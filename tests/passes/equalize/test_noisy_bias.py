from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError
from qcompiler.ir import edit
from qcompiler.passes.equalize.noisy_bias import NoisyBias


class LongTailed(nn.Module):
    """One channel a hundred times as wide as the others, whose values gather between two steps of the common quantizer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.linear = nn.LayerNorm(32), nn.Linear(32, 16)
        with torch.no_grad():
            self.norm.weight.fill_(0.02)
            self.norm.weight[0] = 2.0
            self.norm.bias.copy_(torch.where(torch.arange(32) == 0, 0.0, 0.36))
            self.linear.weight[:, 0] *= 0.02

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


def test_values_between_two_steps_gain(apply: Callable) -> None:
    done = apply(NoisyBias(bits=4), LongTailed(), torch.randn(256, 32))
    assert done.difference < 1e-5
    assert done.gain(8, 4) > 1.0


def test_no_op_is_added(apply: Callable) -> None:
    done = apply(NoisyBias(), LongTailed(), torch.randn(64, 32))
    calls = [[node.target for node in program.graph.nodes if node.op == "call_function"] for program in (done.before, done.result.program)]
    assert calls[0] == calls[1]


def test_the_noise_is_that_of_the_seed_and_within_its_amplitude(apply: Callable) -> None:
    model, x = LongTailed(), torch.randn(64, 32)
    biases = []
    for item in (NoisyBias(), NoisyBias(), NoisyBias(seed=1)):
        (norm,) = edit.calls(apply(item, model, x).result.program.graph, torch.ops.aten.layer_norm.default)
        biases.append(edit.constant_value(norm.args[3]))
    assert torch.equal(biases[0], biases[1]) and not torch.equal(biases[0], biases[2])
    y = model.norm(x).detach()
    step = float(y.max() - y.min()) / 255
    noise = (biases[0] - model.norm.bias).detach()
    assert float(noise.abs().max()) <= 0.5 * step * 1.01 and float(noise.abs().max()) > 0.4 * step


def test_behind_an_activation_it_is_left_alone(apply: Callable) -> None:
    done = apply(NoisyBias(), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(8, 4))
    assert "left alone: 'linear_1' reads it through an op that a shift does not pass" in done.notes


def test_options() -> None:
    with pytest.raises(CalibrationError, match="amplitude must be positive"):
        NoisyBias(amplitude=0.0)
    with pytest.raises(CalibrationError, match="bits must be 2..8"):
        NoisyBias(bits=1)
