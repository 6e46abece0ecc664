from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from qcompiler.calibration.data import CalibrationData
from qcompiler.calibration.statistics import Observation, ObserverSpec, StatisticRequest
from qcompiler.errors import CalibrationError, PassError, UnsupportedOpError, VerificationError
from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Exact, Pass, PassContext, PassResult
from qcompiler.pipeline.instruments import Dump, SignalToNoise, Timing
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.progress import PlainProgress


@dataclass(frozen=True)
class FloatPass(Pass):
    name: ClassVar[str] = "do-nothing"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Exact] = Exact()

    def run(self, program: Program, context: PassContext) -> PassResult:
        return PassResult(program, modified=False)


@dataclass(frozen=True)
class Ask(FloatPass):
    """Asks for ranges, tells ``heard`` what it was told, and changes nothing."""

    name: ClassVar[str] = "ask"
    nodes: tuple[str, ...] = ("product",)
    heard: list[dict[str, Observation]] = dataclasses.field(default_factory=list)
    observer: ObserverSpec = dataclasses.field(default_factory=ObserverSpec)

    def statistics(self, program: Program) -> Sequence[StatisticRequest]:
        return [StatisticRequest(node, self.observer) for node in self.nodes]

    def run(self, program: Program, context: PassContext) -> PassResult:
        self.heard.append(dict(context.statistics))
        return PassResult(program, modified=False)


@dataclass(frozen=True)
class Scale(FloatPass):
    """Multiplies the weight by a factor: every value after it changes, no node's name does."""

    name: ClassVar[str] = "scale"
    factor: float = 2.0

    def run(self, program: Program, context: PassContext) -> PassResult:
        result = edit.copy(program)
        result.graph_module.register_buffer("w", program.graph_module.get_buffer("w") * self.factor)
        return PassResult(result, modified=True, notes=("scaled w",))


@dataclass(frozen=True)
class Broken(FloatPass):
    """Does whatever its test wants."""

    name: ClassVar[str] = "broken"
    action: Callable[[Program], PassResult] = dataclasses.field(default=lambda program: PassResult(program, modified=False))

    def run(self, program: Program, context: PassContext) -> PassResult:
        return self.action(program)


@dataclass(frozen=True)
class Lower(FloatPass):
    name: ClassVar[str] = "lower"
    takes: ClassVar[Stage] = Stage.QDQ
    gives: ClassVar[Stage] = Stage.INTEGER


def calibration(program: Program, batches: list[torch.Tensor]) -> tuple[CalibrationData, list[int]]:
    """The data, and a list that grows by one whenever they are read from their start."""
    sweeps: list[int] = []

    def source() -> Iterator[torch.Tensor]:
        sweeps.append(1)
        yield from batches

    return CalibrationData(source, program.inputs), sweeps


def test_history_and_source_program(small_program: Program, data: list[torch.Tensor]) -> None:
    before = small_program.text()
    result = PassManager([FloatPass(), Scale(), Scale(factor=0.5)]).run(small_program)
    assert [(record.name, record.modified, record.notes) for record in result.history] == [
        ("do-nothing", False, ()),
        ("scale", True, ("scaled w",)),
        ("scale", True, ("scaled w",)),
    ]
    assert result.history[2].options == {"factor": 0.5}
    assert torch.equal(result.run(data[0])[0], small_program.run(data[0])[0])
    assert small_program.text() == before


def test_consecutive_passes_share_one_sweep(small_program: Program, data: list[torch.Tensor]) -> None:
    calibration_data, sweeps = calibration(small_program, data)
    first, second = Ask(), Ask(nodes=("product", "activation"))
    PassManager([first, second]).run(small_program, calibration_data)
    assert len(sweeps) == 1
    product = torch.cat(data) * small_program.graph_module.get_buffer("w")
    expected = Observation((float(product.min()),), (float(product.max()),))
    assert first.heard == [{"product": expected}]
    assert second.heard == [{"product": expected, "activation": Observation((0.0,), expected.high)}]


