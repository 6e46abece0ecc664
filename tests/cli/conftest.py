"""The command line in a folder of its own, with models and data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from qcompiler import cli

MODELS = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()

def with_example():
    return small(), (torch.zeros(1, 3, 8, 8),)

def branching():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x
    return Branching().eval(), (torch.zeros(1, 3, 8, 8),)

def with_sinh():
    class Sinh(nn.Module):
        def forward(self, x):
            return torch.sinh(x)
    return nn.Sequential(small(), Sinh(), nn.Linear(4, 4)).eval()

def failing():
    raise RuntimeError("no\\nweights")
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the command: a module of models, and data."""
    (tmp_path / "my_models.py").write_text(MODELS)
    images = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "images.npz", images)
    images[17, 0, 0, 0] = np.nan
    np.savez(tmp_path / "nan.npz", images)
    np.savez(tmp_path / "channels_last.npz", images.transpose(0, 2, 3, 1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    return tmp_path


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``qcompiler`` with these arguments, in this process."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["qcompiler", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return Ended(int(end.value.code or 0), printed.out, printed.err)

    return run
