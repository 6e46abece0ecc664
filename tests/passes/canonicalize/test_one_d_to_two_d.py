from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from qcompiler.passes.canonicalize.one_d_to_two_d import OneDToTwoD


@pytest.mark.parametrize(
    ("layer", "op"),
    [
        (nn.Conv1d(4, 6, 5, stride=2, padding=2, dilation=2, groups=2), "conv2d"),
        (nn.Conv1d(4, 6, 1, bias=False), "conv2d"),
        (nn.ConvTranspose1d(4, 6, 4, stride=3, padding=1, output_padding=2, groups=2, dilation=2), "conv_transpose2d"),
        (nn.MaxPool1d(3, 2, padding=1, ceil_mode=True), "max_pool2d"),
        (nn.MaxPool1d(2), "max_pool2d"),
        (nn.AvgPool1d(3, 1, padding=1, count_include_pad=False), "avg_pool2d"),
        (nn.AvgPool1d(4), "avg_pool2d"),
        (nn.AdaptiveAvgPool1d(5), "adaptive_avg_pool2d"),
    ],
)
def test_layer(rewrite: Callable, layer: nn.Module, op: str) -> None:
    assert rewrite(OneDToTwoD(), layer, (1, 4, 17)).ops == {"reshape": 2, op: 1}


def test_other_ranks_and_computed_weights_are_left_alone(rewrite: Callable) -> None:
    rewritten = rewrite(OneDToTwoD(), nn.MaxPool1d(2), (1, 8))
    assert not rewritten.result.modified and "its input has 2 dimensions, not 3" in rewritten.result.notes[0]

    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv1d(x, self.weight * 2)

    rewritten = rewrite(OneDToTwoD(), Computed(), (1, 4, 17))
    assert not rewritten.result.modified and "its weight is computed" in rewritten.result.notes[0]
