"""Models that put the batch elsewhere than into dimension 0, though samples stay independent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.capture import capture
from qcompiler.errors import CaptureError


class Model(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.bias = nn.Parameter(torch.randn(4, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def windows(m: nn.Module, x: Tensor) -> Tensor:
    batch, length, width = x.shape
    y = m.linear(x.reshape(batch * 2, length // 2, width))
    y = torch.softmax(y @ y.transpose(1, 2), dim=2) @ y + m.bias[:1]
    parts = y.view(-1, length // 2, 2, 3).permute(2, 0, 1, 3)
    return (parts[0] * parts[1]).reshape(batch, length, 3)


def sequence_first(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(m.linear(x.transpose(0, 1)) + m.bias)
    return torch.cat([y, y.relu()], -1).transpose(0, 1)


def heads_in_the_batch(m: nn.Module, x: Tensor) -> Tensor:
    batch, length, width = x.shape
    y = m.linear(x.transpose(0, 1)).view(length, batch * 2, width // 2).transpose(0, 1)
    y = torch.bmm(torch.softmax(torch.baddbmm(y[:, :, :1], y, y.transpose(1, 2)), -1), y)
    return m.linear(y.transpose(0, 1).reshape(length * batch, width)).view(length, batch, width).transpose(0, 1)


def mean_of_windows(m: nn.Module, x: Tensor) -> Tensor:
    y = m.linear(x.view(-1, 2, 6)).mean(1).unsqueeze(1)
    return y.squeeze(1).view(-1, 2, 6).chunk(2, dim=1)[0].flatten(1)


@pytest.mark.parametrize("function", [windows, sequence_first, heads_in_the_batch, mean_of_windows])
def test_batch_becomes_dimension_0(function: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    model = Model(function).eval()
    program = capture(model, torch.zeros(2, 4, 6))
    program.verify()
    for batch in (1, 3):
        x = torch.randn(batch, 4, 6)
        with torch.no_grad():
            assert (program(x) - model(x)).abs().max() <= 1e-6


def test_heads_join_a_batch_of_sequences_of_any_length() -> None:
    """As ONNX exporters transpose the last two dimensions of four."""

    def transposed(m: nn.Module, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = m.linear(x).view(batch, length, 2, 3).transpose(1, 2)
        flat = heads.reshape(-1, length, 3).transpose(1, 2)
        return (heads @ flat.reshape(batch, 2, 3, length)).softmax(-1).sum(3)

    torch.manual_seed(0)
    model = Model(transposed).eval()
    program = capture(model, torch.zeros(2, 4, 6), dynamic_shapes={0: {1: torch.export.Dim("length", min=2, max=8)}})
    x = torch.randn(3, 7, 6)
    with torch.no_grad():
        assert (program(x) - model(x)).abs().max() <= 1e-6


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.linear(x.reshape(-1, 2, 6)).softmax(0).reshape(x.shape),
        lambda m, x: m.linear(x.reshape(-1, 2, 6)).flip(0).reshape(x.shape),
        lambda m, x: m.linear(x.transpose(0, 1)).mean(1).sum(0, keepdim=True) + x[:, 0],
        lambda m, x: m.linear(x.reshape(-1, 2, 6)),
    ],
)
def test_samples_that_mix_are_declined(function: Callable[..., Tensor]) -> None:
    with pytest.raises(CaptureError):
        capture(Model(function), torch.zeros(2, 4, 6))
