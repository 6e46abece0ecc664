"""Capture: a torch module, an exported program, a ``.pt2`` file or an ONNX model becomes a Program at stage FLOAT.

See ``docs/capture.md`` for what a model may contain and how each error is mended.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from onnx import ModelProto
from torch import nn
from torch.export import ExportedProgram

from qcompiler.capture.dynamic import DynamicShapes, resolve
from qcompiler.capture.exported import program_from_exported
from qcompiler.capture.module import export_module
from qcompiler.errors import CaptureError
from qcompiler.ir.program import Program

__all__ = ["capture"]

Model = nn.Module | ExportedProgram | ModelProto | str | Path


def capture(
    model: Model,
    example_inputs: torch.Tensor | Sequence[torch.Tensor] | None = None,
    dynamic_batch: bool = True,
    dynamic_shapes: DynamicShapes | None = None,
    allow_float: tuple[str, ...] = (),
) -> Program:
    """Turn a model into a Program at stage FLOAT that computes what ``model.eval()`` computes.

    Args:
        model: a module (needs ``example_inputs``), a ``torch.export.ExportedProgram``, an
            ``onnx.ModelProto``, or the path of a file ``.pt2`` or ``.onnx``.
        example_inputs: one tensor, or one tensor for each input; only shapes and dtypes matter. Batch 1 will do. ONNX
            models need none.
        dynamic_batch: leave dimension 0 of every input open. The samples of a batch must then be independent of each
            other, which is checked. An exported program already has its batch, so the argument is ignored for it.
            An ONNX model has it where the file leaves dimension 0 of its inputs open; with False it is 1.
        dynamic_shapes: other sizes to leave open, by input (its name in ``forward``, or its position) and dimension:
            ``{"input_ids": {1: length}, "attention_mask": {1: length}}`` with ``length = DynamicSize("sequence", 1, 128)`` or
            ``torch.export.Dim("sequence", min=1, max=128)``; or one entry for each input. A maximum is needed. Inputs that
            share a name have equal sizes.
            An exported program has its own, each with a maximum, so the argument is ignored for it. An ONNX model needs one
            for every size that the file leaves open, bounds or a number.
        allow_float: full names of ops ("aten.sin.default") that may be in the program though no stage has a form for them. They
            must be functions of tensors that change none. ``Program.islands`` names their calls.

    The program is a pure function with its own copy of the weights: training the module later does not change it, and
    what the module writes into its inputs stays inside. The module itself is left as it was, its training mode too.

    Raises:
        UnsupportedOpError: the model uses an op that the FLOAT stage does not have.
        CaptureError: the model cannot be traced: control flow on values, shapes that depend on values, other inputs than
            tensors, buffers that change from call to call, a fixed batch, samples that mix; or there is no such file.
    """
    if isinstance(model, ModelProto) or (isinstance(model, str | Path) and Path(model).suffix == ".onnx"):
        from qcompiler.capture.onnx import capture_onnx

        return capture_onnx(model, dynamic_batch, dynamic_shapes, allow_float)
    if isinstance(model, str | Path):
        return program_from_exported(_load(Path(model)), allow_float=allow_float)
    if isinstance(model, ExportedProgram):
        return program_from_exported(model, allow_float=allow_float)
    if not isinstance(model, nn.Module):
        raise CaptureError(f"cannot capture a {type(model).__name__}: give a torch.nn.Module, an ExportedProgram, an ONNX model or a path")
    inputs = _as_tuple(model, example_inputs)
    dynamic = resolve(model, inputs, dynamic_shapes, dynamic_batch)
    return program_from_exported(export_module(model, inputs, dynamic_batch, dynamic), dynamic, allow_float)


def _as_tuple(model: nn.Module, example_inputs: torch.Tensor | Sequence[torch.Tensor] | None) -> tuple[torch.Tensor, ...]:
    if example_inputs is None:
        raise CaptureError(f"capturing the module {type(model).__name__} needs example_inputs: a tensor, or one tensor for each input")
    inputs = (example_inputs,) if not isinstance(example_inputs, list | tuple) else tuple(example_inputs)
    for position, value in enumerate(inputs):
        if not isinstance(value, torch.Tensor):
            raise CaptureError(
                f"input {position} of {type(model).__name__} is a {type(value).__name__}: every input must be a tensor;"
                " wrap the model in a module that fixes the other arguments"
            )
    return inputs


def _load(path: Path) -> ExportedProgram:
    if not path.is_file():
        raise CaptureError(f"{path}: no such file")
    if path.suffix != ".pt2":
        raise CaptureError(
            f"{path}: unknown kind of model file '{path.suffix}': give a .pt2 file written by torch.export.save, or an .onnx file"
        )
    try:
        return torch.export.load(path)
    except Exception as error:  # torch raises whatever its zip, JSON and pickle readers raise
        raise CaptureError(f"{path}: not a readable .pt2 file: write it with torch.export.save") from error
