from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.passes.canonicalize.fold_affine import FoldAffine
from qcompiler.passes.canonicalize.normalize_arithmetic import NormalizeArithmetic

IMAGE = (1, 6, 8, 7)


class Around(nn.Module):
    """``after(layer(before(x)))`` with a per-channel constant at hand."""

    def __init__(self, layer: nn.Module, before: Callable, after: Callable, channels: int) -> None:
        super().__init__()
        self.layer, self.before, self.after = layer, before, after
        self.register_buffer("constant", torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(self.before(x, self.constant)), self.constant)


def same(x: Tensor, constant: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.ConvTranspose2d(6, 6, 3, groups=3, bias=False)])
@pytest.mark.parametrize(
    "change", [lambda x, c: x * c, lambda x, c: x + c, lambda x, c: x * 0.1, lambda x, c: x - 1, lambda x, c: (x - c) / c]
)
def test_after_a_layer(rewrite: Callable, layer: nn.Module, change: Callable) -> None:
    rewritten = rewrite(FoldAffine(), Around(layer, same, change, 6), IMAGE, before=[NormalizeArithmetic()])
    assert sum(rewritten.ops.values()) == 1


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 4, 3, padding=1, groups=2), nn.ConvTranspose2d(6, 6, 3, groups=3)])
@pytest.mark.parametrize("change", [lambda x, c: x * c, lambda x, c: x / 4])
def test_scale_before_a_padded_layer(rewrite: Callable, layer: nn.Module, change: Callable) -> None:
    rewritten = rewrite(FoldAffine(), Around(layer, change, same, 6), IMAGE, before=[NormalizeArithmetic()])
    assert sum(rewritten.ops.values()) == 1


@pytest.mark.parametrize("change", [lambda x, c: x + c, lambda x, c: (x / 255 - c) / c])
def test_shift_before_a_layer_without_padding(rewrite: Callable, change: Callable) -> None:
    rewritten = rewrite(FoldAffine(), Around(nn.Conv2d(6, 4, 3), change, same, 6), IMAGE, before=[NormalizeArithmetic()])
    assert rewritten.ops == {"conv2d": 1}


def test_shift_before_a_padded_layer_is_left_alone(rewrite: Callable) -> None:
    rewritten = rewrite(FoldAffine(), Around(nn.Conv2d(6, 4, 3, padding=1), lambda x, c: x + c, same, 6), IMAGE)
    assert not rewritten.result.modified
    assert "zeros that 'conv2d' pads with" in rewritten.result.notes[0]


def test_linear_with_features_last(rewrite: Callable) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 4)
            self.scale = nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * self.scale

    assert rewrite(FoldAffine(), Scaled(), (1, 3, 5)).ops == {"linear": 1}


def test_constants_over_positions_are_left_alone(rewrite: Callable) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 1)
            self.register_buffer("bias", torch.randn(8, 7))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.bias

    rewritten = rewrite(FoldAffine(), Positions(), IMAGE)
    assert not rewritten.result.modified and rewritten.result.notes == ()


def test_result_read_elsewhere_is_left_alone(rewrite: Callable) -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y * 2 + y

    rewritten = rewrite(FoldAffine(), Read(), IMAGE)
    assert not rewritten.result.modified
    assert "is read elsewhere too" in rewritten.result.notes[0]
