"""Runs passes one after the other: stages checked, statistics gathered, each result verified, each error told with its place."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import fx

from qcompiler.calibration.data import CalibrationData
from qcompiler.errors import CalibrationError, PassError, QCompilerError
from qcompiler.ir.program import PassRecord, Program
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import Stage
from qcompiler.pipeline.collector import StatisticsCollector
from qcompiler.pipeline.contract import Pass, PassContext, PassResult
from qcompiler.pipeline.instruments import Instrument
from qcompiler.pipeline.progress import Progress, SilentProgress

Result = TypeVar("Result")


@dataclass
class _Run:
    """What one run of a pipeline keeps beside the program."""

    collector: StatisticsCollector
    data: CalibrationData | None
    target: str | None
    reference: Program | None


class PassManager:
    """A pipeline and how it is run.

    Args:
        passes: what runs, in this order.
        verify: check the program against its stage's specification before the first pass and after each one.
        instruments: look on (see ``instruments``); after verification, in this order.
        progress: told about sweeps and passes.
        directory: where a pass that works long may leave what lets it continue after it was killed, in a folder ``NN-pass-name``.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        *,
        verify: bool = True,
        instruments: Sequence[Instrument] = (),
        progress: Progress | None = None,
        directory: Path | None = None,
    ) -> None:
        self.passes = tuple(passes)
        self._directory = directory
        self._verify, self._instruments = verify, tuple(instruments)
        self._progress = progress if progress is not None else SilentProgress()

    def run(
        self, program: Program, data: CalibrationData | None = None, target: str | None = None, reference: Program | None = None
    ) -> Program:
        """The program after all passes; ``program`` itself is left as it was. ``history`` gains one record a pass.

        ``reference``: the float original of a program that is at QDQ already (see ``PassContext``); else it is found on the way.

        Raises:
            PassError: the passes do not fit together, or one of them failed in a way that its author did not foresee.
            CalibrationError: a pass needs calibration data and there are none.
            QCompilerError: of whatever class a pass, the calibration or the verifier raised; the message starts with the pass and
                those before it.
        """
        self._check_stages(program.stage)
        self._check_data(data)
        if self._verify:
            program.verify()
        run = _Run(StatisticsCollector(data, self._progress), data, target, reference)
        for position, item in enumerate(self.passes):
            if item.takes is Stage.FLOAT and item.gives is Stage.QDQ:
                run.reference = program
            program = self._run_one(position, program, run)
        return program

    def _run_one(self, position: int, program: Program, run: _Run) -> Program:
        item = self.passes[position]
        place = _place(item, self.passes[:position])
        for instrument in self._instruments:
            instrument.before_pass(item, program)
        statistics = _told_with(place, lambda: run.collector.answer(program, self.passes[position:]))
        directory = self._directory / f"{position + 1:02}-{item.name}" if self._directory else None
        following = self.passes[position + 1 :]
        context = PassContext(statistics, run.target, run.data, run.reference, self._progress, directory, following)
        start = time.perf_counter()
        result = _told_with(place, lambda: item.run(program, context))
        seconds = time.perf_counter() - start
        after = self._accept(item, program, result, place)
        for instrument in self._instruments:
            instrument.after_pass(item, after, seconds)
        self._progress.say(f"{item.name}: {'done' if result.modified else 'nothing to do'} in {seconds:.2f} s")
        return after

    def _accept(self, item: Pass, before: Program, result: PassResult, place: str) -> Program:
        """The program that goes on, with its history."""
        if result.program.stage is not item.gives:
            raise PassError(f"{place}: promised a program at stage {item.gives.value}, gave one at {result.program.stage.value}")
        if not result.modified and result.program.graph_module is not before.graph_module:
            raise PassError(f"{place}: says that nothing was modified and gives another graph: return the program that came in")
        record = PassRecord(item.name, item.options(), result.modified, result.notes)
        after = result.program.replace(history=(*before.history, record))
        if self._verify and result.modified:
            self._verify_result(item, after, place)
        return after

    def _verify_result(self, item: Pass, program: Program, place: str) -> None:
        try:
            program.verify()
        except QCompilerError as error:
            for instrument in self._instruments:
                instrument.on_rejection(item, program)
            raise error.within(f"after {place}") from None

    def _check_data(self, data: CalibrationData | None) -> None:
        needy = next((item for item in self.passes if item.needs_data), None)
        if needy is not None and data is None:
            raise CalibrationError(f"pass '{needy.name}' runs the model on calibration data, and there are none: give calibration data")

    def _check_stages(self, stage: Stage) -> None:
        giver = "the program"
        for item in self.passes:
            if item.takes is not stage:
                raise PassError(
                    f"pass '{item.name}' takes a program at stage {item.takes.value}, but {giver} is at stage {stage.value}: "
                    f"put a pass from {stage.value} to {item.takes.value} before it, or leave it out"
                )
            stage, giver = item.gives, f"what '{item.name}' gives"


def _place(item: Pass, before: Sequence[Pass]) -> str:
    earlier = f" (after {', '.join(other.name for other in before)})" if before else ""
    return f"pass '{item.name}'{earlier}"


def _told_with(place: str, action: Callable[[], Result]) -> Result:
    """Run ``action``; an error starts with ``place``, and one that the pass did not foresee also names the node it was at."""
    try:
        return action()
    except QCompilerError as error:
        raise error.within(place) from None
    except Exception as error:
        node = _node_at_fault(error)
        where = f" at node {describe(node)}" if node is not None else ""
        raise PassError(f"{place}: failed{where}: {type(error).__name__}: {error}; this is a defect of the pass") from error


def _node_at_fault(error: Exception) -> fx.Node | None:
    """The graph node that the innermost function with a variable called ``node`` was looking at."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    nodes = (frame.f_locals.get("node") for frame in reversed(frames))
    return next((node for node in nodes if isinstance(node, fx.Node)), None)
