"""The text of a small network before and after ``canonicalize``; the line numbers in it are those of this file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.capture import capture
from qcompiler.passes.canonicalize.canonicalize import Canonicalize
from qcompiler.pipeline.contract import PassContext

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


class Golden(nn.Module):
    """Weights that are small whole numbers and a batch norm by powers of two: folding them is exact on every machine."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(4, eps=0)
        self.linear = nn.Linear(4, 3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.arange(72).reshape(4, 2, 3, 3) - 36)
            self.norm.running_mean.copy_(torch.arange(4))
            self.norm.running_var.fill_(4)
            self.linear.weight.copy_(torch.arange(12).reshape(3, 4))
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.norm(self.conv(F.pad(x, (1, 1, 1, 1)))))
        y = F.dropout(y, 0.2, self.training)
        return self.linear(F.adaptive_avg_pool2d(y, 1).view(x.size(0), -1)) / 4


@pytest.mark.parametrize("when", ["before", "after"])
def test_golden_text(when: str) -> None:
    program = capture(Golden(), torch.zeros(1, 2, 8, 8))
    if when == "after":
        program = Canonicalize().run(program, PassContext()).program
    assert program.text() == (GOLDEN / f"canonicalize-{when}.txt").read_text()
