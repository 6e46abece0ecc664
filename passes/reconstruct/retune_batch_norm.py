"""``retune-batch-norm``: each channel of each layer gets the mean and the variance back that it has in the float program.

With q what the quantized layer gives for a channel, b its bias, and f what the float layer gives, over the calibration data::

    g  = deviation(f) / deviation(q)            the scale of the weight's channel becomes g * scale
    b' = mean(f) - g * (mean(q) - b)            so that g * (q - b) + b' has the mean and the variance of f

Where a batch norm stood behind the layer this is what measuring its statistics anew and folding it would give; there need not have been
one. Layers are retuned one after the other, each behind those before it as they are then. Source: the batch-norm tuning of Hubara et al.,
arXiv 2006.10518.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qcompiler.ir.layers import channel_axis
from qcompiler.passes.reconstruct.blocks import Block
from qcompiler.passes.reconstruct.fitting import Fitting, Outcome
from qcompiler.passes.reconstruct.layers import LayerChange, QuantizedLayer, uses_its_grid
from qcompiler.passes.reconstruct.reconstruction import Reconstruction
from qcompiler.passes.reconstruct.sweep import BlockWork

# A scale stays within this factor of what it was.
_LARGEST_FACTOR = 1.5
# Deviations below this share of the layer's largest are those of channels that training left without a use.
_LEAST_DEVIATION = 1e-4


@dataclass(frozen=True)
class RetuneBatchNorm(Reconstruction):
    """Gives each channel its float mean and variance back, by bias and scale of the weight (batch-norm tuning, arXiv 2006.10518).

    Options:
        scales: match variances too; else means alone.
        samples, seed, checkpoint: as in every reconstruction; nothing is random.

    A layer without bias is left alone. A weight with one scale for all channels keeps it.
    """

    name: ClassVar[str] = "retune-batch-norm"

    scales: bool = True

    def ticks(self, block: Block) -> int:
        return len(block.layers)

    def reconstruct(self, work: BlockWork) -> Fitting:
        changes: list[LayerChange] = []
        notes: list[str] = []
        for layer in work.block.layers:
            if layer.bias is None or layer.present_bias is None:
                notes.append(f"{layer.name}: left alone: it has no bias of its own")
            else:
                moments = _Moments.of(layer, work)
                change = self._retuned(layer, moments)
                notes.append(moments.note(layer, change))
                changes.append(change)
                work.take([change])
            yield
        return Outcome(tuple(changes), tuple(notes))

    def _retuned(self, layer: QuantizedLayer, moments: _Moments) -> LayerChange:
        assert layer.present_bias is not None  # asked for
        factor = self._factor(layer, moments)
        bias = moments.target_mean - factor * (moments.mean - layer.present_bias.double())
        if bool((factor == 1.0).all()):
            return LayerChange(layer.name, bias=bias.float())
        scale = (torch.tensor(layer.kind.scale, dtype=torch.float64) * factor).float()
        return LayerChange(layer.name, layer.integers, scale, bias.float())

    def _factor(self, layer: QuantizedLayer, moments: _Moments) -> Tensor:
        """g of each channel, float64 [channels]; 1 where there is nothing to match."""
        ones = torch.ones_like(moments.mean)
        if not self.scales or len(layer.kind.scale) != moments.mean.numel():
            return ones
        least = _LEAST_DEVIATION * float(moments.target_deviation.max())
        alive = (moments.deviation > least) & (moments.target_deviation > least) & uses_its_grid(layer)
        factor = (moments.target_deviation / moments.deviation.clamp(min=1e-300)).clamp(1.0 / _LARGEST_FACTOR, _LARGEST_FACTOR)
        return torch.where(alive, factor, ones)


@dataclass(frozen=True, eq=False)
class _Moments:
    """Of each channel over samples and positions, float64 [channels]: of the quantized layer, of the float one, and of both together."""

    mean: Tensor
    deviation: Tensor
    target_mean: Tensor
    target_deviation: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, layer: QuantizedLayer, work: BlockWork) -> _Moments:
        axis = channel_axis(layer.node)
        count, totals = 0, torch.zeros(())
        for found, wanted in work.layer_outputs(layer):
            one, other = (values.movedim(axis, -1).flatten(0, -2).double() for values in (found, wanted))
            count += one.shape[0]
            totals = totals + torch.stack([values.sum(0) for values in (one, other, one * one, other * other, one * other)])
        mean, target_mean, square, target_square, product = totals / count
        deviations = [(squares - means * means).clamp(min=0.0).sqrt() for squares, means in ((square, mean), (target_square, target_mean))]
        return cls(mean, deviations[0], target_mean, deviations[1], product - mean * target_mean)

    def note(self, layer: QuantizedLayer, change: LayerChange) -> str:
        """How far the outputs are from the float ones, as a share of their power, before and after."""
        factor = torch.ones_like(self.mean)
        if change.scale is not None:
            factor = change.scale.double() / torch.tensor(layer.kind.scale, dtype=torch.float64)
        power = float((self.target_deviation.square() + self.target_mean.square()).sum())
        before, after = (
            float(error.sum()) / power if power else math.nan for error in (self._error(1.0, False), self._error(factor, True))
        )
        return f"{layer.name}: relative error {before:.3g} before, {after:.3g} after"

    def _error(self, factor: Tensor | float, centred: bool) -> Tensor:
        """E[(g q - f)^2] about the means; ``centred``: these agree."""
        apart = 0.0 if centred else (self.mean - self.target_mean).square()
        spread = (factor * self.deviation).square() - 2.0 * factor * self.covariance + self.target_deviation.square()
        return apart + spread
