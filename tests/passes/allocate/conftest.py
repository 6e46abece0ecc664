"""Small networks for sensitivity: each with its canonical program and samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler as qc
from qcompiler.calibration.data import CalibrationData
from qcompiler.ir.program import Program
from qcompiler.passes.allocate.measure import measure
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline
from qcompiler.sensitivity import SensitivityTable


@dataclass(frozen=True)
class Case:
    """A FLOAT program as ``quantize`` gets it, and samples for it."""

    program: Program
    inputs: Tensor

    @property
    def data(self) -> CalibrationData:
        return CalibrationData([self.inputs], self.program.inputs)

    def measure(self, metric: str, **options: Any) -> SensitivityTable:
        return measure(self.program, metric, self.data, **options)


def make_case(model: nn.Module, inputs: Tensor) -> Case:
    program = qc.capture(model.eval(), (inputs[:2],))
    return Case(PassManager(parse_pipeline("canonicalize")).run(program), inputs)


class Residual(nn.Module):
    """Two convolutions around a residual add, a concatenation, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.norm = nn.BatchNorm2d(8)
        self.classify = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        y = (self.second(x) + x).relu()
        z = torch.cat([y, self.third(y).relu()], 1)
        result: Tensor = self.classify(z.mean((2, 3)))
        return result


class Attention(nn.Module):
    """One head of attention on tokens, then a classifier on every token."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.query, self.key, self.value, self.out, self.classify = (nn.Linear(8, 8) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        scores = self.query(y) @ self.key(y).transpose(1, 2) / 8**0.5
        x = x + self.out(scores.softmax(-1) @ self.value(y))
        result: Tensor = self.classify(nn.functional.gelu(x))
        return result


@pytest.fixture(scope="session")
def residual() -> Case:
    torch.manual_seed(0)
    return make_case(Residual(), torch.randn(12, 3, 8, 8))


@pytest.fixture(scope="session")
def attention() -> Case:
    torch.manual_seed(0)
    return make_case(Attention(), torch.randn(6, 5, 8))


@pytest.fixture(scope="session")
def make() -> Any:
    return make_case
