"""The table of imports in docs/onnx-support.md is what the registry says."""

from __future__ import annotations

from pathlib import Path

from qcompiler.capture.onnx import support

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "onnx-support.md"


def test_the_document_has_the_table_of_the_registry() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert support.with_table(text) == text, "write it anew: python -m qcompiler.capture.onnx.support docs/onnx-support.md"


def test_notes_are_about_ops_that_exist() -> None:
    assert set(support._NOTES) <= {row.op for row in support.rows()}
