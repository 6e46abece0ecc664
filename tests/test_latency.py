"""Latency tables: measured in place, added up, kept, refused elsewhere."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler import latency
from qcompiler.errors import CalibrationError, QCompilerError, TargetError, UnknownNameError
from qcompiler.latency import LatencyTable, Machine, profile

HERE = Machine("Some CPU", ("avx2",), "x86-64-v3", 1, "0.1.0", "tvm abc")
TABLE = LatencyTable(
    HERE,
    {"k2": 1e-3, "k4": 2e-3, "k8": 4e-3, "extra": 5e-4},
    {"first": {(8, 8): ("k8",)}, "second": {(2, 8): ("k2",), (4, 8): ("k4", "extra"), (8, 8): ("k8",)}},
    rest=1e-4,
)


@pytest.fixture(scope="module")
def program() -> qc.Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    return qc.capture(model.eval(), torch.randn(2, 16))


def test_times_of_layers_add_up() -> None:
    assert TABLE.seconds("second", 4, 8) == pytest.approx(2.5e-3)
    assert TABLE.predict({"first": (8, 8), "second": (2, 8)}) == pytest.approx(5.1e-3)


def test_bits_that_were_not_measured_take_the_time_of_the_next_wider_ones() -> None:
    assert TABLE.seconds("second", 3, 8) == TABLE.seconds("second", 4, 8)
    assert TABLE.seconds("first", 2, 4) == TABLE.seconds("first", 8, 8)


def test_what_the_table_lacks_is_named() -> None:
    with pytest.raises(CalibrationError, match="no layer 'third'.*profile again"):
        TABLE.seconds("third", 8, 8)
    with pytest.raises(CalibrationError, match="no W16A8 for layer 'second' .it has W2A8, W4A8, W8A8.: profile it"):
        TABLE.seconds("second", 16, 8)
    with pytest.raises(CalibrationError, match="lacks the bits of layer 'second'"):
        TABLE.predict({"first": (8, 8)})


def test_a_table_is_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == TABLE
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("cpu", "Other CPU", "the CPU 'Other CPU' in place of 'Some CPU'"),
        ("features", ("avx2", "fma"), "instruction sets avx2, fma in place of avx2"),
        ("target", "x86-64-vnni", "target 'x86-64-vnni' in place of"),
        ("threads", 2, "threads '2' in place of '1'"),
        ("qcompiler", "0.2.0", "qcompiler '0.2.0' in place of '0.1.0'"),
        ("backend", "tvm abd", "back end 'tvm abd' in place of 'tvm abc'"),
    ],
)
def test_a_table_of_another_machine_is_refused(field: str, value: object, message: str) -> None:
    other = dataclasses.replace(TABLE, machine=dataclasses.replace(HERE, **{field: value}))
    with pytest.raises(TargetError, match=f"^the latency table was measured with {message}.*: run 'qcompiler profile' here$"):
        other.check_machine(HERE)
    TABLE.check_machine(HERE)
    assert other.machine.digest != HERE.digest


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    with pytest.raises(CalibrationError, match="cannot be read"):
        LatencyTable.load(path)
    path.write_text("{}")
    with pytest.raises(CalibrationError, match="no latency table of format 1"):
        LatencyTable.load(path)
    TABLE.save(path)
    content = json.loads(path.read_text())
    del content["kernels"]["k8"]
    path.write_text(json.dumps(content))
    with pytest.raises(CalibrationError, match="damaged .*kernel 'k8' has no time"):
        LatencyTable.load(path)


def test_layers_are_timed_once_and_then_taken_from_the_cache(program: qc.Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(latency, "_CALL_SECONDS", 0.01)
    first = profile(program, weight_bits=(4, 8), threads=1)
    assert list(first.layers) == ["linear", "linear_1"]
    assert all(pairs.keys() == {(4, 8), (8, 8)} for pairs in first.layers.values())
    assert all(0.0 < seconds < 0.1 for seconds in first.kernels.values()) and 0.0 <= first.rest < 0.1
    first.check_machine(Machine.here(threads=1))
    monkeypatch.setattr(latency._Timed, "measure", lambda self: pytest.fail("timed again"))
    assert profile(program, weight_bits=(4, 8), threads=1) == first
    assert [path.name for path in (tmp_path / "latency").iterdir()] == [f"{first.machine.digest}.json"]


class Branches(nn.Module):
    """Two layers that read the same value and are joined: one kernel computes them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 4), nn.Linear(16, 4), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([self.first(x).relu(), self.second(x).relu()], -1)
        return self.head(joined)  # type: ignore[no-any-return]


def test_layers_of_one_kernel_share_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(latency, "_CALL_SECONDS", 0.01)
    torch.manual_seed(0)
    branches = qc.capture(Branches().eval(), torch.randn(2, 16))
    options = {"lower-integer.requantize": "high"}  # of other forms there may be two kernels
    table = profile(branches, weight_bits=(8,), target="x86-64-v3", threads=1, options=options)
    first, second, head = (table.layers[name][8, 8] for name in ("linear", "linear_1", "linear_2"))
    assert first == second and first[0].endswith("/2") and not head[0].endswith("/2")
    assert table.seconds("linear", 8, 8) > 0


def test_what_cannot_be_profiled(program: qc.Program) -> None:
    with pytest.raises(UnknownNameError, match="target 'x87'"):
        profile(program, target="x87")
    with pytest.raises(QCompilerError, match="no bits to profile"):
        profile(program, weight_bits=())
    integers = qc.quantize(program, torch.randn(4, 16))
    with pytest.raises(QCompilerError, match="at stage integer: profile takes what capture gives"):
        profile(integers)
