"""A layer with constant weights, seen as a matrix from input to output channels. All arithmetic in float64, rounded once at the end.

    linear                                      [outputs, inputs]
    conv1d, conv2d                              [outputs, inputs / groups, *kernel]
    conv_transpose1d, conv_transpose2d          [inputs, outputs / groups, *kernel]

become one form, [groups, outputs / groups, inputs / groups, taps].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.provenance import derive

_aten = torch.ops.aten

_CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default)
_TRANSPOSED = (_aten.conv_transpose1d.default, _aten.conv_transpose2d.input)

# Layer -> channel axis of its input and output, counted from the last dimension.
CHANNEL_AXIS: dict[Callable[..., Any], int] = {
    _aten.linear.default: -1,
    _aten.conv1d.default: -2,
    _aten.conv_transpose1d.default: -2,
    _aten.conv2d.default: -3,
    _aten.conv_transpose2d.input: -3,
}


@dataclass(frozen=True)
class Layer:
    """``weight``: float64 [groups, outputs / groups, inputs / groups, taps]; ``bias``: float64 [outputs], zeros where there is none."""

    node: fx.Node
    weight: torch.Tensor
    bias: torch.Tensor

    @property
    def inputs(self) -> int:
        return self.weight.shape[0] * self.weight.shape[2]

    @property
    def outputs(self) -> int:
        return self.weight.shape[0] * self.weight.shape[1]

    @property
    def axis(self) -> int:
        return channel_axis(self.node)

    @property
    def takes_shifts(self) -> bool:
        """Whether a shift of an input channel is the same constant at every output.

        It is not where borders see zeros instead of inputs, nor where a transposed convolution gives fewer taps to some outputs.
        """
        if self.node.target in _CONVOLUTIONS:
            padding = edit.argument(self.node, "padding")
            return not any(padding if isinstance(padding, list | tuple) else (padding,))
        return self.node.target is _aten.linear.default

    def input_magnitudes(self) -> torch.Tensor:
        """max |w| over what multiplies each input channel, [inputs]."""
        return self.weight.abs().amax((1, 3)).flatten()

    def output_magnitudes(self) -> torch.Tensor:
        """max |w| over what makes each output channel, [outputs]."""
        return self.weight.abs().amax((2, 3)).flatten()

    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the layer, without its bias, gives for a constant in each input channel, [outputs]."""
        return (self.weight * self._by_input(inputs)).sum((2, 3)).flatten()

    def scale_inputs(self, factor: torch.Tensor) -> Layer:
        return replace(self, weight=self.weight * self._by_input(factor))

    def scale_outputs(self, factor: torch.Tensor) -> Layer:
        groups, outputs = self.weight.shape[:2]
        return replace(self, weight=self.weight * factor.reshape(groups, outputs, 1, 1), bias=self.bias * factor)

    def mix_outputs(self, matrix: torch.Tensor) -> Layer:
        """matrix @ y for the output y, float64 [outputs, outputs]; of a layer without groups."""
        return replace(self, weight=torch.einsum("po,goit->gpit", matrix, self.weight), bias=matrix @ self.bias)

    def mix_inputs(self, matrix: torch.Tensor) -> Layer:
        """The layer of matrix @ x for the input x, float64 [inputs, inputs]; of a layer without groups."""
        return replace(self, weight=torch.einsum("goit,ij->gojt", self.weight, matrix))

    def add_bias(self, change: torch.Tensor) -> Layer:
        return replace(self, bias=self.bias + change)

    def _by_input(self, values: torch.Tensor) -> torch.Tensor:
        groups, _, inputs, _ = self.weight.shape
        return values.double().reshape(groups, 1, inputs, 1)


def is_layer(node: object) -> bool:
    """Whether ``node`` calls a layer with weights, constant or not."""
    return edit.is_call(node, *CHANNEL_AXIS)


def channel_axis(layer: fx.Node) -> int:
    """The channel axis of a layer's input and output, counted from the last dimension."""
    return CHANNEL_AXIS[layer.target]  # type: ignore[index]  # fx types targets as str | Callable


def as_layer(node: object) -> Layer | None:
    """The layer that a call computes; None if it is none, or if its weights are not constants."""
    if not is_layer(node) or not isinstance(node, fx.Node):
        return None
    weight, bias_node = edit.constant_value(edit.argument(node, "weight")), edit.argument(node, "bias")
    bias = edit.constant_value(bias_node)
    if weight is None or (bias is None) != (bias_node is None):
        return None
    matrix = matrix_form(node, weight.double())
    outputs = matrix.shape[0] * matrix.shape[1]
    return Layer(node, matrix, torch.zeros(outputs, dtype=torch.float64) if bias is None else bias.double())


def write_layer(graph_module: fx.GraphModule, layer: Layer, made_by: str) -> None:
    """Give the call of ``layer`` its weight and bias; a bias of zeros that was not there stays away."""
    node = layer.node
    old = edit.argument(node, "weight")
    dtype = old.meta["val"].dtype
    weight = layer.weight.transpose(1, 2) if node.target in _TRANSPOSED else layer.weight
    edit.set_constant(graph_module, node, "weight", weight.reshape(old.meta["val"].shape).to(dtype), str(old.target), made_by)
    if edit.argument(node, "bias") is not None or bool(layer.bias.any()):
        hint = str(old.target).removesuffix("_weight") + "_bias"
        edit.set_constant(graph_module, node, "bias", layer.bias.to(dtype), hint, made_by)
    node.meta["provenance"] = derive([node], made_by)


def matrix_form(node: fx.Node, weight: torch.Tensor) -> torch.Tensor:
    """A weight of the layer that ``node`` calls as [groups, outputs / groups, inputs / groups, taps]."""
    if node.target is _aten.linear.default:
        return weight.reshape(1, *weight.shape, 1)
    groups = int(edit.argument(node, "groups"))
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return grouped.transpose(1, 2) if node.target in _TRANSPOSED else grouped
