"""Block reconstruction (Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", arXiv 2102.05426) with
activation roundings left out at random (Wei et al., "QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training
Quantization", arXiv 2203.05740).

The rounding of all weights of a block is learned at once (``rounding``), against the block's float output. QDrop: each element of a rounded
activation keeps its unrounded value with probability ``drop``, and each element of the block's input is the float program's with the same
probability, so that the weights become good for more than the one rounding of the calibration data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.errors import CalibrationError
from qcompiler.passes.reconstruct.fitting import Model, Schedule
from qcompiler.passes.reconstruct.gradient import BlockReconstruction
from qcompiler.passes.reconstruct.layers import QuantizedLayer
from qcompiler.passes.reconstruct.rounding import LearnedRounding
from qcompiler.passes.reconstruct.sweep import BlockWork


@dataclass(frozen=True)
class ReconstructBlocks(BlockReconstruction):
    """BRECQ with QDrop: learns the rounding of all weights between two cuts of the graph at once (arXiv 2102.05426, 2203.05740).

    Options:
        drop: probability that a rounding of an activation is left out; 0 is BRECQ without QDrop.
        least: spans between cuts are joined until a block has so many layers.
        penalty: weight of the regularizer, as a share of the output error before.
        learning_rate: of v.
        steps, batch: of Adam, for each block.
        samples, seed, checkpoint: as in every reconstruction.
    """

    name: ClassVar[str] = "reconstruct-blocks"

    drop: float = 0.5
    least: int = 1
    penalty: float = 3.0
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.drop <= 1.0 or self.least < 1:
            raise CalibrationError(f"{self.name}: drop must be in [0, 1] and least at least 1, got {self.drop} and {self.least}")

    def least_layers(self) -> int:
        return self.least

    def models(self, layers: Sequence[QuantizedLayer], work: BlockWork) -> list[Model]:
        return [LearnedRounding(layer, self.learning_rate) for layer in layers]

    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.batch, penalty=self.penalty, dropping=self.drop, float_share=self.drop)
