"""One sweep over the calibration data that answers every question at once.

The program runs node by node; a value is observed when it is made and freed after its last use, so that memory is that of running one
batch plus the observers, whatever the number of batches. Questions about one value that differ in the number of bits share what is
counted: how many bits there are matters for the answer alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import fx

from qcompiler.calibration.data import CalibrationData
from qcompiler.calibration.observers import Observer, make_observer
from qcompiler.calibration.statistics import Observation, StatisticRequest
from qcompiler.errors import CalibrationError
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import Stage
from qcompiler.pipeline.progress import Progress, SilentProgress

_ANY_BITS = 8


def collect(
    program: Program, requests: Iterable[StatisticRequest], data: CalibrationData, progress: Progress | None = None
) -> dict[StatisticRequest, Observation]:
    """Run the float program over all the data and answer every request; equal requests are answered once.

    Raises:
        CalibrationError: the data do not fit (see CalibrationData), a request names no node of the graph, a value is not finite (the
            message names the node and the sample), or the program is past the stages that compute with floats.
    """
    asked = tuple(dict.fromkeys(requests))
    if not asked:
        return {}
    observers = {counted: make_observer(counted.observer) for counted in dict.fromkeys(map(_counted, asked))}
    interpreter = _ObservingInterpreter(program, observers)
    batches = (progress or SilentProgress()).track(data.labelled(), "calibrating, batches", data.total)
    with torch.no_grad():
        for position, (group, batch) in enumerate(batches):
            interpreter.observe(position, group, batch)
    return {request: _result(request, observers[_counted(request)]) for request in asked}


def _counted(request: StatisticRequest) -> StatisticRequest:
    """What has to be counted to answer a request: the same for any number of bits, whatever the label."""
    return StatisticRequest(request.node, replace(request.observer, bits=_ANY_BITS))


def _result(request: StatisticRequest, observer: Observer) -> Observation:
    try:
        return observer.with_bits(request.observer.bits).result()
    except CalibrationError as error:
        raise CalibrationError(f"statistic of node '{request.node}': {error}") from error


class _ObservingInterpreter(fx.Interpreter):
    """Runs a graph and shows the values of some nodes to their observers."""

    def __init__(self, program: Program, observers: dict[StatisticRequest, Observer]) -> None:
        if program.stage is Stage.INTEGER:
            raise CalibrationError("statistics are gathered from floats: run the passes that ask for them before 'lower-integer'")
        super().__init__(program.graph_module, garbage_collect_values=True)
        self.extra_traceback = False
        self._observers: dict[str, list[Observer]] = defaultdict(list)
        for request, observer in observers.items():
            self._observers[request.node].append(observer)
        unknown = self._observers.keys() - {node.name for node in program.graph.nodes}
        if unknown:
            raise CalibrationError(f"a pass asks for statistics of '{min(unknown)}', which is no node of the graph")
        self._position, self._group = 0, ""

    def observe(self, position: int, group: str, batch: tuple[torch.Tensor, ...]) -> None:
        self._position, self._group = position, group
        self.run(*batch)

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        for observer in self._observers.get(n.name, ()):
            if not isinstance(value, torch.Tensor):
                raise CalibrationError(f"a pass asks for statistics of {describe(n)}, which is no tensor")
            try:
                observer.update(value, self._group)
            except CalibrationError as error:
                raise CalibrationError(f"calibration sample {self._position}, node {describe(n)}: {error}") from error
        return value
