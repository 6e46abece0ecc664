"""Bias tuning (Hubara et al., "Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming",
arXiv 2006.10518): the weights stay, and biases alone learn to make up for the error of the roundings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from qcompiler.passes.reconstruct.fitting import Model, Schedule
from qcompiler.passes.reconstruct.gradient import BlockReconstruction
from qcompiler.passes.reconstruct.layers import LayerChange, QuantizedLayer
from qcompiler.passes.reconstruct.sweep import BlockWork

_ALL = 1 << 30


class LearnedBias:
    """The float bias of one layer, from where it stands."""

    def __init__(self, layer: QuantizedLayer, learning_rate: float) -> None:
        assert layer.bias is not None and layer.present_bias is not None  # models() asks for it
        self.layer, self._node, self._learning_rate = layer, layer.bias, learning_rate
        self._bias = layer.present_bias.clone().requires_grad_()

    def parameters(self) -> list[dict[str, Any]]:
        return [{"params": [self._bias], "lr": self._learning_rate}]

    def replaced(self) -> Mapping[fx.Node, Tensor]:
        return {self._node: self._bias}

    def penalty(self, progress: float) -> Tensor:
        return torch.zeros(())

    def change(self) -> LayerChange:
        return LayerChange(self.layer.name, bias=self._bias.detach().clone())


@dataclass(frozen=True)
class TuneBias(BlockReconstruction):
    """Bias tuning: learns the float biases of each block, or of the whole network at once; weights stay (arXiv 2006.10518).

    Options:
        whole: one block is all of the network, as in the paper; memory then holds one batch of all its values.
        learning_rate: as a share of the root mean square of a layer's biases (of its weights, if these are larger).
        steps, batch: of Adam, for each block.
        samples, seed, checkpoint: as in every reconstruction.

    A layer without bias gets none.
    """

    name: ClassVar[str] = "tune-bias"

    whole: bool = False
    learning_rate: float = 0.002
    steps: int = 300

    def least_layers(self) -> int:
        return _ALL if self.whole else 1

    def models(self, layers: Sequence[QuantizedLayer], work: BlockWork) -> list[Model]:
        return [LearnedBias(layer, learning_rate_of(layer, self.learning_rate)) for layer in layers if layer.bias is not None]

    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.batch, decay=True)


def learning_rate_of(layer: QuantizedLayer, share: float) -> float:
    """``share`` of the larger of the root mean squares of biases and weights."""
    sizes = [float(values.square().mean().sqrt()) for values in (layer.present_bias, layer.original) if values is not None]
    return share * max(sizes)
