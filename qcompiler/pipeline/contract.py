"""What a pass is: a frozen dataclass with a name, typed options, the stages it takes and gives, and a promise."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from qcompiler.pipeline.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from pathlib import Path

    from qcompiler.calibration.data import CalibrationData
    from qcompiler.calibration.statistics import Observation, StatisticRequest
    from qcompiler.ir.program import Program
    from qcompiler.ir.types import Stage


@dataclass(frozen=True)
class Exact:
    """The pass leaves every integer (INTEGER) or every float up to nothing (FLOAT) as it was: compared by equality."""


@dataclass(frozen=True)
class Equivalent:
    """The same function up to the rounding of floats: |after - before| <= tolerance * max|before|."""

    tolerance: float


@dataclass(frozen=True)
class Lossy:
    """The function changes; the pass reports what was lost in its notes."""


Promise = Exact | Equivalent | Lossy


@dataclass(frozen=True)
class PassResult:
    """What a pass gives back. ``modified`` is honest: False means the very same graph."""

    program: Program
    modified: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PassContext:
    """What a pass may look at besides the program.

    statistics: what it asked for, by node name.
    target: what code will be generated for, where that is known.
    data: the calibration data, for a pass with ``needs_data``; each iteration reads them from the start.
    reference: the FLOAT program as it was right before the last pass from FLOAT to QDQ. Compute nodes keep their names on that way, so
        that the node ``conv2d_3`` of the QDQ program has its float original under the same name here. None before such a pass.
    progress: who is told where long work is.
    following: the passes after this one; what they will do may decide what this one does.
    directory: where long work may leave what lets it continue after it was killed; None: nowhere. The pass makes it if it needs it.
    """

    statistics: Mapping[str, Observation] = field(default_factory=dict)
    target: str | None = None
    data: CalibrationData | None = None
    reference: Program | None = None
    progress: Progress = field(default_factory=SilentProgress)
    directory: Path | None = None
    following: Sequence[Pass] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes. Subclasses are frozen dataclasses; their fields are the options of the textual pipeline.

    ``needs_data``: the pass reads ``context.data`` itself; without them the manager refuses the pipeline before anything runs.
    """

    name: ClassVar[str]
    takes: ClassVar[Stage]
    gives: ClassVar[Stage]
    promise: ClassVar[Promise]
    needs_data: ClassVar[bool] = False

    def statistics(self, program: Program) -> Sequence[StatisticRequest]:
        """Which statistics of which nodes the pass needs; the manager gathers all in one sweep over the calibration data."""
        return ()

    @abstractmethod
    def run(self, program: Program, context: PassContext) -> PassResult:
        """Give the rewritten program. The argument must not be changed: copy the graph module first (``ir.edit.copy``)."""

    def options(self) -> dict[str, object]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
