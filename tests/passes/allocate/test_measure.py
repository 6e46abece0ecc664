from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import qcompiler as qc
from qcompiler.errors import CalibrationError, QCompilerError, UnknownNameError
from qcompiler.passes.allocate.measure import measure, measure_together
from qcompiler.passes.allocate.metrics.loss import MeasuredLoss
from qcompiler.passes.allocate.table import fingerprint
from qcompiler.pipeline.executor import LocalExecutor, Result, Work
from qcompiler.sensitivity import Item

METRICS = ["kl-divergence", "fisher"]  # one of each kind: a task is an item, or a piece of samples


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # as workers: sums in another order would be other floats


@pytest.mark.parametrize("metric", METRICS)
def test_any_number_of_workers_gives_the_same_table(metric: str, residual: Any) -> None:
    alone = residual.measure(metric, bits=(3, 8), samples=12, batch=4)
    assert alone == residual.measure(metric, bits=(3, 8), samples=12, batch=4, executor=LocalExecutor(3))


def test_fresh_processes_give_the_same_table(residual: Any) -> None:
    alone = residual.measure("hessian-trace", bits=(3,), batch=4)
    assert alone == residual.measure("hessian-trace", bits=(3,), batch=4, executor=LocalExecutor(2, "spawn"))


@dataclass(frozen=True)
class Backwards:
    """Another executor: nothing but the protocol."""

    def results(self, work: Work, tasks: Sequence[str]) -> Iterator[tuple[str, Result]]:
        do = work.open()
        return ((task, do(task)) for task in reversed(tasks))


@pytest.mark.parametrize("metric", METRICS)
def test_results_come_in_any_order(metric: str, residual: Any) -> None:
    assert residual.measure(metric, bits=(3,), batch=4) == residual.measure(metric, bits=(3,), batch=4, executor=Backwards())


def test_a_checkpoint_holds_finished_evaluations(residual: Any, tmp_path: Path) -> None:
    first = residual.measure("kl-divergence", bits=(3,), checkpoint=tmp_path)
    lines = (tmp_path / "finished.jsonl").read_text().splitlines()
    assert len(lines) == len(first.items)
    (tmp_path / "finished.jsonl").write_text("\n".join(lines[:4]) + "\n")
    assert residual.measure("kl-divergence", bits=(3,), checkpoint=tmp_path) == first
    assert len((tmp_path / "finished.jsonl").read_text().splitlines()) == len(lines)
    for other in ({"bits": (4,)}, {"samples": 5}, {"batch": 4}):
        with pytest.raises(QCompilerError, match="holds the work of another program, other data or other options"):
            residual.measure("kl-divergence", **({"bits": (3,)} | other), checkpoint=tmp_path)


CHILD = """
import runpy, sys, time, torch
from pathlib import Path
from qcompiler.passes.allocate.measure import measure, measure_together
from qcompiler.passes.allocate.metrics.loss import MeasuredLoss
from qcompiler.passes.allocate.metrics.fisher import Fisher
torch.set_num_threads(1)
names = runpy.run_path(sys.argv[1])
torch.manual_seed(0)
case = names["make_case"](names["Residual"](), torch.randn(12, 3, 8, 8))
add_up = Fisher.sums
def slow(self, opened, piece, number):
    if number == 2:
        (Path(sys.argv[2]) / "reached").touch()
        time.sleep(60)
    return add_up(self, opened, piece, number)
Fisher.sums = slow
measure(case.program, "fisher", case.data, bits=(3,), batch=3, checkpoint=Path(sys.argv[2]))
"""


def test_a_killed_run_continues_to_the_same_table(residual: Any, tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(Path(__file__).with_name("conftest.py")), str(tmp_path)])
    deadline = time.monotonic() + 120.0
    while not (tmp_path / "reached").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len((tmp_path / "finished.jsonl").read_text().splitlines()) == 2
    resumed = residual.measure("fisher", bits=(3,), batch=3, checkpoint=tmp_path)
    assert len((tmp_path / "finished.jsonl").read_text().splitlines()) == 4
    assert resumed == residual.measure("fisher", bits=(3,), batch=3)


def test_without_data_weights_are_measured(residual: Any) -> None:
    table = measure(residual.program, "perturbation", None, bits=(4,))
    assert {item.kind for item in table.items} == {"weight"}
    with_data = residual.measure("perturbation", bits=(4,))
    assert all(value == pytest.approx(with_data.rows[row]) for row, value in table.rows.items())
    with pytest.raises(CalibrationError, match="metric 'fisher' looks at samples: give calibration data, or images that 'synthesize'"):
        measure(residual.program, "fisher", None)


def test_chosen_items_alone(residual: Any) -> None:
    chosen = [Item("relu", "activation"), Item("linear", "weight")]
    table = residual.measure("sqnr-output", bits=(4,), items=chosen)
    assert set(table.items) == set(chosen)
    whole = residual.measure("sqnr-output", bits=(4,))
    assert all(value == whole.rows[row] for row, value in table.rows.items())
    with pytest.raises(UnknownNameError, match="unknown weight 'relu'"):
        residual.measure("sqnr-output", bits=(4,), items=[Item("relu", "weight")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": (1, 4)}, r"bits must be among 2\.\.8, got 1, 4"),
        ({"bits": ()}, r"bits must be among 2\.\.8, got none"),
        ({"samples": -1}, "samples must be 0"),
        ({"loss": "hinge"}, "unknown loss 'hinge': did you mean"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str, residual: Any) -> None:
    with pytest.raises(QCompilerError, match=message):
        residual.measure("loss", **options)


def test_other_stages_are_refused(residual: Any) -> None:
    quantized = qc.quantize(residual.program, [residual.inputs])
    with pytest.raises(CalibrationError, match="stage integer: sensitivity is measured at stage float, before 'quantize'"):
        measure(quantized, "loss", residual.data)
    with pytest.raises(CalibrationError, match="stage integer"):
        measure_together(quantized, MeasuredLoss(), residual.data, {Item("conv2d", "weight"): 4})


def test_from_a_captured_model(residual: Any, tmp_path: Path) -> None:
    """The passes of the recipe before ``quantize`` run first; its options say what is rounded."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten()).eval()
    captured = qc.capture(model, torch.randn(1, 3, 5, 5))
    table = qc.sensitivity(captured, [torch.randn(4, 3, 5, 5)], "sqnr-output", (4, 8), options={"quantize.edge_bits": None})
    assert [str(item) for item in table.items] == ["weight 'conv2d'", "activation 'input_1'", "activation 'relu'"]
    again = qc.sensitivity(residual.program, [residual.inputs], "perturbation", passes="canonicalize,quantize,lower-integer", bits=(4,))
    assert again.model == fingerprint(residual.program)  # canonical already
    again.save(tmp_path / "table.csv")
    assert qc.rank_correlation(again, qc.SensitivityTable.load(tmp_path / "table.csv")).spearman == pytest.approx(1.0)
    with pytest.raises(QCompilerError, match="no pass 'allocate' or 'quantize'"):
        qc.sensitivity(captured, passes="canonicalize")
