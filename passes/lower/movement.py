"""Data movement works on integers as on reals: the op stays, with the value that it pads with quantized.

What waits for its rounding, a sum or the result of a layer, is rounded first and moved then, because each element is rounded by itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from qcompiler.ir.types import QuantizedType
from qcompiler.passes.lower.lowering import IntegerValue, Lowering, LoweringFunction, Unrounded, Value, limit, unsupported

_aten = torch.ops.aten


def move(lowering: Lowering, node: fx.Node) -> Value:
    """Ops whose other arguments are sizes and positions."""
    waiting = _waiting(lowering, node.args[0])
    return _moved_later(lowering, node, waiting) if waiting is not None else _moved(lowering, node, node.args[1:])


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


def _waiting(lowering: Lowering, operand: object) -> Unrounded | None:
    """The rounding that a value waits for; of a layer too, whose scale for each channel no movement would keep."""
    value = lowering.values.get(operand) if isinstance(operand, fx.Node) else None
    if isinstance(value, IntegerValue) and value.is_accumulator and value.scale.numel() != 1:
        return lowering.round_accumulator(value)
    return value if isinstance(value, Unrounded) else None


def _moved_later(lowering: Lowering, node: fx.Node, waiting: Unrounded) -> Unrounded:
    def rounding(quantized: QuantizedType, low: int, high: int) -> fx.Node:
        rounded = lowering.rounded(waiting.rounding(quantized, low, high), quantized).node
        return lowering.call(node.target, rounded, *node.args[1:], name=f"{node.name}_integers")  # type: ignore[arg-type]  # an op overload

    return replace(waiting, rounding=rounding)


def _moved(lowering: Lowering, node: fx.Node, rest: tuple[Any, ...]) -> IntegerValue:
    x = lowering.integers(node.args[0])
    if x.scale.numel() != 1:
        raise unsupported(node, "it moves values that have one scale for each channel", "quantize them with one scale before")
    moved = lowering.call(node.target, x.node, *rest, name=f"{node.name}_integers")  # type: ignore[arg-type]  # an op overload
    return lowering.rounded(moved, x.quantized, x.scale)
