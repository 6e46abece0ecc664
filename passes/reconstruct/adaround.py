"""AdaRound: learn for each weight of a layer whether it is rounded down or up; the formulas stand in ``rounding``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.passes.reconstruct.fitting import Model, Schedule
from qcompiler.passes.reconstruct.gradient import LayerReconstruction
from qcompiler.passes.reconstruct.layers import QuantizedLayer
from qcompiler.passes.reconstruct.rounding import LearnedRounding
from qcompiler.passes.reconstruct.sweep import BlockWork


@dataclass(frozen=True)
class AdaRound(LayerReconstruction):
    """AdaRound: learns for each weight, layer by layer, whether it is rounded down or up (arXiv 2004.10568).

    Options:
        penalty: weight of the regularizer, as a share of the output error before.
        learning_rate: of v.
        steps, batch: of Adam, for each layer.
        samples, seed, checkpoint: as in every reconstruction.

    Asymmetric (the paper's section 3.4): the inputs are those of the quantized layers before, the target is that of the float program, with
    the relu or clamp that is fused into the layer.
    """

    name: ClassVar[str] = "adaround"

    penalty: float = 3.0
    learning_rate: float = 0.1

    def models(self, layers: Sequence[QuantizedLayer], work: BlockWork) -> list[Model]:
        return [LearnedRounding(layer, self.learning_rate) for layer in layers]

    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.batch, penalty=self.penalty)
