"""ONNX files of programs: integer-only ones of stage INTEGER, QuantizeLinear and DequantizeLinear of stage QDQ, floats of stage FLOAT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qcompiler.errors import UnknownNameError
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage

STAGES = {"integer": Stage.INTEGER, "qdq": Stage.QDQ, "float": Stage.FLOAT}


class OnnxExporter:
    """``qcompiler.pipeline.backend.Exporter`` for ``.onnx`` files; a version is an opset. ONNX is imported when something is written."""

    name = "onnx"

    @property
    def formats(self) -> Sequence[str]:
        return tuple(STAGES)

    def stage(self, format: str) -> Stage:
        if format not in STAGES:
            raise UnknownNameError("format", format, STAGES)
        return STAGES[format]

    def check(self, format: str, version: int | None) -> None:
        from qcompiler.backends.onnx.export import checked_opset

        self.stage(format)
        checked_opset(version)

    def export(self, program: Program, path: Path, format: str, version: int | None = None) -> None:
        """See ``export.export``."""
        from qcompiler.backends.onnx.export import export

        self.stage(format)
        export(program, path, format, version)


exporter = OnnxExporter()
