"""``torch.onnx.export`` of a model, imported again, is the program that capture of the module gives."""

from __future__ import annotations

import collections
import logging
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from models.bert import BertConfiguration, SentenceEncoder
from models.resnet_cifar import ResNetCifar
from models.vit import PatchEmbed, VisionTransformer
from qcompiler import quantize
from qcompiler.capture import capture
from qcompiler.ir.program import Program
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline

pytest.importorskip("onnxscript", reason="torch.onnx needs onnxscript")


def _encoder() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Exported with a mask: the guards against rows without keys are in it."""
    model = SentenceEncoder(BertConfiguration(vocabulary=50, width=32, layers=1, heads=2, hidden=64, positions=16))
    return model, (torch.randint(0, 50, (2, 12)), torch.ones(2, 12, dtype=torch.long))


def _resnet() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return ResNetCifar(1), (torch.randn(2, 3, 32, 32),)


def _canonical(program: Program) -> collections.Counter[str]:
    result = PassManager(parse_pipeline("canonicalize")).run(program)
    return collections.Counter(str(node.target) for node in result.graph.nodes if node.op == "call_function")


def _exported(model: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, dynamo: bool = True) -> Path:
    batch = torch.export.Dim("batch")
    names = [f"input_{position}" for position in range(len(inputs))]
    shapes = {"dynamic_shapes": tuple({0: batch} for _ in inputs)} if dynamo else {"dynamic_axes": {name: {0: "batch"} for name in names}}
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, path, dynamo=dynamo, verbose=False, input_names=names, **shapes)
    logging.disable(logging.NOTSET)
    return path


@pytest.mark.parametrize("make", [_encoder, _resnet])
def test_an_export_is_the_program_of_the_module(make: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = make()  # type: ignore[operator]  # one of the two above
    model.eval()
    imported, captured = capture(_exported(model, inputs, tmp_path / "model.onnx")), capture(model, inputs)
    for found, expected in zip(imported.run(*inputs), captured.run(*inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert _canonical(imported) == _canonical(captured)


@pytest.mark.parametrize("dynamo", [True, False])
def test_a_vision_transformer_has_the_integers_of_its_module(dynamo: bool, tmp_path: Path) -> None:
    """Exporters split the scale of attention over queries and keys, where it would be rounded twice."""
    torch.manual_seed(0)
    model, images = VisionTransformer(PatchEmbed(4, 16), 16, 16, 1, 2, 5).eval(), torch.randn(8, 3, 16, 16)
    imported = capture(_exported(model, (images[:2],), tmp_path / "model.onnx", dynamo))
    found, expected = (quantize(program, images).run(images) for program in (imported, capture(model, (images[:2],))))
    assert torch.equal(found[0], expected[0])