def test_a_statistic_is_kept_while_its_value_is_the_same(small_program: Program, data: list[torch.Tensor]) -> None:
    calibration_data, sweeps = calibration(small_program, data)
    asked = [Ask(nodes=("x",)), Ask(nodes=("x",)), Ask(), Ask()]
    PassManager([asked[0], Scale(), asked[1], FloatPass(), asked[2], Scale(factor=3.0), asked[3]]).run(small_program, calibration_data)
    # The input is measured once; the product once before and once after its weight was scaled, though its name is the same.
    assert len(sweeps) == 3
    assert asked[0].heard == asked[1].heard
    assert asked[3].heard[0]["product"].high[0] == pytest.approx(3.0 * asked[2].heard[0]["product"].high[0], rel=1e-6)


def test_statistics_without_data(small_program: Program) -> None:
    with pytest.raises(CalibrationError, match="^pass 'ask': pass 'ask' needs the ranges of 1 values: give calibration data$"):
        PassManager([Ask()]).run(small_program)


def test_two_observers_of_one_node(small_program: Program, data: list[torch.Tensor]) -> None:
    @dataclass(frozen=True)
    class Twice(Ask):
        def statistics(self, program: Program) -> Sequence[StatisticRequest]:
            return [StatisticRequest("x", ObserverSpec()), StatisticRequest("x", ObserverSpec("mse"))]

    with pytest.raises(PassError, match="asks for two statistics of node 'x'"):
        PassManager([Twice()]).run(small_program, CalibrationData(data, small_program.inputs))


def test_passes_that_do_not_fit_together(small_program: Program) -> None:
    message = "^pass 'lower' takes a program at stage qdq, but what 'do-nothing' gives is at stage float: put a pass from float to qdq"
    with pytest.raises(PassError, match=message):
        PassManager([FloatPass(), Lower()]).run(small_program)


def test_a_foreseen_error_keeps_its_class(small_program: Program) -> None:
    def refuse(program: Program) -> PassResult:
        raise UnsupportedOpError("no such op")

    with pytest.raises(UnsupportedOpError, match=r"^pass 'broken' \(after do-nothing, scale\): no such op$"):
        PassManager([FloatPass(), Scale(), Broken(action=refuse)]).run(small_program)


def test_an_unforeseen_error_names_pass_and_node(small_program: Program) -> None:
    def stumble(program: Program) -> PassResult:
        for node in program.graph.nodes:
            if node.name == "product":
                raise KeyError("axis")
        raise AssertionError

    message = r"^pass 'broken': failed at node 'product' \(aten.mul.Tensor\).*: KeyError: 'axis'; this is a defect of the pass$"
    with pytest.raises(PassError, match=message):
        PassManager([Broken(action=stumble)]).run(small_program)


def test_a_result_that_breaks_its_stage(small_program: Program, tmp_path: Path) -> None:
    def plant(program: Program) -> PassResult:
        result = edit.copy(program)
        with result.graph.inserting_before(result.graph.output_node()):
            stray = result.graph.call_function(math.sqrt, (2.0,))
        result.graph.output_node().args = ((stray,),)
        result.graph_module.recompile()
        return PassResult(result, modified=True)

    with pytest.raises(VerificationError, match=r"^after pass 'broken' \(after do-nothing\): "):
        PassManager([FloatPass(), Broken(action=plant)]).run(small_program)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda p: PassResult(p.replace(stage=Stage.QDQ), True), "promised a program at stage float, gave one at qdq"),
        (lambda p: PassResult(edit.copy(p), False), "says that nothing was modified and gives another graph"),
    ],
)
def test_dishonest_results(small_program: Program, action: Callable[[Program], PassResult], message: str) -> None:
    with pytest.raises(PassError, match=message):
        PassManager([Broken(action=action)]).run(small_program)


