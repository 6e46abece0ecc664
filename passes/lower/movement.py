"""Data movement works on integers as on reals: the op stays, with the value that it pads with quantized."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qcompiler.passes.lower.lowering import IntegerValue, Lowering, LoweringFunction, Value, limit, unsupported

_aten = torch.ops.aten


def move(lowering: Lowering, node: fx.Node) -> Value:
    """Ops whose other arguments are sizes and positions."""
    return _moved(lowering, node, node.args[1:])


def pad(lowering: Lowering, node: fx.Node) -> Value:
    """``constant_pad_nd``: 0 becomes the zero point; other values are rounded and saturate in the type of the input."""
    x = lowering.integers(node.args[0])
    value = float(node.args[2] if len(node.args) > 2 else node.kwargs.get("value", 0.0))  # type: ignore[arg-type]
    if x.scale.numel() != 1:
        raise unsupported(node, "it pads values that have one scale for each channel", "quantize them with one scale before")
    return _moved(lowering, node, (node.args[1], limit(value, x.quantized)))


LOWERINGS: dict[object, LoweringFunction] = {
    _aten.reshape.default: move,
    _aten.permute.default: move,
    _aten.slice.Tensor: move,
    _aten.expand.default: move,
    _aten.flip.default: move,
    _aten.unflatten.int: move,
    _aten.flatten.using_ints: move,
    _aten.unsqueeze.default: move,
    _aten.squeeze.dims: move,
    _aten.constant_pad_nd.default: pad,
}


def _moved(lowering: Lowering, node: fx.Node, rest: tuple[Any, ...]) -> IntegerValue:
    x = lowering.integers(node.args[0])
    if x.scale.numel() != 1:
        raise unsupported(node, "it moves values that have one scale for each channel", "quantize them with one scale before")
    moved = lowering.call(node.target, x.node, *rest, name=f"{node.name}_integers")  # type: ignore[arg-type]  # an op overload
    return lowering.rounded(moved, x.quantized, x.scale)
