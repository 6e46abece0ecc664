"""Networks that onnxruntime quantized: imported with their own scales, integer-only, and its integers layer by layer.

``benchmarks/onnx_agreement.py`` compares: each layer given onnxruntime's integers, and the whole network with its float64 evaluation.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import onnx_agreement
import qcompiler as qc
import results
from models.bert import BertConfiguration, SentenceEncoder
from qcompiler.cli import main
from qcompiler.errors import UnsupportedOpError
from qcompiler.ir.types import Stage
from qcompiler.ir.verifier import prove_integer_only

quantization = pytest.importorskip("onnxruntime.quantization", reason="needs onnxruntime's quantizer")

Quantized = Callable[..., onnx.ModelProto]


class Batches(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, images: torch.Tensor) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter([{"input": batch.numpy()} for batch in images.split(10)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def quantizer(folder: Path, model: nn.Module, images: torch.Tensor, dynamo: bool = False) -> Quantized:
    """``quantized(**options)``: the model as torch exports it and onnxruntime quantizes it."""
    source, names = folder / "float.onnx", {"input_names": ["input"], "output_names": ["output"]}
    axes: dict[str, Any] = {"opset_version": 17, "dynamic_axes": {"input": {0: "batch"}, "output": {0: "batch"}}}
    if dynamo:
        axes = {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "external_data": False, "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images[:2],), source, dynamo=dynamo, **names, **axes)
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
    model, images = quantized_resnet20(**options), [cifar10_test[0][:4].numpy()]
    rows = onnx_agreement.agreement(model, images)
    assert len(rows) >= 30
    assert min(row.within_one for row in rows) >= 0.999
    assert sum(row.equal for row in rows) / len(rows) >= 0.999
    assert min(row.equal for row in onnx_agreement.running(model, images).exact) >= 0.999


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


LENGTH = torch.export.Dim("sequence", min=2, max=24)
SIZES = {"ids": {1: LENGTH}, "mask": {1: LENGTH}}


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    torch.manual_seed(0)
    return SentenceEncoder(BertConfiguration(vocabulary=40, width=32, layers=1, heads=2, hidden=64, positions=48)).eval()


def sentences(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and masks; each row keeps a token at least."""
    keep = torch.arange(length) < torch.randint(1, length + 1, (batch, 1))
    return torch.randint(0, 40, (batch, length)), keep.to(torch.int64)


def test_our_own_sentence_encoder_comes_back(tmp_path: Path, encoder: SentenceEncoder) -> None:
    """With the ranges of ids and mask, so that it lowers to the same integers."""
    data = [sentences(4, length) for length in (5, 12, 24)]
    passes = "canonicalize,reparameterize-layer-norm,reparameterize-residual-norm,quantize"
    program = qc.quantize(qc.capture(encoder, sentences(1, 8), dynamic_shapes=SIZES), data, passes=passes)
    qc.export_onnx(program, tmp_path / "qdq.onnx", format="qdq")
    again = qc.capture(tmp_path / "qdq.onnx", dynamic_shapes={"ids": {1: LENGTH}})
    assert [spec.range for spec in again.inputs] == [spec.range for spec in program.inputs]
    integers = [qc.quantize(each) for each in (again, program)]
    for length in (2, 9):
        x = sentences(3, length)
        assert torch.equal(integers[0](*x), integers[1](*x))


@pytest.fixture(scope="module")
def quantized_encoder(tmp_path_factory: pytest.TempPathFactory, encoder: SentenceEncoder) -> Callable[..., onnx.ModelProto]:
    """``quantized_encoder(op types that stay in float)``, by onnxruntime."""
    folder = tmp_path_factory.mktemp("encoder")
    source, prepared, target = (folder / name for name in ("float.onnx", "prepared.onnx", "quantized.onnx"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = tuple({0: torch.export.Dim("batch", min=1, max=64), 1: LENGTH} for _ in SIZES)
        torch.onnx.export(
            encoder, sentences(2, 8), source, input_names=list(SIZES), dynamo=True, external_data=False, dynamic_shapes=shapes
        )
    quantization.shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)

    def quantized(excluded: set[str]) -> onnx.ModelProto:
        torch.manual_seed(0)
        nodes = [
            node.name for node in onnx.load(prepared).graph.node if node.op_type in excluded or node.name == "node_Add_69"
        ]  # that of the mask
        feeds = [dict(zip(SIZES, (value.numpy() for value in sentences(4, length)), strict=True)) for length in (5, 12, 24)]
        reader = type("Reader", (quantization.CalibrationDataReader,), {"get_next": lambda self: feeds.pop() if feeds else None})()
        quantization.quantize_static(prepared, target, reader, per_channel=True, nodes_to_exclude=nodes if excluded else [])
        return onnx.load(target)

    return quantized


def test_a_sentence_encoder_of_onnxruntime_is_integers(quantized_encoder: Callable[..., onnx.ModelProto]) -> None:
    """Its pooling is in float: it gets 16 bits by the ranges that the scales imply."""
    model = quantized_encoder({"Softmax", "Where"})
    program = qc.quantize(qc.capture(model, dynamic_shapes=SIZES))
    assert "0 float ops" in prove_integer_only(program)
    assert [str(spec.range) for spec in program.inputs] == ["[0, 39]", "[0, 1]"]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    for length in (2, 9):
        ids, mask = sentences(3, length)
        expected = session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})[0]
        assert torch.nn.functional.cosine_similarity(program(ids, mask), torch.from_numpy(expected)).min() >= 0.999


def test_a_mask_that_was_quantized_with_its_scores(quantized_encoder: Callable[..., onnx.ModelProto]) -> None:
    captured = qc.capture(quantized_encoder(set()), dynamic_shapes=SIZES)
    with pytest.raises(UnsupportedOpError, match=r"QuantizeLinear.* quantizes scores of attention and their mask in one: leave the sum"):
        qc.quantize(captured)


@pytest.mark.slow
def test_vit_has_the_integers_of_onnxruntime(tmp_path: Path, assets: Path) -> None:
    """The first two of its six blocks: the others repeat them."""
    model = results.load_vit(assets, spread=False)
    model.blocks = model.blocks[:2]
    images = results.vit_calibration(assets)[0][:10]
    exported = quantizer(tmp_path, model, images, dynamo=True)(per_channel=True)
    rows = onnx_agreement.agreement(exported, [images[:2].numpy()])
    assert len(rows) >= 75
    assert min(row.within_one for row in rows) >= 0.999
    assert sum(row.equal for row in rows) / len(rows) >= 0.9999
    # onnxruntime's float32 is further from float64 than our integers are: layers that read their own values differ by that.
    assert min(row.equal for row in onnx_agreement.running(exported, [images[:2].numpy()]).exact) >= 0.999
