"""Integer types from statistics (activations) and from the numbers themselves (weights and other constants)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qcompiler import arithmetic
from qcompiler.calibration.observers import make_observer
from qcompiler.calibration.statistics import Observation, ObserverSpec
from qcompiler.ir.types import INT32, IntegerType, QuantizedType

# A bias takes at most half of int32, so that the sum of products has the other half.
_LARGEST_BIAS = 2.0**30


@dataclass(frozen=True, eq=False)
class QuantizedConstant:
    """Integers and what they mean."""

    integers: torch.Tensor
    quantized: QuantizedType


def activation_type(observation: Observation, integer: IntegerType, symmetric: bool) -> QuantizedType:
    """Affine with 0 representable exactly, or symmetric with the zero point in the middle, from an observed range."""
    scale, zero_point = arithmetic.scale_and_zero_point(observation.low, observation.high, integer, symmetric)
    return QuantizedType(integer, scale, zero_point)


def with_headroom(observation: Observation) -> Observation:
    """Twice the range that was seen: of 16 bits one is spent on what calibration did not see, as clipping costs more."""
    return Observation(tuple(2 * low for low in observation.low), tuple(2 * high for high in observation.high), observation.axis)


def quantize_constant(values: torch.Tensor, integer: IntegerType, symmetric: bool) -> QuantizedConstant:
    """A constant that is added or multiplied: its own smallest and largest number decide."""
    low, high = torch.aminmax(values.detach())
    quantized = activation_type(Observation((float(low),), (float(high),)), integer, symmetric)
    return QuantizedConstant(arithmetic.quantize(values, quantized), quantized)


def quantize_weight(
    weight: torch.Tensor, bias: torch.Tensor | None, input_type: QuantizedType | None, observer: ObserverSpec
) -> QuantizedConstant:
    """``w = clamp(rint(weight / s), -q, q)``, q = 2^(bits-1) - 1, with s as ``observer`` says, per index of its axis or per tensor.

    The scale is raised where the bias, in steps of ``s * input scale``, would exceed 2^30: batch norm leaves such channels, with tiny
    weights, where training made them constant. The lowest integer of the type is not used, so that weights can be negated.
    """
    watcher = make_observer(observer)
    watcher.update(weight)
    observation = watcher.result()
    integer = IntegerType(observer.bits, signed=True)
    chosen, _ = arithmetic.scale_and_zero_point(observation.low, observation.high, integer, symmetric=True)
    scale = torch.tensor(chosen)
    if bias is not None and input_type is not None:
        # The bias of a grouped transposed convolution runs over groups too: [groups * channels] against [channels].
        magnitude = bias.detach().abs().reshape(-1, len(chosen) if observer.axis is not None else bias.numel())
        largest = magnitude.amax(0) if observer.axis is not None else magnitude.max().reshape(1)
        scale = torch.maximum(scale, largest / (input_type.scale[0] * _LARGEST_BIAS))
    quantized = QuantizedType(integer, tuple(scale.tolist()), (0,), observer.axis)
    return QuantizedConstant(arithmetic.quantize(weight.detach(), quantized).clamp_(min=-integer.high), quantized)


def accumulator_type(input_type: QuantizedType, weight_type: QuantizedType, channels: int, axis: int) -> QuantizedType:
    """int32 with the scale ``input scale * weight scale`` of each of ``channels`` output channels, which run along ``axis``."""
    products = torch.tensor(weight_type.scale) * input_type.scale[0]
    scale = products.repeat(channels // products.numel())
    return QuantizedType(INT32, tuple(scale.tolist()), axis=axis) if weight_type.per_channel else QuantizedType(INT32, (float(products),))
