"""Networks that onnxruntime quantized: imported with their own scales, integer-only, and its integers layer by layer.

``benchmarks/onnx_agreement.py`` compares; each layer reads onnxruntime's integers.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import onnx_agreement
import qcompiler as qc
import results
from qcompiler.cli import main
from qcompiler.ir.types import Stage
from qcompiler.ir.verifier import prove_integer_only

quantization = pytest.importorskip("onnxruntime.quantization", reason="needs onnxruntime's quantizer")

Quantized = Callable[..., onnx.ModelProto]


class Batches(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, images: torch.Tensor) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter([{"input": batch.numpy()} for batch in images.split(10)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def quantizer(folder: Path, model: nn.Module, images: torch.Tensor) -> Quantized:
    """``quantized(**options)``: the model as torch exports it and onnxruntime quantizes it."""
    source = folder / "float.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"input": {0: "batch"}, "output": {0: "batch"}}
        torch.onnx.export(
            model, (images[:2],), source, dynamo=False, opset_version=17, input_names=["input"], output_names=["output"], dynamic_axes=axes
        )
    prepared = folder / "prepared.onnx"
    quantization.shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)

    def quantized(**options: Any) -> onnx.ModelProto:
        target = folder / "quantized.onnx"
        quantization.quantize_static(prepared, target, Batches(images), **options)
        return onnx.load(target)

    return quantized


@pytest.fixture(scope="module")
def quantized_resnet20(tmp_path_factory: pytest.TempPathFactory, resnet20: nn.Module, cifar10_calibration: torch.Tensor) -> Quantized:
    return quantizer(tmp_path_factory.mktemp("resnet20"), resnet20, cifar10_calibration[:40])


def formats() -> list[Any]:
    types, formats = quantization.QuantType, quantization.QuantFormat
    return [
        pytest.param({"quant_format": formats.QDQ, "per_channel": True, "activation_type": types.QUInt8}, id="qdq-per-channel-uint8"),
        pytest.param(
            {"quant_format": formats.QOperator, "activation_type": types.QUInt8, "weight_type": types.QUInt8}, id="qoperator-uint8"
        ),
    ]


@pytest.mark.parametrize("options", formats())
def test_resnet20_has_the_integers_of_onnxruntime(
    quantized_resnet20: Quantized, cifar10_test: tuple[torch.Tensor, torch.Tensor], options: dict[str, Any]
) -> None:
    rows = onnx_agreement.agreement(quantized_resnet20(**options), [cifar10_test[0][:4].numpy()])
    assert len(rows) >= 30
    assert min(row.within_one for row in rows) >= 0.999
    assert sum(row.equal for row in rows) / len(rows) >= 0.999


def test_resnet20_needs_no_data(quantized_resnet20: Quantized, cifar10_test: tuple[torch.Tensor, torch.Tensor]) -> None:
    captured = qc.capture(quantized_resnet20(quant_format=quantization.QuantFormat.QDQ, extra_options={"ActivationSymmetric": True}))
    assert captured.stage is Stage.QDQ
    program, images = qc.quantize(captured), cifar10_test[0][:8]
    assert "0 float ops" in prove_integer_only(program)
    assert torch.equal(program(images).argmax(1), captured(images).argmax(1))


def test_the_command_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = quantizer(tmp_path, nn.Sequential(nn.Linear(6, 4), nn.ReLU()), torch.randn(20, 6))(per_channel=True)
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.setattr(sys, "argv", ["qcompiler", "compile", str(tmp_path / "model.onnx"), "-o", str(tmp_path / "model.qca")])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 0 and "0 float ops" in capsys.readouterr().out
    x = torch.randn(3, 6)
    assert float((qc.load(tmp_path / "model.qca")(x) - qc.capture(model)(x)).abs().max()) <= 0.02


@pytest.mark.parametrize("opset", [13, 21])
def test_our_own_files_come_back(tmp_path: Path, opset: int) -> None:
    torch.manual_seed(0)
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.Hardswish(), *pool)
    x = torch.randn(32, 3, 8, 8)
    program = qc.quantize(qc.capture(network, (x[:2],)), x, passes="canonicalize,quantize")
    qc.export_onnx(program, tmp_path / "qdq.onnx", format="qdq", opset=opset)
    again = qc.capture(tmp_path / "qdq.onnx")
    assert torch.equal(again(x), program(x))
    assert torch.equal(qc.quantize(again)(x), qc.quantize(program)(x))


@pytest.mark.slow
def test_vit_has_the_integers_of_onnxruntime(tmp_path: Path, assets: Path) -> None:
    """The first two of its six blocks: the others repeat them."""
    model = results.load_vit(assets, spread=False)
    model.blocks = model.blocks[:2]
    images = results.vit_calibration(assets)[0][:10]
    quantized = quantizer(tmp_path, model, images)
    rows = onnx_agreement.agreement(quantized(per_channel=True), [images[:2].numpy()])
    assert len(rows) >= 75
    assert min(row.within_one for row in rows) >= 0.999
    assert sum(row.equal for row in rows) / len(rows) >= 0.99
