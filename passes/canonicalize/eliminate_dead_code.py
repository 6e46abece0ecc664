"""``eliminate-dead-code``: calls and constants that no output needs are erased.

Every op of a program is a pure function, so a value that nobody reads can be left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Exact, Pass, PassContext, PassResult


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Erase what no output needs; inputs stay, used or not."""

    name: ClassVar = "eliminate-dead-code"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Exact()

    def run(self, program: Program, context: PassContext) -> PassResult:
        if all(node.users for node in program.graph.nodes if node.op in ("call_function", "get_attr")):
            return PassResult(program, False)
        work = edit.copy(program)
        edit.erase_dead(work)
        erased = len(program.graph.nodes) - len(work.graph.nodes)
        return PassResult(work, True, (f"{erased} erased",))
