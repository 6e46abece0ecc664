r"""Layers with weights: convolution, transposed convolution, linear.

With x = s_x (q_x - z_x) and weights s_w q_w (per output channel n), in units of s_x s_w[n]::

    sum_k w_nk x_k + b_n  =  sum_k q_w,nk q_x,k  +  B_n          B_n = rint(b_n / (s_x s_w[n])) - z_x sum_k q_w,nk

The sum is exact in int32 with B_n as bias. Padding with z_x makes the identity hold at the borders too.

A transposed convolution is a convolution of the input with stride - 1 zeros between its elements (``qc.dilate`` with value z_x), with
the kernel flipped, inputs and outputs exchanged, and padding ``dilation * (kernel - 1) - padding`` (Dumoulin and Visin, "A guide to
convolution arithmetic for deep learning", 2016, section 4.6).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from qcompiler.errors import UnsupportedOpError, VerificationError
from qcompiler.ir import edit
from qcompiler.ir.edit import argument
from qcompiler.ir.provenance import describe
from qcompiler.ir.quantized_constants import integer_constant
from qcompiler.ir.types import INT32, QuantizedType
from qcompiler.passes.lower.lowering import IntegerValue, Lowering, LoweringFunction, Value, unsupported

_aten, _qc = torch.ops.aten, torch.ops.qc

# Relative difference of two scales that were rounded to float32 differently.
_SAME_SCALE = 1e-6


def convolution(lowering: Lowering, node: fx.Node) -> Value:
    """Any stride, dilation and groups; a border of zeros added before becomes its padding."""
    x = lowering.activation(argument(node, "input"))
    weight, integers = _weight(lowering, node)
    top, left = argument(node, "padding")
    source, padding = _absorb_padding(x, (top, top, left, left))
    scale = _accumulator_scale(x, weight, integers.shape[0])
    bias = _folded_bias(lowering, node, x, integers, scale)
    stride, dilation, groups = argument(node, "stride"), argument(node, "dilation"), argument(node, "groups")
    accumulator = lowering.call(
        _qc.convolution.default,
        source,
        weight.node,
        bias,
        list(stride),
        list(padding),
        list(dilation),
        groups,
        x.zero_point,
        name=f"{node.name}_accumulator",
    )
    return lowering.accumulator(accumulator, scale[:, None, None], axis=1)


def transposed_convolution(lowering: Lowering, node: fx.Node) -> Value:
    """As the convolution of the module's docstring."""
    x = lowering.activation(argument(node, "input"))
    weight, integers = _weight(lowering, node)
    groups, dilation = argument(node, "groups"), argument(node, "dilation")
    padding = _transposed_padding(node, integers.shape[2:])
    flipped = _transposed_weight(integers, groups)
    scale = _accumulator_scale(x, weight, flipped.shape[0])
    bias = _folded_bias(lowering, node, x, flipped, scale)
    dilated = lowering.call(_qc.dilate.default, x.node, list(argument(node, "stride")), x.zero_point, name=f"{node.name}_dilated")
    dilated.meta["quantized"] = x.quantized
    weight_node = lowering.constant(f"{node.name}_weight_flipped", flipped)
    weight_scale = tuple(weight.scale.float().reshape(-1).repeat(groups if weight.scale.numel() > 1 else 1).tolist())
    weight_node.meta["quantized"] = QuantizedType(weight.integer, weight_scale, axis=0 if len(weight_scale) > 1 else None)
    accumulator = lowering.call(
        _qc.convolution.default,
        dilated,
        weight_node,
        bias,
        [1, 1],
        padding,
        list(dilation),
        groups,
        x.zero_point,
        name=f"{node.name}_accumulator",
    )
    return lowering.accumulator(accumulator, scale[:, None, None], axis=1)


def linear(lowering: Lowering, node: fx.Node) -> Value:
    """Over the last dimension of any number of them; of 16-bit integers too, which stand for few levels (``qc.decode``)."""
    x = lowering.activation(argument(node, "input"), bits=16)
    weight, integers = _weight(lowering, node)
    scale = _accumulator_scale(x, weight, integers.shape[0])
    bias = _folded_bias(lowering, node, x, integers, scale)
    accumulator = lowering.call(_qc.linear.default, x.node, weight.node, bias, name=f"{node.name}_accumulator")
    return lowering.accumulator(accumulator, scale, axis=accumulator.meta["val"].ndim - 1)


