"""``qcompiler export``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qcompiler as qc
from qcompiler import cli

MODELS = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()

def with_example():
    return small(), (torch.zeros(1, 3, 8, 8),)
"""

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``qcompiler`` with these arguments in a folder with a module of models and images: status, output, error."""
    (tmp_path / "export_models.py").write_text(MODELS)
    np.savez(tmp_path / "images.npz", np.random.default_rng(0).normal(size=(12, 3, 8, 8)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "export_models", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qcompiler", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


def _ops(path: str) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_each_format(command: Command) -> None:
    for format, op in (("integer", "ConvInteger"), ("qdq", "DequantizeLinear"), ("float", "Conv")):
        arguments = ["export", "export_models:small", "--calibration", "images.npz", "--format", format, "--opset", "17"]
        status, out, error = command(*arguments, "-o", "m.onnx")
        assert (status, error) == (0, "") and f"MB, format {format}" in out
        assert op in _ops("m.onnx") and onnx.load("m.onnx").opset_import[0].version == 17


def test_a_quantized_file_becomes_an_integer_one_without_data(command: Command) -> None:
    assert command("export", "export_models:small", "--calibration", "images.npz", "--format", "qdq", "-o", "qdq.onnx")[0] == 0
    status, _, error = command("export", "qdq.onnx", "-o", "integer.onnx")
    assert (status, error) == (0, "") and "ConvInteger" in _ops("integer.onnx")


def test_float_needs_no_data(command: Command) -> None:
    assert command("export", "export_models:with_example", "--format", "float", "-o", "m.onnx")[0] == 0


def test_an_artifact(command: Command, small_integer: Any) -> None:
    qc.compile(small_integer, target="reference").save("m.qca")
    assert command("export", "m.qca", "-o", "m.onnx")[0] == 0
    assert "ConvInteger" in _ops("m.onnx")
    status, _, error = command("export", "m.qca", "--format", "qdq", "-o", "n.onnx")
    assert status == 1 and "the program is at stage integer, but format 'qdq' is written from stage qdq" in error
    assert not Path("n.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export_models:with_example"], "the model is at stage float: give --calibration DATA to bring it to stage integer"),
        (["export_models:small", "--format", "qqd"], "unknown format 'qqd': did you mean 'qdq'?"),
        (["export_models:small", "--opset", "9"], "opset 9 cannot be written: use 13 to"),
        (["absent.qca"], "cannot read absent.qca: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(command: Command, arguments: list[str], message: str) -> None:
    status, _, error = command("export", *arguments, "-o", "m.onnx")
    assert status == 1 and len(error.splitlines()) == 1 and message in error
    assert not Path("m.onnx").exists()
