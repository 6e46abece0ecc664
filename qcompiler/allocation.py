"""Bits for a captured model, as numbers to look at: one allocation, or the front of several limits.

``qc.quantize(program, data, recipe="mixed", options={"allocate.size": 1e6})`` gives the quantized program at once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler.calibration.data import CalibrationData, DataSource
from qcompiler.errors import QCompilerError
from qcompiler.ir.program import Program
from qcompiler.pipeline.contract import Pass, PassContext
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.progress import Progress, SilentProgress, TerminalProgress
from qcompiler.pipeline.recipes import load_recipe, override
from qcompiler.pipeline.registry import find_analysis
from qcompiler.pipeline.text import parse_pipeline
from qcompiler.sensitivity import Item

__all__ = ["Allocation", "allocate", "pareto_front"]


@dataclass(frozen=True)
class Allocation:
    """Bits of each item that has a choice, the sum of their sensitivities, and what they cost of each budget."""

    bits: Mapping[Item, int]
    objective: float
    costs: Mapping[str, float]
    method: str


def allocate(
    program: Program,
    data: DataSource | None = None,
    *,
    recipe: str | Path = "mixed",
    options: Mapping[str, object] | None = None,
    passes: str | Sequence[Pass] | None = None,
    progress: Progress | None = None,
) -> Allocation:
    """What the pass ``allocate`` of a recipe would choose; the passes before it run first.

    Args:
        program: what ``capture`` gives; left as it is.
        data: as ``quantize`` takes them; a table, or a metric that looks at weights alone, needs none.
        recipe, options, passes: as ``quantize`` takes them; the budgets are options: ``{"allocate.size": 1e6}``.
        progress: who is told; by default a bar where standard error is a terminal, else nobody.

    Raises:
        AllocationError: no allocation keeps all constraints; the message names those that conflict and the nearest that can be kept.
        UnknownNameError: no such recipe, option, metric or pinned layer.
        TargetError: a latency table of another machine.
    """
    found: Allocation = _Prepared(program, data, recipe, options, passes, progress).call("allocation")
    return found


def pareto_front(
    program: Program,
    data: DataSource | None,
    budget: str,
    limits: Sequence[float] | None = None,
    *,
    points: int = 16,
    recipe: str | Path = "mixed",
    options: Mapping[str, object] | None = None,
    passes: str | Sequence[Pass] | None = None,
    progress: Progress | None = None,
) -> tuple[Allocation, ...]:
    """The best allocation for each of several limits of one budget; sensitivities are measured once.

    Args:
        budget: ``average_weight_bits``, ``size``, ``bops`` or ``latency``. Other budgets among the options hold for every point.
        limits: of that budget; None: ``points`` of them, evenly from the least that is possible to that of the least sensitive allocation.
        program, data, recipe, options, passes, progress: as ``allocate`` takes them.

    Raises:
        Whatever ``allocate`` raises.
    """
    prepared = _Prepared(program, data, recipe, options, passes, progress)
    front: tuple[Allocation, ...] = prepared.call("pareto-front", budget, limits, points)
    return front


class _Prepared:
    """A program as the pass ``allocate`` of a pipeline will meet it."""

    def __init__(
        self,
        program: Program,
        data: DataSource | None,
        recipe: str | Path,
        options: Mapping[str, object] | None,
        passes: str | Sequence[Pass] | None,
        progress: Progress | None,
    ) -> None:
        progress = progress or (TerminalProgress() if sys.stderr.isatty() else SilentProgress())
        written = parse_pipeline(passes) if isinstance(passes, str) else passes
        chosen = load_recipe(recipe).passes(options) if written is None else override(written, options or {})
        names = [item.name for item in chosen]
        if "allocate" not in names:
            raise QCompilerError("the pipeline has no pass 'allocate': use recipe 'mixed', or add the pass before 'quantize'")
        position = names.index("allocate")
        read = None if data is None else CalibrationData(data, program.inputs)
        self._program = PassManager(chosen[:position], progress=progress).run(program, read)
        self._pass = chosen[position]
        self._context = PassContext(data=read, progress=progress, following=tuple(chosen[position + 1 :]))

    def call(self, analysis: str, *arguments: object) -> Any:
        """The analysis of that name, with the pass and what it may look at."""
        return find_analysis(analysis)(self._program, self._pass, *arguments, self._context)
