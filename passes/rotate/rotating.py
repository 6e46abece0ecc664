"""What the passes that rotate share: the options of a kind of matrix, and their meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompiler.ir.types import Stage
from qcompiler.passes.rotate.matrices import Kind, Recipe
from qcompiler.pipeline.contract import Equivalent, Pass, Promise


@dataclass(frozen=True)
class RotatingPass(Pass):
    """A pass from FLOAT to FLOAT with a rotation of a kind."""

    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Promise] = Equivalent(1e-4)

    kind: Kind = "hadamard"
    seed: int = 0
    block: int = 64
    steps: int = 100
    w: int = 4
    a: int = 4

    def __post_init__(self) -> None:
        self.recipe()

    def recipe(self) -> Recipe:
        """The options as a recipe. Raises CalibrationError for a size that is none."""
        return Recipe(self.kind, self.seed, self.block, self.steps, self.w, self.a)
