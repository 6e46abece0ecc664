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


@pytest.mark.parametrize("make", [_encoder, _resnet])
def test_an_export_is_the_program_of_the_module(make: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = make()  # type: ignore[operator]  # one of the two above
    model.eval()
    path, batch = tmp_path / "model.onnx", torch.export.Dim("batch")
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, path, dynamo=True, verbose=False, dynamic_shapes=tuple({0: batch} for _ in inputs))
    logging.disable(logging.NOTSET)
    imported, captured = capture(path), capture(model, inputs)
    for found, expected in zip(imported.run(*inputs), captured.run(*inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert _canonical(imported) == _canonical(captured)
