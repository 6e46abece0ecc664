"""What the methods by gradient descent share: their options, and the way through a block layer by layer or at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.errors import CalibrationError
from qcompiler.passes.reconstruct.blocks import Block
from qcompiler.passes.reconstruct.fitting import Fitting, Model, Outcome, Schedule, fit
from qcompiler.passes.reconstruct.layers import LayerChange, QuantizedLayer
from qcompiler.passes.reconstruct.reconstruction import Reconstruction
from qcompiler.passes.reconstruct.sweep import BlockWork, delete


@dataclass(frozen=True)
class GradientReconstruction(Reconstruction):
    """Base.

    Options:
        steps: of Adam, for each layer or block.
        batch: samples a step.
    """

    steps: int = 500
    batch: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.batch < 1:
            raise CalibrationError(f"{self.name}: steps and batch must be at least 1, got {self.steps} and {self.batch}")

    def models(self, layers: Sequence[QuantizedLayer], work: BlockWork) -> list[Model]:
        """What is learned about each layer; a layer about which there is nothing to learn has none."""
        raise NotImplementedError

    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.batch)


@dataclass(frozen=True)
class LayerReconstruction(GradientReconstruction):
    """Base of the methods that go layer by layer: each has the inputs that the changed layers before it give."""

    def ticks(self, block: Block) -> int:
        return self.steps * len(block.layers)

    def reconstruct(self, work: BlockWork) -> Fitting:
        changes: list[LayerChange] = []
        notes: list[str] = []
        for layer in work.block.layers:
            unit = work.layer(layer)
            outcome = yield from fit(unit, self.models([layer], work), self.schedule(), self.seed)
            delete(unit)
            work.take(outcome.changes)
            changes += outcome.changes
            notes += outcome.notes
        return Outcome(tuple(changes), tuple(notes))


@dataclass(frozen=True)
class BlockReconstruction(GradientReconstruction):
    """Base of the methods that fit all layers of a block at once."""

    def ticks(self, block: Block) -> int:
        return self.steps

    def reconstruct(self, work: BlockWork) -> Fitting:
        models = self.models(work.block.layers, work)
        if not models:
            return Outcome((), (f"block to {work.block.name}: nothing to learn",))
        return (yield from fit(work.whole(), models, self.schedule(), self.seed))
