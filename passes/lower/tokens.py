"""Integers that the user gives, and what is made of them: rows of tables, masks beside scores, positions of maxima.

Ops that read and give integers alone stay as they are; ``lower_integer`` leaves them where they stand.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from qcompiler.ir.edit import argument
from qcompiler.ir.types import INT16, UINT8, QuantizedType
from qcompiler.passes.lower.lowering import IntegerValue, Lowering, LoweringFunction, Masked, Value, unsupported

_aten, _qc = torch.ops.aten, torch.ops.qc


def embedding(lowering: Lowering, node: fx.Node) -> Value:
    """Rows of an int8 table: the integers and the scale are the table's."""
    weight = lowering.activation(argument(node, "weight"))
    rows = lowering.call(_qc.embedding.default, weight.node, argument(node, "indices"), name=f"{node.name}_integers")
    return lowering.rounded(rows, weight.quantized)


def cast(lowering: Lowering, node: fx.Node) -> Value:
    """Integers as reals of scale 1, in the narrowest type that holds what is proven about them; and back, where they are such."""
    source = node.args[0]
    known = lowering.values.get(source) if isinstance(source, fx.Node) else None
    if isinstance(known, IntegerValue) and _are_whole_numbers(known, node):
        return replace(known, scale=torch.ones((), dtype=torch.float64))
    if not isinstance(source, fx.Node) or source.meta["val"].is_floating_point():
        raise unsupported(node, "it casts floats", "leave the cast out")
    proven = lowering.bounds_of(source).range
    for integer in (UINT8, INT16):
        if proven.within(integer):
            return lowering.rounded(
                lowering.call(_aten.to.dtype, source, integer.dtype, name=f"{node.name}_integers"), QuantizedType(integer, (1.0,))
            )
    raise unsupported(node, f"its integers lie in {proven}", "give the model the values as floats, or declare a range of 16 bits")


def _are_whole_numbers(value: IntegerValue, node: fx.Node) -> bool:
    """Whether reals are the integers that stand for them, and the cast leaves them as they are: to float32, or to their own dtype."""
    wanted = node.meta["val"].dtype
    plain = value.zero_point == 0 and bool((value.scale == 1.0).all())
    return plain and (wanted.is_floating_point or wanted is value.integer.dtype)


def mask(lowering: Lowering, node: fx.Node) -> Value:
    """``masked_fill(scores, drop, -inf)``: the mask goes into the softmax that reads it."""
    scores, drop = lowering.integers(node.args[0]), node.args[1]
    if node.args[2] != float("-inf") or not isinstance(drop, fx.Node):
        raise unsupported(node, f"it fills with {node.args[2]}", "mask scores with minus infinity, before a softmax")
    return Masked(scores, drop)


def position_of_maximum(lowering: Lowering, node: fx.Node) -> None:
    """``argmax`` of integers with one scale is that of the reals; the op stays and reads integers."""
    x = lowering.activation(node.args[0], bits=32)
    node.args = (x.node, *node.args[1:])


LOWERINGS: dict[object, LoweringFunction] = {
    _aten.embedding.default: embedding,
    _aten.to.dtype: cast,
    _aten.masked_fill.Scalar: mask,
}
