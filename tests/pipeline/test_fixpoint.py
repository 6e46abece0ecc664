from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from qcompiler.errors import PassError
from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Exact, Pass, PassContext, PassResult
from qcompiler.pipeline.fixpoint import MOST_ROUNDS, run_to_fixpoint


@dataclass(frozen=True)
class Swap(Pass):
    """Every call of one op becomes the other."""

    name: ClassVar = "swap"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Exact()

    old: torch._ops.OpOverload = torch.ops.aten.relu.default
    new: torch._ops.OpOverload = torch.ops.aten.abs.default

    def run(self, program: Program, context: PassContext) -> PassResult:
        found = list(edit.calls(program.graph, self.old))
        if not found:
            return PassResult(program, modified=False, notes=())
        copied = edit.copy(program)
        for node in edit.calls(copied.graph, self.old):
            node.target = self.new
        copied.graph_module.recompile()
        return PassResult(copied, modified=True, notes=(f"{len(found)} calls",))


def test_ends_when_a_round_finds_nothing(small_program: Program) -> None:
    result = run_to_fixpoint((Swap(),), small_program, PassContext())
    assert result.modified and result.notes == ("swap: 1 calls",)
    assert not run_to_fixpoint((Swap(),), result.program, PassContext()).modified


def test_steps_that_undo_each_other_are_an_error(small_program: Program) -> None:
    back = Swap(torch.ops.aten.abs.default, torch.ops.aten.relu.default)
    with pytest.raises(PassError, match=f"no fixpoint after {MOST_ROUNDS} rounds \\(swap: 1 calls"):
        run_to_fixpoint((Swap(), back), small_program, PassContext())
