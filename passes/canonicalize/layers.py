"""Layers with weights, and per-channel affine maps y[c] = scale[c] * x[c] + shift[c] that can be folded into them.

With a layer y = W x + b that is linear in x (convolution, transposed convolution, linear):

- the map *after* the layer:  s (W x + b) + t = (s W) x + (s b + t), W scaled along its output channels, always possible;
- the map *before* the layer: W (s x + t) + b = (W s) x + (b + W t), W scaled along its input channels. The term W t is the same at
  every position only where every output sees a whole window of inputs. Padding inserts zeros after the map, not t, and a
  transposed convolution gives fewer taps to some outputs: there t must be zero.

All products and sums are taken in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.provenance import derive

_aten = torch.ops.aten

CONVOLUTIONS = frozenset({_aten.conv1d.default, _aten.conv2d.default})
TRANSPOSED_CONVOLUTIONS = frozenset({_aten.conv_transpose1d.default, _aten.conv_transpose2d.input})

# The channel axis of a layer's input and output, counted from the last dimension.
_CHANNEL_AXIS: dict[Callable[..., Any], int] = {
    _aten.linear.default: -1,
    _aten.conv1d.default: -2,
    _aten.conv_transpose1d.default: -2,
    _aten.conv2d.default: -3,
    _aten.conv_transpose2d.input: -3,
}


@dataclass(frozen=True)
class ChannelAffine:
    """node = scale * source + shift. ``axis``: the channel axis from the end, None where scale and shift are single numbers.

    scale, shift: float64, shape [channels], or [1] where ``axis`` is None.
    """

    node: fx.Node
    source: fx.Node
    scale: torch.Tensor
    shift: torch.Tensor
    axis: int | None


@dataclass(frozen=True)
class Layer:
    """A call with constant weights. weight, bias: float64; ``channels``: (input, output)."""

    node: fx.Node
    weight: torch.Tensor
    bias: torch.Tensor | None
    groups: int
    channels: tuple[int, int]

    @property
    def transposed(self) -> bool:
        return self.node.target in TRANSPOSED_CONVOLUTIONS

    @property
    def axis(self) -> int:
        return channel_axis(self.node)

    @property
    def padded(self) -> bool:
        """Whether some outputs see zeros instead of inputs."""
        return self.transposed or (self.node.target in CONVOLUTIONS and any(_as_list(edit.argument(self.node, "padding"))))


def channel_axis(node: fx.Node) -> int:
    """Axis of the channels of a layer's input and output, counted from the last dimension."""
    return _CHANNEL_AXIS[node.target]  # type: ignore[index]  # fx types targets as str | Callable


def is_constant(node: object) -> TypeGuard[fx.Node]:
    """Whether ``node`` is a constant of the program."""
    return edit.constant_value(node) is not None


