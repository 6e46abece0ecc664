"""What the passes that rotate share: from FLOAT to FLOAT, the same function, the options of a kind of matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompiler.ir.types import Stage
from qcompiler.passes.rotate.matrices import MatrixOptions
from qcompiler.pipeline.contract import Equivalent, Pass, Promise


@dataclass(frozen=True)
class RotatingPass(MatrixOptions, Pass):
    """A pass with matrices of a kind."""

    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Promise] = Equivalent(1e-4)
