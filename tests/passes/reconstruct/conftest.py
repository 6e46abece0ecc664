"""What the tests of reconstruction share: small networks at QDQ with their float originals, and data whose inputs are correlated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from qcompiler.calibration.data import CalibrationData
from qcompiler.capture import capture
from qcompiler.ir.program import Program
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline


@dataclass(frozen=True)
class Quantized:
    """A network before and after quantization, the samples that it was calibrated on, and others like them."""

    reference: Program
    qdq: Program
    samples: Tensor
    others: Tensor

    def data(self) -> CalibrationData:
        return CalibrationData(self.samples, self.qdq.inputs)

    def run(self, passes: str) -> Program:
        return PassManager(parse_pipeline(passes)).run(self.qdq, self.data(), reference=self.reference)

    def error(self, program: Program) -> float:
        """Squared error of the outputs for other samples, as a share of their power."""
        expected, got = self.reference.run(self.others)[0], program.run(self.others)[0]
        return float((got - expected).square().sum() / expected.square().sum())


def correlated(count: int, width: int, seed: int = 0) -> Tensor:
    """[count, width] with a few directions that hold most of the variance, as activations have; the same directions for every count."""
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) * torch.logspace(0, -1.5, width)[:, None]
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) @ mixing


def quantized(model: nn.Module, samples: Tensor, others: Tensor, w: int, a: int = 8) -> Quantized:
    reference = PassManager(parse_pipeline("canonicalize")).run(capture(model.eval(), samples[:2]))
    qdq = PassManager(parse_pipeline(f"quantize{{w={w},a={a}}}")).run(reference, CalibrationData(samples, reference.inputs))
    return Quantized(reference, qdq, samples, others)


def linear(w: int, width: int = 32) -> Quantized:
    """One linear layer with correlated inputs."""
    torch.manual_seed(0)
    return quantized(nn.Linear(width, 24), correlated(256, width, 1), correlated(256, width, 2), w)


class Residual(nn.Module):
    """Two residual blocks of two convolutions between a stem and a classifier: [N, 3, 8, 8] to [N, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=groups)) for groups in (1, 2)
        )
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.head(x.mean((2, 3)))


def images(count: int, seed: int) -> Tensor:
    return correlated(count, 3 * 64, seed).reshape(count, 3, 8, 8)


@dataclass(frozen=True)
class Cases:
    """The functions above, for tests."""

    correlated: Callable[..., Tensor] = correlated
    images: Callable[..., Tensor] = images
    linear: Callable[..., Quantized] = linear
    quantized: Callable[..., Quantized] = quantized
    residual: Callable[[], nn.Module] = Residual


@pytest.fixture(scope="session")
def cases() -> Cases:
    """``cases.linear(w=3)``, ``cases.quantized(model, samples, others, w=3)``."""
    return Cases()


@pytest.fixture(scope="module")
def network() -> Quantized:
    """A small residual network at W3A8."""
    torch.manual_seed(0)
    return quantized(Residual(), images(64, 1), images(64, 2), w=3)