def test_dump_writes_text_and_json_after_each_pass(small_program: Program, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "dump"
    result = PassManager([FloatPass(), Scale()], instruments=[Dump(folder)]).run(small_program)
    names = ["00-input", "01-do-nothing", "02-scale"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.{kind}" for name in names for kind in ("txt", "json"))
    assert (folder / "02-scale.txt").read_text() == result.text()
    twin = json.loads((folder / "02-scale.json").read_text())
    assert twin["stage"] == "float" and [node["name"] for node in twin["nodes"]] == [node.name for node in result.graph.nodes]
    assert twin["history"][1] == {"pass": "scale", "options": {"factor": 2.0}, "modified": True, "notes": ["scaled w"]}


def test_signal_to_noise_after_each_pass(small_program: Program, data: list[torch.Tensor]) -> None:
    meter = SignalToNoise(CalibrationData(data, small_program.inputs).samples)
    PassManager([FloatPass(), Scale(factor=1.01)], instruments=[meter]).run(small_program)
    assert [record.name for record in meter.records] == ["do-nothing", "scale"]
    assert meter.records[0].decibels == math.inf
    assert meter.records[1].decibels == pytest.approx(40.0, abs=0.01)  # the error is a hundredth of the signal


def test_timing_and_progress(small_program: Program, data: list[torch.Tensor]) -> None:
    timing, log = Timing(), io.StringIO()
    manager = PassManager([Ask(), Scale()], instruments=[timing], progress=PlainProgress(log))
    manager.run(small_program, CalibrationData(data, small_program.inputs))
    assert [record.name for record in timing.records] == ["ask", "scale"]
    assert [line.partition(":")[0] for line in log.getvalue().splitlines()] == ["calibrating, batches", "ask", "scale"]


@dataclass(frozen=True)
class Look(FloatPass):
    """Keeps the contexts that it is run with."""

    name: ClassVar[str] = "look"
    needs_data: ClassVar[bool] = True
    seen: list[PassContext] = dataclasses.field(default_factory=list)

    def run(self, program: Program, context: PassContext) -> PassResult:
        self.seen.append(context)
        return PassResult(program, modified=False)


@dataclass(frozen=True)
class LookAtQDQ(Look):
    name: ClassVar[str] = "look-at-qdq"
    takes: ClassVar[Stage] = Stage.QDQ
    gives: ClassVar[Stage] = Stage.QDQ


@dataclass(frozen=True)
class ToQDQ(FloatPass):
    name: ClassVar[str] = "to-qdq"
    gives: ClassVar[Stage] = Stage.QDQ

    def run(self, program: Program, context: PassContext) -> PassResult:
        return PassResult(edit.copy(program).replace(stage=Stage.QDQ), modified=True)


def test_what_a_pass_is_given(small_program: Program, data: list[torch.Tensor], tmp_path: Path) -> None:
    calibration_data, _ = calibration(small_program, data)
    before, after = Look(), LookAtQDQ()
    PassManager([before, Scale(), ToQDQ(), after], directory=tmp_path).run(small_program, calibration_data)
    assert before.seen[0].reference is None
    reference = after.seen[0].reference
    assert reference is not None and reference.stage is Stage.FLOAT
    assert torch.equal(reference.graph_module.get_buffer("w"), small_program.graph_module.get_buffer("w") * 2.0)
    assert after.seen[0].data is calibration_data
    assert after.seen[0].directory == tmp_path / "04-look-at-qdq" and not after.seen[0].directory.exists()


def test_a_reference_that_is_given(small_program: Program, data: list[torch.Tensor]) -> None:
    calibration_data, _ = calibration(small_program, data)
    look = LookAtQDQ()
    PassManager([look]).run(edit.copy(small_program).replace(stage=Stage.QDQ), calibration_data, reference=small_program)
    assert look.seen[0].reference is small_program


def test_a_pass_that_needs_data_and_gets_none(small_program: Program) -> None:
    message = "^pass 'look' runs the model on calibration data, and there are none: give calibration data$"
    with pytest.raises(CalibrationError, match=message):
        PassManager([FloatPass(), Look()]).run(small_program)
