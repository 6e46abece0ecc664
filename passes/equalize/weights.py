"""A layer with constant weights, seen as a matrix from input to output channels. All arithmetic in float64, rounded once at the end.

    linear                  [outputs, inputs]
    conv2d                  [outputs, inputs / groups, height, width]
    conv_transpose2d        [inputs, outputs / groups, height, width]

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

# Layer -> channel axis of its input and output, counted from the last dimension.
CHANNEL_AXIS: dict[Callable[..., Any], int] = {_aten.linear.default: -1, _aten.conv2d.default: -3, _aten.conv_transpose2d.input: -3}


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
        return CHANNEL_AXIS[self.node.target]  # type: ignore[index]  # fx types targets as str | Callable

    @property
    def takes_shifts(self) -> bool:
        """Whether a shift of an input channel is the same constant at every output: not where borders see zeros instead of inputs."""
        if self.node.target is _aten.conv2d.default:
            return not any(edit.argument(self.node, "padding"))
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

    def add_bias(self, change: torch.Tensor) -> Layer:
        return replace(self, bias=self.bias + change)

    def _by_input(self, values: torch.Tensor) -> torch.Tensor:
        groups, _, inputs, _ = self.weight.shape
        return values.double().reshape(groups, 1, inputs, 1)


def as_layer(node: object) -> Layer | None:
    """The layer that a call computes; None if it is none, or if its weights are not constants."""
    if not edit.is_call(node, *CHANNEL_AXIS) or not isinstance(node, fx.Node):
        return None
    weight, bias_node = edit.constant_value(edit.argument(node, "weight")), edit.argument(node, "bias")
    bias = edit.constant_value(bias_node)
    if weight is None or (bias is None) != (bias_node is None):
        return None
    matrix = _matrix(node, weight.double())
    outputs = matrix.shape[0] * matrix.shape[1]
    return Layer(node, matrix, torch.zeros(outputs, dtype=torch.float64) if bias is None else bias.double())


def write_layer(graph_module: fx.GraphModule, layer: Layer, made_by: str) -> None:
    """Give the call of ``layer`` its weight and bias; a bias of zeros that was not there stays away."""
    node = layer.node
    old = edit.argument(node, "weight")
    weight = layer.weight.transpose(1, 2) if node.target is _aten.conv_transpose2d.input else layer.weight
    set_constant(graph_module, node, "weight", weight.reshape(old.meta["val"].shape).to(old.meta["val"].dtype), str(old.target), made_by)
    if edit.argument(node, "bias") is not None or bool(layer.bias.any()):
        hint = str(old.target).removesuffix("_weight") + "_bias"
        set_constant(graph_module, node, "bias", layer.bias.to(old.meta["val"].dtype), hint, made_by)
    node.meta["provenance"] = derive([node], made_by)


def set_constant(graph_module: fx.GraphModule, node: fx.Node, name: str, tensor: torch.Tensor, hint: str, made_by: str) -> None:
    """Let the argument ``name`` of ``node`` be the constant ``tensor``: under the old name where nobody else reads the old value."""
    tensor, old = tensor.contiguous(), edit.argument(node, name)
    if isinstance(old, fx.Node) and _is_read_once(old):
        setattr(graph_module, str(old.target), tensor)
        old.meta["val"] = edit.fake_like(tensor, edit.fake_mode_of(graph_module.graph))
        old.meta["provenance"] = derive([old], made_by)
        return
    constant = edit.add_constant(graph_module, hint, tensor, provenance_from=[node], made_by=made_by)
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]  # calls of op overloads only
    position = names.index(name)
    arguments = [edit.argument(node, each) for each in names[: max(position + 1, len(node.args))]]
    arguments[position] = constant
    node.args = tuple(arguments)
    node.kwargs = {key: kept for key, kept in node.kwargs.items() if key not in names[: len(arguments)]}


def _is_read_once(constant: fx.Node) -> bool:
    same = [node for node in constant.graph.nodes if node.op == "get_attr" and node.target == constant.target]
    return same == [constant] and len(constant.users) == 1


def _matrix(node: fx.Node, weight: torch.Tensor) -> torch.Tensor:
    if node.target is _aten.linear.default:
        return weight.reshape(1, *weight.shape, 1)
    groups = int(edit.argument(node, "groups"))
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return grouped.transpose(1, 2) if node.target is _aten.conv_transpose2d.input else grouped
