"""A program that left as ONNX and came back computes the same, floats and quantized values; the latter lower to the same integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import qcompiler as qc
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage

INPUT = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("opset", [13, 21])
def test_float(opset: int, small_float: Program, tmp_path: Path) -> None:
    qc.export_onnx(small_float, tmp_path / "m.onnx", "float", opset)
    again = qc.capture(tmp_path / "m.onnx")
    assert again.stage is Stage.FLOAT and [spec.shape for spec in again.inputs] == [spec.shape for spec in small_float.inputs]
    (want,), (got,) = small_float.run(INPUT), again.run(INPUT)
    assert torch.allclose(want, got, rtol=0, atol=1e-6)


@pytest.mark.parametrize("opset", [13, 21])
def test_qdq(opset: int, small_qdq: Program, tmp_path: Path) -> None:
    qc.export_onnx(small_qdq, tmp_path / "m.onnx", "qdq", opset)
    again = qc.capture(tmp_path / "m.onnx")
    assert again.stage is Stage.QDQ
    assert torch.equal(small_qdq.run(INPUT)[0], again.run(INPUT)[0])
    assert torch.equal(qc.quantize(small_qdq).run(INPUT)[0], qc.quantize(again).run(INPUT)[0])


def test_what_came_back_is_quantized_and_leaves_as_integers(small_float: Program, small_data: Any, session: Any, tmp_path: Path) -> None:
    qc.export_onnx(small_float, tmp_path / "m.onnx", "float")
    program = qc.quantize(qc.capture(tmp_path / "m.onnx"), small_data)
    qc.export_onnx(program, tmp_path / "integer.onnx")
    assert torch.equal(program.run(INPUT)[0], session(tmp_path / "integer.onnx")(INPUT)[0])
