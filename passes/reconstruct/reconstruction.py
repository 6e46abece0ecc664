"""What all methods share: a pass that goes through the program block by block, remembers finished blocks, and writes the changes."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from qcompiler.errors import CalibrationError, PassError
from qcompiler.ir.fingerprint import Fingerprint
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.passes.reconstruct.blocks import Block, find_blocks
from qcompiler.passes.reconstruct.checkpoint import Checkpoint
from qcompiler.passes.reconstruct.fitting import Fitting, Outcome
from qcompiler.passes.reconstruct.layers import apply, find_layers
from qcompiler.passes.reconstruct.sweep import BlockWork, Programs, Stores, start
from qcompiler.pipeline.contract import Lossy, Pass, PassContext, PassResult, Promise


@dataclass(frozen=True)
class Reconstruction(Pass):
    """Base of the methods.

    Options:
        samples: how many calibration samples are used, at most; 0: all.
        seed: of every random choice.
        checkpoint: folder in which finished blocks are kept, so that a run that was killed continues there; empty: the manager's folder,
            if it has one. The same program, data and options give the same bytes, resumed or not.
    """

    takes: ClassVar[Stage] = Stage.QDQ
    gives: ClassVar[Stage] = Stage.QDQ
    promise: ClassVar[Promise] = Lossy()
    needs_data: ClassVar[bool] = True

    samples: int = 1024
    seed: int = 0
    checkpoint: str = ""

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise CalibrationError(f"{self.name}: samples must be 0 (all) or more, got {self.samples}")

    @abstractmethod
    def reconstruct(self, work: BlockWork) -> Fitting:
        """Change the layers of one block; yields after each of its ``ticks``."""

    @abstractmethod
    def ticks(self, block: Block) -> int:
        """How many times ``reconstruct`` yields for a block: what the progress bar counts."""

    def least_layers(self) -> int:
        """Spans of the graph are joined until a block has so many layers."""
        return 1

    def run(self, program: Program, context: PassContext) -> PassResult:
        reference = context.reference
        if reference is None:
            raise PassError(
                "compares with the float program, which is not known: quantize in the same pipeline, "
                "or give PassManager.run the float program as 'reference'"
            )
        layers, declined = find_layers(program, reference)
        if not layers:
            return PassResult(program, False, ("no layer has a quantized weight that can be changed", *declined))
        blocks = find_blocks(program, reference, layers, self.least_layers())
        outcomes = self._all_blocks(program, reference, blocks, context)
        changes = [change for outcome in outcomes for change in outcome.changes]
        noted = [note for outcome in outcomes for note in outcome.notes]
        changed = len({change.name for change in changes})
        notes = (f"{changed} of {len(layers)} layers changed, in {len(blocks)} blocks", *noted, *declined)
        if not changes:
            return PassResult(program, False, notes)
        return PassResult(apply(program, layers, changes, self.name), True, notes)

    def _all_blocks(self, program: Program, reference: Program, blocks: Sequence[Block], context: PassContext) -> list[Outcome]:
        if context.data is None:
            raise CalibrationError("runs the model on calibration data, and there are none: give calibration data")
        outcomes: list[Outcome] = []
        with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
            programs = Programs(program, reference, Path(folder))
            inputs, data = programs.read(context.data, self.samples)
            kept = self._checkpoint(program, reference, data, context)
            work = self._work(programs, blocks, start(programs, inputs, blocks[0]), kept, outcomes)
            for _ in context.progress.track(work, self.name, sum(self.ticks(block) for block in blocks)):
                pass
        return outcomes

    def _work(
        self, programs: Programs, blocks: Sequence[Block], values: Stores, kept: Checkpoint | None, outcomes: list[Outcome]
    ) -> Generator[None, None, None]:
        float_values = dict(values)
        for number, block in enumerate(blocks):
            work = BlockWork(programs, block, values, float_values)
            outcome = kept.load(number) if kept else None
            if outcome is None:
                outcome = yield from self.reconstruct(work)
                if kept:
                    kept.save(number, outcome)
            outcomes.append(outcome)
            if number < len(blocks) - 1:
                work.take(outcome.changes)
                values, float_values = work.leave()

    def _checkpoint(self, program: Program, reference: Program, data: Fingerprint, context: PassContext) -> Checkpoint | None:
        folder = Path(self.checkpoint) if self.checkpoint else context.directory
        if folder is None:
            return None
        identity = Fingerprint()
        options = {key: value for key, value in self.options().items() if key != "checkpoint"}
        identity.add_text(f"{self.name} {sorted(options.items())}")
        identity.add_program(program)
        identity.add_program(reference)
        identity.add_text(data.hexdigest())
        return Checkpoint(folder, identity.hexdigest())
