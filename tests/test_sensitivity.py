from __future__ import annotations

import json
from pathlib import Path

import pytest

from qcompiler.errors import CalibrationError
from qcompiler.sensitivity import Item, SensitivityTable, rank_correlation

A, B, C = Item("conv", "weight"), Item("conv", "activation"), Item('odd, "name"', "weight")
TABLE = SensitivityTable(
    "loss", "ab12", {(A, 2): 0.1 + 0.2, (A, 4): 1e-300, (B, 8): -0.25, (C, 2): 3.0}, {"samples": "64", "note": 'commas, "quotes"'}
)


@pytest.mark.parametrize("ending", [".json", ".csv"])
def test_what_was_saved_is_loaded(ending: str, tmp_path: Path) -> None:
    TABLE.save(tmp_path / f"table{ending}")
    assert SensitivityTable.load(tmp_path / f"table{ending}") == TABLE
    assert [path.name for path in tmp_path.iterdir()] == [f"table{ending}"]


def test_items_and_their_bits() -> None:
    assert TABLE.items == (A, B, C) and TABLE.bits_of(A) == (2, 4) and TABLE.bits_of(Item("x", "weight")) == ()


def rows(*changed: dict[str, object]) -> str:
    return json.dumps({"format": 1, "metric": "m", "rows": list(changed)})


ROW: dict[str, object] = {"kind": "weight", "name": "conv", "bits": 4, "sensitivity": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a sensitivity table of format 1"),
        (json.dumps({"format": 1, "rows": 3}), "the key 'rows' must hold a list"),
        (rows(), "it has no rows"),
        (rows(ROW, ROW), "row 2: weight 'conv' at 4 bits stands there twice"),
        (rows(ROW | {"kind": "bias"}), "row 1: kind is 'bias': use weight or activation"),
        (rows(ROW | {"name": ""}), "row 1: it has no name"),
        (rows(ROW | {"bits": "four"}), "row 1: bits 'four' and sensitivity '0.5' must be numbers"),
        (rows(ROW | {"bits": 32}), "weight 'conv' has 32 bits: use 2..16"),
        (rows(ROW | {"sensitivity": "nan"}), "weight 'conv' at 4 bits has the sensitivity nan: give a finite number"),
    ],
)
def test_an_edited_table_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=message) as told:
        SensitivityTable.load(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind,name,bits\nweight,conv,4\n", "no column 'sensitivity'"),
        ("metric,kind,name,bits,sensitivity\na,weight,conv,4,1\nb,weight,conv,2,1\n", "column 'metric' differs between rows: a, b"),
        ("settings,kind,name,bits,sensitivity\n{,weight,conv,4,1\n", "column 'settings' is not JSON"),
        ("kind,name,bits,sensitivity\nweight,conv,4\n", "row 1: bits '4' and sensitivity 'None' must be numbers"),
    ],
)
def test_an_edited_spreadsheet_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=message):
        SensitivityTable.load(path)


def test_a_table_written_by_hand(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("kind,name,bits,sensitivity\nweight,conv,4,0.5\n")
    assert SensitivityTable.load(tmp_path / "table.csv") == SensitivityTable("", "", {(A, 4): 0.5})


def test_names_of_files(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="its name must end in .json or .csv"):
        TABLE.save(tmp_path / "table.txt")
    with pytest.raises(CalibrationError, match="cannot be read"):
        SensitivityTable.load(tmp_path / "missing.json")
    with pytest.raises(CalibrationError, match="cannot write the sensitivity table"):
        TABLE.save(tmp_path / "no-folder" / "table.json")


def table(*values: float, bits: int = 4) -> SensitivityTable:
    return SensitivityTable("m", "", {(Item(f"layer{number}", "weight"), bits): value for number, value in enumerate(values)})


def test_rank_correlation() -> None:
    assert rank_correlation(table(1, 2, 3, 4), table(1, 10, 100, 1000)).spearman == pytest.approx(1.0)
    reverse = rank_correlation(table(1, 2, 3, 4), table(4, 3, 2, 1))
    assert (reverse.spearman, reverse.kendall, reverse.rows) == (pytest.approx(-1.0), pytest.approx(-1.0), 4)
    # One of three pairs is in another order: tau = (2 - 1) / 3; rho = 1 - 6 (1 + 1) / (3 (9 - 1)).
    one = rank_correlation(table(1, 2, 3), table(1, 3, 2))
    assert (one.spearman, one.kendall) == (pytest.approx(0.5), pytest.approx(1 / 3))


def test_ranks_of_rows_in_common_alone() -> None:
    first, second = table(1, 2, 3, 4), SensitivityTable("m", "", {**table(4, 3, 2).rows, **table(9, 9, 9, bits=2).rows})
    assert rank_correlation(first, second, bits=4, kind="weight").rows == 3
    with pytest.raises(CalibrationError, match="have 0 rows in common"):
        rank_correlation(first, second, bits=2)
    with pytest.raises(CalibrationError, match="the same number in all 3 rows"):
        rank_correlation(table(1, 1, 1), table(1, 2, 3))
