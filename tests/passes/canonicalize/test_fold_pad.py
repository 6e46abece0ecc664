from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from qcompiler.passes.canonicalize.fold_pad import FoldPad
from qcompiler.passes.canonicalize.normalize_views import NormalizeViews

IMAGE = (1, 4, 9, 8)


@pytest.mark.parametrize(
    ("model", "ops"),
    [
        (nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3)), {"conv2d": 1}),
        (nn.Sequential(nn.ZeroPad2d((2, 2, 1, 1)), nn.Conv2d(4, 4, 3, padding=(0, 1), stride=2, groups=2)), {"conv2d": 1}),
        (nn.Sequential(nn.ZeroPad2d((0, 0, 3, 3)), nn.Conv2d(4, 4, 3, dilation=2, bias=False)), {"conv2d": 1}),
        (nn.Sequential(nn.ZeroPad2d(1), nn.AvgPool2d(3, 2)), {"avg_pool2d": 1}),
        (nn.Sequential(nn.ReLU(), nn.ZeroPad2d(1), nn.MaxPool2d(3, 2)), {"relu": 1, "max_pool2d": 1}),
        (nn.Sequential(nn.Hardtanh(0, 2), nn.MaxPool2d(2), nn.ZeroPad2d(1), nn.MaxPool2d(2)), {"hardtanh": 1, "max_pool2d": 2}),
        (nn.Conv2d(4, 4, 3, padding="same", dilation=2), {"conv2d": 1}),
        (nn.Conv2d(4, 4, 3, padding="valid"), {"conv2d": 1}),
        (nn.Conv2d(4, 4, (4, 3), padding="same"), {"constant_pad_nd": 1, "conv2d": 1}),
    ],
)
def test_folded(rewrite: Callable, model: nn.Module, ops: dict[str, int]) -> None:
    rewritten = rewrite(FoldPad(), model, IMAGE, before=[NormalizeViews()])
    assert rewritten.result.modified and rewritten.ops == ops
    assert not [node for node in rewritten.program.graph.nodes if "padding" in str(node.target)]


def test_one_dimension(rewrite: Callable) -> None:
    model = nn.Sequential(nn.ConstantPad1d(2, 0.0), nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding="same"))
    assert rewrite(FoldPad(), model, (1, 4, 9), before=[NormalizeViews()]).ops == {"conv1d": 2}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 3)), "does not pad both sides alike"),
        (nn.Sequential(nn.ZeroPad2d(-1), nn.Conv2d(4, 4, 3)), "does not pad both sides alike"),
        (nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.Conv2d(4, 4, 3)), "pads with 1.0, not with zeros"),
        (nn.Sequential(nn.ConstantPad3d((1, 1, 1, 1, 1, 1), 0.0), nn.Conv2d(6, 4, 3)), "pads more than the spatial dimensions"),
        (nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3)), "what it reads may be negative"),
        (nn.Sequential(nn.Hardtanh(), nn.ZeroPad2d(1), nn.MaxPool2d(3)), "what it reads may be negative"),
        (nn.Sequential(nn.ZeroPad2d(1), nn.AvgPool2d(3, count_include_pad=False)), "does not count what it pads"),
        (nn.Sequential(nn.ZeroPad2d(1), nn.AvgPool2d(3, ceil_mode=True)), "rounding its output size up"),
        (nn.Sequential(nn.ZeroPad2d(2), nn.AvgPool2d(3)), "at most half its window"),
    ],
)
def test_left_alone(rewrite: Callable, model: nn.Module, reason: str) -> None:
    rewritten = rewrite(FoldPad(), model, IMAGE, before=[NormalizeViews()])
    assert not rewritten.result.modified
    assert len(rewritten.result.notes) == 1 and reason in rewritten.result.notes[0], rewritten.result.notes


def test_a_pad_with_two_readers_serves_both(rewrite: Callable) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pad, self.left, self.right = nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            padded = self.pad(x)
            return self.left(padded) + self.right(padded)

    assert rewrite(FoldPad(), Branches(), IMAGE, before=[NormalizeViews()]).ops == {"conv2d": 2, "add": 1}
