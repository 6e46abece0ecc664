"""Per-channel affine maps y[c] = scale[c] * x[c] + shift[c], folded into a layer with weights before or after them.

With a layer y = W x + b that is linear in x (convolution, transposed convolution, linear):

- the map *after* the layer:  s (W x + b) + t = (s W) x + (s b + t), W scaled along its output channels, always possible;
- the map *before* the layer: W (s x + t) + b = (W s) x + (b + W t), W scaled along its input channels. The term W t is the same at
  every position only where every output sees a whole window of inputs. Padding inserts zeros after the map, not t, and a
  transposed convolution gives fewer taps to some outputs: there t must be zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.layers import Layer, as_layer, is_layer, write_layer
from qcompiler.ir.provenance import derive


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
    return _reason_of_axis(affine, layer, layer.outputs)


def reason_not_before(affine: ChannelAffine) -> str | None:
    """Why ``affine`` cannot be folded into the layer that it precedes; None if it can."""
    users = edit.users_of(affine.node)
    layer = as_layer(users[0]) if len(users) == 1 else None
    if layer is None or layer.node.args[0] is not affine.node:
        return "its result is not read by one layer with constant weights alone"
    if not layer.takes_shifts and bool(affine.shift.any()):
        return f"its shift would have to reach the zeros that '{layer.node.name}' pads with"
    return _reason_of_axis(affine, layer, layer.inputs)


def _reason_of_axis(affine: ChannelAffine, layer: Layer, channels: int) -> str | None:
    if affine.axis is None or (affine.axis == layer.axis and len(affine.scale) == channels):
        return None
    return f"it does not work along the channels of '{layer.node.name}'"


def fold_after(graph_module: fx.GraphModule, affine: ChannelAffine, made_by: str) -> None:
    """(s W) x + (s b + t) in place of s (W x + b) + t."""
    layer = _layer_of(affine.source)
    scale, shift = affine.scale.expand(layer.outputs), affine.shift.expand(layer.outputs)
    _write(graph_module, layer.scale_outputs(scale).add_bias(shift), affine, made_by)
    edit.replace(affine.node, layer.node)


def fold_before(graph_module: fx.GraphModule, affine: ChannelAffine, made_by: str) -> None:
    """(W s) x + (b + W t) in place of W (s x + t) + b."""
    layer = _layer_of(edit.users_of(affine.node)[0])
    scale, shift = affine.scale.expand(layer.inputs), affine.shift.expand(layer.inputs)
    _write(graph_module, layer.add_bias(layer.product(shift)).scale_inputs(scale), affine, made_by)
    layer.node.replace_input_with(affine.node, affine.source)
    graph_module.graph.erase_node(affine.node)


def _layer_of(node: fx.Node) -> Layer:
    layer = as_layer(node)
    assert layer is not None  # reason_not_after and reason_not_before looked already
    return layer


def _write(graph_module: fx.GraphModule, layer: Layer, affine: ChannelAffine, made_by: str) -> None:
    provenance = derive([layer.node, affine.node], made_by)
    write_layer(graph_module, layer, made_by)
    layer.node.meta["provenance"] = provenance


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
