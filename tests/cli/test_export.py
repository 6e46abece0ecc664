"""``qcompiler export``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

Command = Callable[..., Any]


def _ops(path: str) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_each_format(command: Command) -> None:
    for format, op in (("integer", "ConvInteger"), ("qdq", "DequantizeLinear"), ("float", "Conv")):
        arguments = ["export", "my_models:small", "--calibration", "images.npz", "--format", format, "--opset", "17"]
        ended = command(*arguments, "-o", "m.onnx")
        assert (ended.status, ended.err) == (0, "") and f"MB, format {format}" in ended.out
        assert op in _ops("m.onnx") and onnx.load("m.onnx").opset_import[0].version == 17


def test_a_quantized_file_becomes_an_integer_one_without_data(command: Command) -> None:
    assert command("export", "my_models:small", "--calibration", "images.npz", "--format", "qdq", "-o", "qdq.onnx").status == 0
    ended = command("export", "qdq.onnx", "-o", "integer.onnx")
    assert (ended.status, ended.err) == (0, "") and "ConvInteger" in _ops("integer.onnx")


def test_float_needs_no_data(command: Command) -> None:
    assert command("export", "my_models:with_example", "--format", "float", "-o", "m.onnx").status == 0


def test_an_artifact(command: Command) -> None:
    assert command("compile", "my_models:small", "--calibration", "images.npz", "--target", "reference", "-o", "m.qca").status == 0
    assert command("export", "m.qca", "-o", "m.onnx").status == 0
    assert "ConvInteger" in _ops("m.onnx")
    ended = command("export", "m.qca", "--format", "qdq", "-o", "n.onnx")
    assert ended.status == 1 and "the program is at stage integer, but format 'qdq' is written from stage qdq" in ended.err
    assert not Path("n.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["my_models:with_example"], "the model is at stage float: give --calibration DATA to bring it to stage integer"),
        (["my_models:small", "--format", "qqd"], "unknown format 'qqd': did you mean 'qdq'?"),
        (["my_models:small", "--opset", "9"], "opset 9 cannot be written: use 13 to"),
        (["absent.qca"], "cannot read absent.qca: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(command: Command, arguments: list[str], message: str) -> None:
    ended = command("export", *arguments, "-o", "m.onnx")
    assert ended.status == 1 and len(ended.err.splitlines()) == 1 and message in ended.err
    assert not Path("m.onnx").exists()
