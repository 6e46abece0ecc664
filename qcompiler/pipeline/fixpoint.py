"""Passes over and over until none of them finds anything more to do: what a pass that is made of others runs."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.errors import PassError
from qcompiler.ir.program import Program
from qcompiler.pipeline.contract import Pass, PassContext, PassResult
from qcompiler.pipeline.rewrite import LEFT_ALONE

# Every step removes an op, or brings it nearer to its one form; real models settle within four rounds.
MOST_ROUNDS = 32


def run_to_fixpoint(steps: Sequence[Pass], program: Program, context: PassContext) -> PassResult:
    """The steps in their order, round after round. Notes: what each rewrote, and why the rest was left alone in the end.

    Raises PassError where the steps undo each other.
    """
    before, done = program, []
    for _ in range(MOST_ROUNDS):
        results = []
        for step in steps:
            results.append((step.name, step.run(program, context)))
            program = results[-1][1].program
        notes = [(name, note) for name, result in results for note in result.notes]
        done += [f"{name}: {note}" for name, note in notes if LEFT_ALONE not in note]
        if not any(result.modified for _, result in results):
            declined = [f"{name}: {note}" for name, note in notes if LEFT_ALONE in note]
            return PassResult(program, program is not before, (*done, *declined))
    raise PassError(f"the steps undo each other: no fixpoint after {MOST_ROUNDS} rounds ({'; '.join(done[-3:])}); please report the model")
