"""The measurements behind docs/arithmetic.md: they run, and the figures are drawn where matplotlib is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

import functions


def test_worst_cases_of_a_few_forms() -> None:
    assert functions.worst_activation("gelu", "poly", functions.BYTES, functions.BYTE_SCALES[::13]) < 6e-4
    assert functions.worst_activation("gelu", "shift-gelu", functions.WORDS, functions.WORD_SCALES) is None
    assert functions.worst_softmax("table", 16) < 0.57
    assert functions.smallest_sum("shiftmax") < functions.smallest_sum("table")
    assert functions.worst_normalization("newton", 64, 8000) < 1e-3


def test_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: install the extra 'examples'")
    functions.draw_figures(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"activations.svg", "softmax.svg", "normalization.svg"}
