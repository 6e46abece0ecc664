"""``benchmarks/results.py``: what is measured once is kept, what is asked for is measured, and the document holds what there is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

import results
from results import Figures, Row, Table

TABLE = Table(
    "A network, 10 images",
    "network",
    (Row("float"), Row("W4A4: nearest", passes="quantize{w=4}")),
    {"top1": ("top-1 %", ".2f")},
    "A remark.",
)


@pytest.fixture
def measured_rows(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the rows that were measured, in order."""
    rows: list[str] = []

    def measure(assets: Path, row: Row) -> Figures:
        rows.append(row.name)
        return {"top1": 50.0 + len(rows)}

    monkeypatch.setitem(results.MEASURES, "network", measure)
    return rows


def arguments(folder: Path, **changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{"results": folder, "assets": folder, "tables": ["table"], "rows": "", "again": False, **changes})


def test_figures_are_kept_and_measured_again_where_asked(tmp_path: Path, measured_rows: list[str]) -> None:
    first, second = ([results.measured("table", TABLE, row, arguments(tmp_path)) for row in TABLE.rows] for _ in range(2))
    assert first == second == [{"top1": 51.0}, {"top1": 52.0}]
    assert measured_rows == ["float", "W4A4: nearest"]
    assert json.loads((tmp_path / "table" / "w4a4-nearest.json").read_text())["row"]["passes"] == "quantize{w=4}"
    assert results.measured("table", TABLE, TABLE.rows[0], arguments(tmp_path, again=True)) == {"top1": 53.0}


def test_a_row_with_another_pipeline_is_another_row(tmp_path: Path, measured_rows: list[str]) -> None:
    results.measured("table", TABLE, TABLE.rows[1], arguments(tmp_path))
    changed = Row("W4A4: nearest", passes="quantize{w=3}")
    assert results.measured("table", TABLE, changed, arguments(tmp_path, tables=[])) is None
    assert results.measured("table", TABLE, changed, arguments(tmp_path)) == {"top1": 52.0}


def test_rows_that_nobody_asked_for_are_left_out(tmp_path: Path, measured_rows: list[str]) -> None:
    asked = arguments(tmp_path, rows="nearest")
    figures = [results.measured("table", TABLE, row, asked) for row in TABLE.rows]
    assert figures == [None, {"top1": 51.0}] and measured_rows == ["W4A4: nearest"]
    assert results.markdown(TABLE, figures) == (
        "## A network, 10 images\n\n| | top-1 % |\n|---|---|\n| W4A4: nearest | 51.00 |\n\nA remark.\n"
    )


def test_every_row_of_a_table_has_a_file_of_its_own() -> None:
    for name, table in results.TABLES.items():
        paths = {results.kept_path(Path(), name, row) for row in table.rows}
        assert len(paths) == len(table.rows), name
        assert table.network in results.MEASURES
