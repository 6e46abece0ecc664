"""Integer types from statistics (activations) and from the numbers themselves (weights and other constants)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qcompiler import arithmetic
from qcompiler.calibration.observers import make_observer
from qcompiler.calibration.statistics import Observation, ObserverSpec
from qcompiler.ir.types import INT2, INT8, INT32, IntegerType, QuantizedType

# A bias takes at most half of int32, so that the sum of products has the other half.
_LARGEST_BIAS = 2.0**30
# Scales of a grouped weight that are tried, as parts of the one that covers the channel's largest weight.
_SCALE_SHRINKAGES = (1.0, 0.85, 0.7)


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
    integer = IntegerType(observer.bits, signed=True)
    scale = torch.maximum(_observed_scale(weight, observer), _least_scale(weight, bias, input_type, observer.axis))
    quantized = QuantizedType(integer, tuple(scale.tolist()), (0,), observer.axis)
    return QuantizedConstant(arithmetic.quantize(weight.detach(), quantized).clamp_(min=-integer.high), quantized)


def quantize_binary_weight(
    weight: torch.Tensor, bias: torch.Tensor | None, input_type: QuantizedType | None, axis: int | None
) -> QuantizedConstant:
    """``w = s * sign(w)`` with ``s = mean |w|`` for each index of ``axis`` or for all: the least squared error (``arithmetic.binary``).

    The integers have a type of 2 bits and are -1 and +1. The scale is raised as in ``quantize_weight``.
    """
    scale = torch.maximum(arithmetic.binary_scale(weight, axis), _least_scale(weight, bias, input_type, axis))
    quantized = QuantizedType(INT2, tuple(scale.tolist()), (0,), axis)
    return QuantizedConstant(arithmetic.binarize(weight.detach()), quantized)


@dataclass(frozen=True, eq=False)
class GroupedWeight:
    """Codes of few bits and a factor for each output channel and group of ``length`` inputs; ``quantized`` is the type of their product."""

    codes: torch.Tensor
    factors: torch.Tensor
    length: int
    bits: int
    quantized: QuantizedType


def quantize_grouped_weight(
    weight: torch.Tensor, bias: torch.Tensor | None, input_type: QuantizedType | None, observer: ObserverSpec, length: int
) -> GroupedWeight:
    """``weight[n, k] ~ scale[n] * factor[n, k // length] * code[n, k]``, codes in [-q, q], q = 2^(bits-1) - 1, bits 2..4.

    The largest factor makes int8 of the largest code, so a channel's scale is at most that of 8 bits; of a few smaller ones, which clip the
    channel's largest groups and give the others finer factors, each channel takes the one with the least squared error. The factors
    are those of ``arithmetic.choose_groups``.
    """
    bits = observer.bits
    widest = arithmetic.largest_factor(bits) * IntegerType(bits, signed=True).high
    largest = weight.detach().reshape(weight.shape[0], -1).abs().amax(1)
    covering = torch.tensor(arithmetic.scale_and_zero_point(-largest, largest, INT8, symmetric=True)[0]) * (INT8.high / widest)
    least_scale = _least_scale(weight, bias, input_type, observer.axis)
    tried = [torch.maximum(covering * shrinkage, least_scale) for shrinkage in _SCALE_SHRINKAGES]
    found = [(scale, *arithmetic.choose_groups(weight, scale, bits, length)) for scale in tried]
    scale, codes, factors, error = (torch.stack(each) for each in zip(*found, strict=True))
    best = error.argmin(0), torch.arange(weight.shape[0])
    return GroupedWeight(codes[best], factors[best], length, bits, QuantizedType(INT8, tuple(scale[best].tolist()), (0,), 0))


def _observed_scale(weight: torch.Tensor, observer: ObserverSpec) -> torch.Tensor:
    watcher = make_observer(observer)
    watcher.update(weight)
    observation = watcher.result()
    integer = IntegerType(observer.bits, signed=True)
    chosen, _ = arithmetic.scale_and_zero_point(observation.low, observation.high, integer, symmetric=True)
    return torch.tensor(chosen)


def _least_scale(weight: torch.Tensor, bias: torch.Tensor | None, input_type: QuantizedType | None, axis: int | None) -> torch.Tensor:
    """The smallest scale for which the bias keeps to half of int32, for each index of the axis or for all."""
    channels = weight.shape[axis] if axis is not None else 1
    if bias is None or input_type is None:
        return torch.zeros(channels)
    # The bias of a grouped transposed convolution runs over groups too: [groups * channels] against [channels].
    magnitude = bias.detach().abs().reshape(-1, channels if axis is not None else bias.numel())
    largest = magnitude.amax(0) if axis is not None else magnitude.max().reshape(1)
    return largest / (input_type.scale[0] * _LARGEST_BIAS)


def accumulator_type(input_type: QuantizedType, weight_type: QuantizedType, channels: int, axis: int) -> QuantizedType:
    """int32 with the scale ``input scale * weight scale`` of each of ``channels`` output channels, which run along ``axis``."""
    products = torch.tensor(weight_type.scale) * input_type.scale[0]
    scale = products.repeat(channels // products.numel())
    return QuantizedType(INT32, tuple(scale.tolist()), axis=axis) if weight_type.per_channel else QuantizedType(INT32, (float(products),))