def is_layer(node: object) -> bool:
    """Whether ``node`` is a call with weights, constant or not."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in _CHANNEL_AXIS


def as_layer(node: fx.Node) -> Layer | None:
    """The layer that ``node`` computes; None if it is none, or if its weights are not constants."""
    if not is_layer(node):
        return None
    weight, bias_node = edit.constant_value(edit.argument(node, "weight")), edit.argument(node, "bias")
    bias = edit.constant_value(bias_node)
    if weight is None or (bias is None) != (bias_node is None):
        return None
    groups = 1 if node.target is _aten.linear.default else int(edit.argument(node, "groups"))
    outer, inner = weight.shape[0], weight.shape[1] * groups
    channels = (outer, inner) if node.target in TRANSPOSED_CONVOLUTIONS else (inner, outer)
    return Layer(node, weight.double(), None if bias is None else bias.double(), groups, channels)


def reason_not_after(affine: ChannelAffine) -> str | None:
    """Why ``affine`` cannot be folded into the layer that it follows; None if it can."""
    layer = as_layer(affine.source)
    if layer is None:
        return (
            "it does not follow a layer with constant weights"
            if not is_layer(affine.source)
            else "the weights of the layer before it are computed"
        )
    if len(layer.node.users) > 1:
        return f"the result of '{layer.node.name}' before it is read elsewhere too"
    return _reason_of_axis(affine, layer, layer.channels[1])


def reason_not_before(affine: ChannelAffine) -> str | None:
    """Why ``affine`` cannot be folded into the layer that it precedes; None if it can."""
    users = edit.users_of(affine.node)
    layer = as_layer(users[0]) if len(users) == 1 else None
    if layer is None or layer.node.args[0] is not affine.node:
        return "its result is not read by one layer with constant weights alone"
    if layer.padded and bool(affine.shift.any()):
        return f"its shift would have to reach the zeros that '{layer.node.name}' pads with"
    return _reason_of_axis(affine, layer, layer.channels[0])


def _reason_of_axis(affine: ChannelAffine, layer: Layer, channels: int) -> str | None:
    if affine.axis is None or (affine.axis == layer.axis and len(affine.scale) == channels):
        return None
    return f"it does not work along the channels of '{layer.node.name}'"


def fold_after(graph_module: fx.GraphModule, affine: ChannelAffine, made_by: str) -> None:
    """(s W) x + (s b + t) in place of s (W x + b) + t."""
    layer = _layer_of(affine.source)
    outputs = layer.channels[1]
    scale, shift = affine.scale.expand(outputs), affine.shift.expand(outputs)
    factor = _by_output(scale, layer)
    bias = shift if layer.bias is None else scale * layer.bias + shift
    _set_weights(graph_module, layer, affine, _spread(factor, layer.weight) * layer.weight, bias, made_by)
    edit.replace(affine.node, layer.node)


def fold_before(graph_module: fx.GraphModule, affine: ChannelAffine, made_by: str) -> None:
    """(W s) x + (b + W t) in place of W (s x + t) + b."""
    layer = _layer_of(edit.users_of(affine.node)[0])
    inputs, outputs = layer.channels
    scale, shift = (_spread(_by_input(values.expand(inputs), layer), layer.weight) for values in (affine.scale, affine.shift))
    bias = torch.zeros(outputs, dtype=torch.float64) if layer.bias is None else layer.bias
    if not layer.transposed:  # there the shift is zero
        bias = bias + (layer.weight * shift).flatten(1).sum(1)
    _set_weights(graph_module, layer, affine, scale * layer.weight, bias, made_by)
    layer.node.replace_input_with(affine.node, affine.source)
    graph_module.graph.erase_node(affine.node)


def _layer_of(node: fx.Node) -> Layer:
    layer = as_layer(node)
    assert layer is not None  # reason_not_after and reason_not_before looked already
    return layer


def _by_output(values: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Values of the output channels in the layout of the first dimensions of the weight."""
    if layer.transposed:
        return values.reshape(layer.groups, -1).repeat_interleave(layer.channels[0] // layer.groups, 0)
    return values.reshape(-1, 1)


def _by_input(values: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Values of the input channels, likewise."""
    if layer.transposed:
        return values.reshape(-1, 1)
    return values.reshape(layer.groups, -1).repeat_interleave(layer.channels[1] // layer.groups, 0)


def _spread(factor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Append the kernel's dimensions."""
    return factor.reshape(*factor.shape, *[1] * (weight.ndim - factor.ndim))


def _set_weights(
    graph_module: fx.GraphModule, layer: Layer, affine: ChannelAffine, weight: torch.Tensor, bias: torch.Tensor, made_by: str
) -> None:
    node = layer.node
    old = edit.argument(node, "weight")
    dtype = old.meta["val"].dtype
    set_constant(graph_module, node, "weight", weight.to(dtype), str(old.target), made_by)
    if layer.bias is not None or bool(bias.any()):
        set_constant(graph_module, node, "bias", bias.to(dtype), str(old.target).removesuffix("_weight") + "_bias", made_by)
    node.meta["provenance"] = derive([node, affine.node], made_by)


def set_constant(graph_module: fx.GraphModule, node: fx.Node, name: str, tensor: torch.Tensor, name_hint: str, made_by: str) -> None:
    """Let the argument ``name`` of ``node`` be the constant ``tensor``: under the old name where nobody else reads the old value."""
    old = edit.argument(node, name)
    readers = [
        other for other in graph_module.graph.nodes if isinstance(old, fx.Node) and other.op == "get_attr" and other.target == old.target
    ]
    if readers == [old] and len(old.users) == 1:
        setattr(graph_module, str(old.target), tensor)
        old.meta["val"] = edit.fake_like(tensor, edit.fake_mode_of(graph_module.graph))
        old.meta["provenance"] = derive([old], made_by)
        return
    set_argument(node, name, edit.add_constant(graph_module, name_hint, tensor, provenance_from=[node], made_by=made_by))


def set_argument(node: fx.Node, name: str, value: object) -> None:
    """Give the argument ``name`` of a call; arguments before it that were left out get their defaults."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]  # calls of op overloads only
    position = names.index(name)
    args = [edit.argument(node, each) for each in names[: max(position + 1, len(node.args))]]
    args[position] = value
    node.args = tuple(args)
    node.kwargs = {key: kept for key, kept in node.kwargs.items() if key not in names[: len(args)]}


def constant_affine(node: fx.Node, source: fx.Node, scale: torch.Tensor, shift: torch.Tensor) -> ChannelAffine | None:
    """The affine map by constants that broadcast against ``source``; None if they vary along more than one dimension or enlarge it."""
    if node.meta["val"].ndim != source.meta["val"].ndim:
        return None
    scale, shift = torch.broadcast_tensors(scale.double(), shift.double())
    varying = [position - scale.ndim for position, size in enumerate(scale.shape) if size != 1]
    if not varying:
        return ChannelAffine(node, source, scale.reshape(1), shift.reshape(1), None)
    axis = varying[0]
    if len(varying) > 1 or axis == -source.meta["val"].ndim or source.meta["val"].shape[axis] != scale.shape[axis]:
        return None
    return ChannelAffine(node, source, scale.flatten(), shift.flatten(), axis)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
