"""``optimize``: all passes from INTEGER to INTEGER, over and over until none of them finds anything more to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.passes.optimize.fuse_clamp import FuseClamp
from qcompiler.passes.optimize.fuse_lookup import FuseLookup
from qcompiler.passes.optimize.merge_requantize import MergeRequantize
from qcompiler.pipeline.contract import Lossy, Pass, PassContext, PassResult
from qcompiler.pipeline.fixpoint import run_to_fixpoint


@dataclass(frozen=True)
class Optimize(Pass):
    """The passes of this folder to their common fixpoint. Options: those of ``merge-requantize``, which alone changes numbers."""

    name: ClassVar = "optimize"
    takes: ClassVar = Stage.INTEGER
    gives: ClassVar = Stage.INTEGER
    promise: ClassVar = Lossy()

    requantize: Literal["auto", "high", "narrow"] = "auto"
    narrow_tolerance: float = 0.02

    def run(self, program: Program, context: PassContext) -> PassResult:
        steps = (MergeRequantize(self.requantize, self.narrow_tolerance), FuseClamp(), FuseLookup())
        return run_to_fixpoint(steps, program, context)
