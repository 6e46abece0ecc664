"""ONNX models become programs at stage FLOAT: ``load`` checks the file, ``OnnxModule`` computes it, ``torch.export`` traces that module.

docs/capture.md says what is read; docs/onnx-support.md lists the ops.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from onnx import ModelProto
from torch.fx import traceback

from qcompiler.capture.dynamic import DynamicShapes
from qcompiler.capture.exported import program_from_exported
from qcompiler.capture.module import export_module
from qcompiler.capture.onnx.inputs import examples
from qcompiler.capture.onnx.interpreter import OnnxModule
from qcompiler.capture.onnx.load import load
from qcompiler.capture.onnx.model import Model
from qcompiler.capture.onnx.simplify import simplified
from qcompiler.errors import CaptureError
from qcompiler.ir.program import Program

__all__ = ["capture_onnx"]


def capture_onnx(
    source: str | Path | ModelProto,
    dynamic_batch: bool = True,
    dynamic_shapes: DynamicShapes | None = None,
    allow_float: Iterable[str] = (),
) -> Program:
    """The FLOAT program of an ONNX model; its inputs and outputs have the names of the file.

    ``dynamic_batch``: dimension 0 stays open where the file leaves it open; else it is 1. ``dynamic_shapes``: the other open sizes, each a
    number or bounds. The other arguments and errors are those of ``qcompiler.capture.capture``.
    """
    model = load(source)
    try:
        return _program(model, dynamic_batch, dynamic_shapes, allow_float)
    except CaptureError as error:
        if not str(error).startswith(model.name):
            error.within(model.name)
        raise


def _program(model: Model, dynamic_batch: bool, dynamic_shapes: DynamicShapes | None, allow_float: Iterable[str]) -> Program:
    given = examples(model, dynamic_batch, dynamic_shapes)
    module = OnnxModule(simplified(model))
    with traceback.preserve_node_meta():
        exported = export_module(module, given.inputs, given.batch, given.dynamic)
    program = program_from_exported(exported, given.dynamic, allow_float)
    return _named(program, model)


def _named(program: Program, model: Model) -> Program:
    inputs = (replace(spec, name=given.name, range=given.range) for spec, given in zip(program.inputs, model.inputs, strict=True))
    outputs = (replace(spec, name=name) for spec, name in zip(program.outputs, model.graph.outputs, strict=True))
    return program.replace(inputs=tuple(inputs), outputs=tuple(outputs))
