"""AdaQuant (Hubara et al., "Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming",
arXiv 2006.10518, section 3): a layer's weights, their scales and its bias are learned together, through the rounding by its
straight-through estimator::

    min over w, s, b of |f(X; W, b) - f(X~; W~, b~)|^2          W~ = s clamp(rint(w / s), low, high)

Unlike learned rounding a weight may move by more than one step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from qcompiler.passes.reconstruct.fitting import Model, Schedule
from qcompiler.passes.reconstruct.gradient import LayerReconstruction
from qcompiler.passes.reconstruct.layers import LayerChange, QuantizedLayer, broadcast_scale, uses_its_grid
from qcompiler.passes.reconstruct.sweep import BlockWork
from qcompiler.passes.reconstruct.tune_bias import learning_rate_of

# A scale stays within this factor of what it was.
_LARGEST_FACTOR = 1.5


class StraightThroughLayer:
    """Weight (in steps of its first scale), logarithm of the change of scale, and bias of one layer."""

    def __init__(self, layer: QuantizedLayer, rates: tuple[float, float, float], learn_scale: bool) -> None:
        self.layer, self._rates = layer, rates
        self._steps = (layer.original / layer.scale).requires_grad_()
        self._log_factor = torch.zeros(len(layer.kind.scale)).requires_grad_(learn_scale)
        # The scale of a channel that uses little of its grid was raised so that its bias fits int32: it stays.
        self._learns = uses_its_grid(layer) if learn_scale else torch.zeros(len(layer.kind.scale), dtype=torch.bool)
        self._bias = None if layer.present_bias is None else layer.present_bias.clone().requires_grad_()

    def parameters(self) -> list[dict[str, Any]]:
        learned = zip((self._steps, self._log_factor, self._bias), self._rates, strict=True)
        return [{"params": [tensor], "lr": rate} for tensor, rate in learned if tensor is not None and tensor.requires_grad]

    def replaced(self) -> Mapping[fx.Node, Tensor]:
        factor = broadcast_scale(self._factor(), self.layer.kind, self._steps.dim())
        grid = self.layer.grid
        smooth = (self._steps / factor).clamp(grid.low, grid.high)
        integers = smooth + (grid.nearest(smooth) - smooth).detach()
        values = {self.layer.weight: integers * (self.layer.scale * factor)}
        if self.layer.bias is not None and self._bias is not None:
            values[self.layer.bias] = self._bias
        return values

    def penalty(self, progress: float) -> Tensor:
        return torch.zeros(())

    def change(self) -> LayerChange:
        with torch.no_grad():
            factor = self._factor()
            steps = self._steps / broadcast_scale(factor, self.layer.kind, self._steps.dim())
            integers = self.layer.grid.nearest(steps).to(self.layer.integers.dtype)
            scale = torch.tensor(self.layer.kind.scale, dtype=torch.float32) * factor if self._learns.any() else None
        bias = None if self._bias is None else self._bias.detach().clone()
        return LayerChange(self.layer.name, integers, scale, bias)

    def _factor(self) -> Tensor:
        limit = math.log(_LARGEST_FACTOR)
        return torch.where(self._learns, self._log_factor, 0.0).clamp(-limit, limit).exp()


@dataclass(frozen=True)
class AdaQuant(LayerReconstruction):
    """AdaQuant: learns weights, their scales and the bias of each layer through the straight-through estimator (arXiv 2006.10518).

    Options:
        scales: learn the scales of the weight too, each within a factor of 1.5; else they stay.
        learning_rate: of a weight, in steps of its scale.
        scale_learning_rate: of the logarithm of a scale.
        bias_learning_rate: as a share of the root mean square of a layer's biases (of its weights, if these are larger).
        steps, batch: of Adam, for each layer.
        samples, seed, checkpoint: as in every reconstruction.
    """

    name: ClassVar[str] = "adaquant"

    scales: bool = True
    learning_rate: float = 0.01
    scale_learning_rate: float = 0.001
    bias_learning_rate: float = 0.002

    def models(self, layers: Sequence[QuantizedLayer], work: BlockWork) -> list[Model]:
        return [StraightThroughLayer(layer, self._rates(layer), self.scales) for layer in layers]

    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.batch, decay=True)

    def _rates(self, layer: QuantizedLayer) -> tuple[float, float, float]:
        return self.learning_rate, self.scale_learning_rate, learning_rate_of(layer, self.bias_learning_rate)
