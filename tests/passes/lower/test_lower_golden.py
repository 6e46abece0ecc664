"""What quantization and lowering make of a small network, as text. Write the files anew with ``QCOMPILER_WRITE_GOLDEN=1 pytest FILE``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.calibration.data import CalibrationData
from qcompiler.capture import capture
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


class Network(nn.Module):
    """One of each: activation, residual, table, concatenation, pooling, logits.

    Weights and images are small binary fractions: float32 rounds no value, so calibration sees the same ranges on every machine.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.linear = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Linear(8, 3)
        for index, parameter in enumerate(self.parameters()):
            values = (torch.arange(parameter.numel()) * 37 + index * 11) % 64 - 32
            parameter.data = values.reshape(parameter.shape) / 64

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.first(x))
        y = F.relu(self.second(x) + x)
        return self.linear(torch.cat([y, x * 0.5], 1).mean((2, 3)))


@pytest.mark.parametrize("stage", ["qdq", "integer"])
def test_golden_text(stage: str) -> None:
    program = capture(Network().eval(), torch.zeros(2, 2, 4, 4))
    text = {
        "qdq": "canonicalize,quantize{observer=min-max,weight_observer=min-max}",
        "integer": "canonicalize,quantize{observer=min-max,weight_observer=min-max},lower-integer",
    }[stage]
    data = torch.arange(2 * 2 * 16).reshape(2, 2, 4, 4) / 32 - 1
    found = PassManager(parse_pipeline(text)).run(program, CalibrationData([data], program.inputs)).text()
    path = GOLDEN / f"lower-{stage}.txt"
    if "QCOMPILER_WRITE_GOLDEN" in os.environ:
        path.write_text(found)
    assert found == path.read_text()
