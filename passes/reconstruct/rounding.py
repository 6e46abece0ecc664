r"""Learned rounding: down or up for each weight (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization",
arXiv 2004.10568, sections 3.2 and 3.3)::

    w~ = s clamp(floor(w / s) + h(v), low, high)          h(v) = clamp(1.2 sigmoid(v) - 0.1, 0, 1)      (rectified sigmoid)
    penalty = sum (1 - |2 h(v) - 1|^beta)                 beta falls from 20 to 2, after a first part of the steps without penalty

Of a binary weight, whose integers are -1 and +1, the floor is the odd integer below, and h(v) goes up by 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from qcompiler.passes.reconstruct.layers import LayerChange, QuantizedLayer

_STRETCH_LOW, _STRETCH_HIGH = -0.1, 1.1
_BETA_START, _BETA_END = 20.0, 2.0
_WITHOUT_PENALTY = 0.2  # share of the steps


class LearnedRounding:
    """The rounding of one layer's weight, which starts at the float weight itself: h(v) = w / s - floor(w / s)."""

    def __init__(self, layer: QuantizedLayer, learning_rate: float) -> None:
        self.layer, self._learning_rate = layer, learning_rate
        steps = layer.original / layer.scale
        self._below = layer.grid.below(steps)
        share = ((steps - self._below) / layer.grid.step).clamp(0.01, 0.99)
        self._v = torch.logit((share - _STRETCH_LOW) / (_STRETCH_HIGH - _STRETCH_LOW)).requires_grad_()

    def parameters(self) -> list[dict[str, Any]]:
        return [{"params": [self._v], "lr": self._learning_rate}]

    def replaced(self) -> Mapping[fx.Node, Tensor]:
        return {self.layer.weight: self._integers(self._rounding()) * self.layer.scale}

    def penalty(self, progress: float) -> Tensor:
        if progress < _WITHOUT_PENALTY:
            return torch.zeros(())
        left = (1.0 - progress) / (1.0 - _WITHOUT_PENALTY)
        beta = _BETA_END + (_BETA_START - _BETA_END) * left
        return (1.0 - (2.0 * self._rounding() - 1.0).abs().pow(beta)).sum()

    def change(self) -> LayerChange:
        with torch.no_grad():
            integers = self._integers(self._rounding() >= 0.5)
        return LayerChange(self.layer.name, integers.to(self.layer.integers.dtype))

    def _integers(self, up: Tensor) -> Tensor:
        grid = self.layer.grid
        return (self._below + grid.step * up).clamp(grid.low, grid.high)

    def _rounding(self) -> Tensor:
        return (torch.sigmoid(self._v) * (_STRETCH_HIGH - _STRETCH_LOW) + _STRETCH_LOW).clamp(0.0, 1.0)
