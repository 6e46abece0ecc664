"""The statistics that passes ask for, gathered in as few sweeps over the calibration data as possible.

A sweep answers the pass at hand and the passes straight after it that ask too. An answer is kept for as long as what computes the value
is the same, ops and constants alike, whatever passes did elsewhere in the graph; it is never used for another value under an old name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch.fx.node import map_arg

from qcompiler.calibration.data import CalibrationData
from qcompiler.calibration.statistics import Observation, ObserverSpec, StatisticRequest
from qcompiler.calibration.sweep import collect
from qcompiler.errors import CalibrationError, PassError
from qcompiler.ir.program import Program
from qcompiler.pipeline.contract import Pass
from qcompiler.pipeline.progress import Progress


class StatisticsCollector:
    """Answers the passes of one pipeline run from one set of calibration data."""

    def __init__(self, data: CalibrationData | None, progress: Progress) -> None:
        self._data, self._progress = data, progress
        self._known: dict[tuple[int, ObserverSpec], Observation] = {}
        self._computations = _Computations()

    def answer(self, program: Program, passes: Sequence[Pass]) -> Mapping[str, Observation]:
        """What ``passes[0]`` asks about ``program``, by label; ``passes[1:]`` follow it and may share the sweep.

        Raises:
            CalibrationError: a statistic is needed and there are no data, or they do not fit the program.
        """
        requests = tuple(passes[0].statistics(program))
        if not requests:
            return {}
        _check_one_observer_a_label(passes[0], requests)
        identity = self._computations.identify(program)
        self._sweep(program, passes, requests, identity)
        return {request.label: self._known[identity[request.node], request.observer] for request in requests}

    def _sweep(self, program: Program, passes: Sequence[Pass], requests: Sequence[StatisticRequest], identity: Mapping[str, int]) -> None:
        unknown = [request for request in requests if (identity.get(request.node), request.observer) not in self._known]
        if not unknown:
            return
        if self._data is None:
            raise CalibrationError(f"pass '{passes[0].name}' needs the ranges of {len(unknown)} values: give calibration data")
        answers = collect(program, [*unknown, *_asked_next(program, passes[1:])], self._data, self._progress)
        self._known |= {(identity[request.node], request.observer): answer for request, answer in answers.items()}


def _asked_next(program: Program, passes: Sequence[Pass]) -> list[StatisticRequest]:
    """What the next passes ask about the program as it is now, up to the first that asks nothing or takes another stage."""
    requests: list[StatisticRequest] = []
    for item in passes:
        asked = item.statistics(program) if item.takes is program.stage else ()
        if not asked:
            break
        requests += asked
    return requests


def _check_one_observer_a_label(item: Pass, requests: Sequence[StatisticRequest]) -> None:
    observer_of: dict[str, ObserverSpec] = {}
    for request in requests:
        if observer_of.setdefault(request.label, request.observer) != request.observer:
            raise PassError(
                f"pass '{item.name}' asks for two statistics of node '{request.node}' under one label: give each a label of its own"
            )


class _Computations:
    """Numbers computations: two nodes, of whatever programs, have one number exactly if the same ops on the same tensors make them."""

    def __init__(self) -> None:
        self._number_of: dict[str, int] = {}
        self._alive: list[torch.Tensor] = []  # so that no other tensor gets the identity of one that was seen

    def identify(self, program: Program) -> dict[str, int]:
        """Node name -> number of its computation."""
        number: dict[fx.Node, int] = {}
        inputs = 0
        for node in program.graph.nodes:
            if node.op == "placeholder":
                text, inputs = f"input {inputs}", inputs + 1
            elif node.op == "get_attr":
                text = self._tensor_text(program.graph_module.get_buffer(str(node.target)))
            else:
                arguments = map_arg((node.args, node.kwargs), lambda operand: f"%{number[operand]}")
                text = f"{node.target} {arguments!r}"
            number[node] = self._number_of.setdefault(text, len(self._number_of))
        return {node.name: value for node, value in number.items()}

    def _tensor_text(self, tensor: torch.Tensor) -> str:
        self._alive.append(tensor)
        return f"constant {id(tensor)} {tensor._version}"
