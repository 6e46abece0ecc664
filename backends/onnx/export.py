"""Export of a program to a file: the right stage, a graph, metadata, checks, the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir

import qcompiler
from qcompiler.backends.onnx import STAGES, files, integer, quantized
from qcompiler.errors import QCompilerError
from qcompiler.ir.program import Program
from qcompiler.ir.text import record_dict
from qcompiler.ir.types import Stage

OLDEST_OPSET = 13
DEFAULT_OPSET = 21

_WRITE: dict[str, Callable[[Program, int], ir.Graph]] = {
    "integer": integer.write,
    "qdq": quantized.write_qdq,
    "float": quantized.write_float,
}
_WAYS = {
    Stage.FLOAT: "export format 'float', or quantize it first",
    Stage.QDQ: "export format 'qdq', or lower it with the pass 'lower-integer'",
    Stage.INTEGER: "export format 'integer', or quantize with a pipeline that ends before 'lower-integer'",
}


def export(program: Program, path: Path, format: str, opset: int | None = None) -> None:
    """Write a program as ``format`` with ``opset`` (21 where None is given).

    Raises:
        QCompilerError: the program is at another stage than the format's, or nobody knows the opset.
        UnsupportedOpError: an op has no writer, or no form in the opset; names the node.
        VerificationError: a float tensor lies inside an integer-only file.
        ArtifactError: the file cannot be written.
    """
    files.write(make_model(program, format, opset), path, integer.check_integer_only if format == "integer" else None)


def make_model(program: Program, format: str, opset: int | None = None) -> ir.Model:
    """The model of a program, with producer, history and docs, unchecked."""
    chosen = checked_opset(opset)
    if program.stage is not STAGES[format]:
        raise QCompilerError(
            f"the program is at stage {program.stage.value}, but format '{format}' is written from stage {STAGES[format].value}: "
            f"{_WAYS[program.stage]}"
        )
    graph = _WRITE[format](program, chosen)
    history = json.dumps([record_dict(record) for record in program.history])
    metadata = {"qcompiler.stage": program.stage.value, "qcompiler.history": history}
    # Which token ids and masks the program takes: capture reads it again.
    metadata |= {f"qcompiler.range.{spec.name}": f"{spec.range.low} {spec.range.high}" for spec in program.inputs if spec.range is not None}
    return ir.Model(
        graph,
        ir_version=_ir_version(chosen),
        producer_name="qcompiler",
        producer_version=qcompiler.__version__,
        metadata_props=metadata,
    )


def newest_opset() -> int:
    """The newest opset that the installed ``onnx`` defines."""
    return int(onnx.defs.onnx_opset_version())


def checked_opset(opset: int | None) -> int:
    """The opset, 21 where None is given.

    Raises:
        QCompilerError: it cannot be written.
    """
    chosen = DEFAULT_OPSET if opset is None else opset
    if not OLDEST_OPSET <= chosen <= newest_opset():
        raise QCompilerError(f"opset {chosen} cannot be written: use {OLDEST_OPSET} to {newest_opset()}")
    return chosen


def _ir_version(opset: int) -> int:
    """The oldest version of the file format that has the opset, so that old readers take the file."""
    return onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
