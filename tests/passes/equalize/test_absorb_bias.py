from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from qcompiler.errors import CalibrationError
from qcompiler.passes.equalize.absorb_bias import AbsorbBias


def rectified(**second: int) -> nn.Module:
    """A convolution whose first channels stay far above zero."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 1)
    with torch.no_grad():
        first.bias[:4] += 40.0
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, 4, 3, **second))


def test_what_is_always_exceeded_is_absorbed(apply: Callable) -> None:
    done = apply(AbsorbBias(), rectified(), torch.randn(8, 3, 9, 9))
    assert done.difference < 1e-5
    assert "conv2d (conftest.py" not in done.notes and "4 channels absorbed" in done.notes
    assert done.gain(8, 8) > 8.0 and done.gain(4, 4) > 8.0  # measured: 12 and 15 dB


def test_a_border_of_zeros_is_left_alone(apply: Callable) -> None:
    done = apply(AbsorbBias(), rectified(padding=1), torch.randn(8, 3, 9, 9))
    assert not done.result.modified and "left alone: 'conv2d_1' pads with zeros" in done.notes


def test_channels_around_zero_are_nothing_to_do(apply: Callable) -> None:
    done = apply(AbsorbBias(), nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)), torch.randn(64, 4))
    assert not done.result.modified and done.result.notes == ("nothing to do: no channel stays above zero",)


def test_options() -> None:
    with pytest.raises(CalibrationError, match="deviations must not be negative"):
        AbsorbBias(deviations=-1.0)