LOWERINGS: dict[object, LoweringFunction] = {
    _aten.conv2d.default: convolution,
    _aten.conv_transpose2d.input: transposed_convolution,
    _aten.linear.default: linear,
}


def _weight(lowering: Lowering, node: fx.Node) -> tuple[IntegerValue, torch.Tensor]:
    operand = argument(node, "weight")
    if edit.is_constant(operand) and operand not in lowering.values:
        raise unsupported(
            node, "its weight is in floats, as one with a scale for each block is captured", "quantize weights per channel or per tensor"
        )
    weight = lowering.integers(operand)
    integers = integer_constant(weight.node)
    if integers is None or weight.zero_point != 0 or integers.dtype is not torch.int8:
        raise unsupported(node, "its weight is not a constant of int8 with zero point 0", "quantize weights symmetrically to int8")
    return weight, integers


def _accumulator_scale(x: IntegerValue, weight: IntegerValue, channels: int) -> torch.Tensor:
    """s_x s_w for each output channel; the scales of a grouped transposed convolution repeat for each group."""
    scale = (weight.scale.reshape(-1) * x.scale.reshape(())).to(torch.float64)
    return scale.repeat(channels // scale.numel())


def _folded_bias(lowering: Lowering, node: fx.Node, x: IntegerValue, weight: torch.Tensor, scale: torch.Tensor) -> fx.Node:
    """The constant B of the module's formula, int32 [N]; ``weight`` is [N, …]."""
    folded = _bias_in_steps(lowering, node, scale) - x.zero_point * weight.to(torch.float64).flatten(1).sum(1)
    if not bool((folded.abs() <= INT32.high).all()):
        raise VerificationError(
            f"{describe(node)}: its bias does not fit int32 at the scale of the accumulator (up to {float(folded.abs().max()):.3g}): "
            "raise the weight's scale"
        )
    return lowering.constant(f"{node.name}_bias_int32", folded.to(torch.int32))


def _bias_in_steps(lowering: Lowering, node: fx.Node, scale: torch.Tensor) -> torch.Tensor:
    """b / (s_x s_w) as whole numbers; an integer bias of that very scale, up to float32, as it is."""
    operand = argument(node, "bias")
    if operand is None:
        return torch.zeros_like(scale)
    reals, value = edit.constant_value(operand), lowering.values.get(operand)
    if reals is not None:
        return torch.round(reals.to(torch.float64) / scale)
    integers = edit.constant_value(value.node) if isinstance(value, IntegerValue) else None
    if integers is None or not isinstance(value, IntegerValue):
        raise UnsupportedOpError(f"{describe(node)}: its bias is computed, but must be a constant: add it with a separate add")
    factor = value.scale / scale
    factor = torch.where((factor - 1).abs() <= _SAME_SCALE, 1.0, factor)
    return torch.round((integers.to(torch.float64) - value.zero_point) * factor)


def _absorb_padding(x: IntegerValue, padding: Sequence[int]) -> tuple[fx.Node, list[int]]:
    """A border of zeros that was added before becomes part of the convolution's own padding [top, bottom, left, right]."""
    node = x.node
    if not edit.is_call(node, _aten.constant_pad_nd.default) or argument(node, "value") != x.zero_point:
        return node, list(padding)
    border = list(argument(node, "pad"))
    left, right, top, bottom = (border + [0, 0, 0, 0])[:4]
    if any(border[4:]) or min(border) < 0:
        return node, list(padding)
    source = node.args[0]
    assert isinstance(source, fx.Node)  # the op's tensor
    return source, [own + added for own, added in zip(padding, (top, bottom, left, right), strict=True)]


def _transposed_padding(node: fx.Node, kernel: Sequence[int]) -> list[int]:
    """[top, bottom, left, right] of the convolution that stands for a transposed one."""
    padding: list[int] = []
    for side in (0, 1):
        reach = argument(node, "dilation")[side] * (kernel[side] - 1)
        before = reach - argument(node, "padding")[side]
        padding += [before, before + argument(node, "output_padding")[side]]
    if min(padding) < 0:
        raise unsupported(node, "its padding is larger than dilation * (kernel - 1)", "use a smaller padding and slice the result")
    return padding


def _transposed_weight(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """[groups * C, N, kh, kw] -> [groups * N, C, kh, kw], flipped in space."""
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    swapped = weight.reshape(groups, inputs, outputs, *weight.shape[2:]).transpose(1, 2)
    return swapped.reshape(groups * outputs, inputs, *weight.shape[2:]).flip(-2, -1).contiguous()
