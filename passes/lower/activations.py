"""Activations: bounds become the limits of a rounding, every other function of one 8-bit value is a table."""

from __future__ import annotations

import torch
from torch import fx

from qcompiler import arithmetic
from qcompiler.ir import edit, elementwise
from qcompiler.ir.edit import argument
from qcompiler.ir.types import QuantizedType
from qcompiler.passes.lower.lowering import IntegerValue, Lowering, LoweringFunction, Unrounded, Value, limit, unsupported

_aten, _qc = torch.ops.aten, torch.ops.qc


def clamp(lowering: Lowering, node: fx.Node) -> Value:
    """Of a value that is still to be rounded: its limits. Of rounded integers: ``qc.clamp`` in their own type."""
    low, high = elementwise.clamp_bounds(node)
    source = node.args[0]
    value = lowering.values.get(source) if isinstance(source, fx.Node) else None
    if isinstance(value, Unrounded):
        return value.clamped(low, high)
    value = lowering.integers(source)
    if value.is_accumulator:
        return lowering.round_accumulator(value).clamped(low, high)
    quantized = _type_of(value)
    clamped = lowering.call(_qc.clamp.default, value.node, limit(low, quantized), limit(high, quantized), name=f"{node.name}_integers")
    return lowering.rounded(clamped, quantized)


def function(lowering: Lowering, node: fx.Node) -> Value:
    """Any function of one 8-bit value, element by element: a table with the exact rounding of the float64 function."""
    x = lowering.activation(node.args[0])
    computed = elementwise.scalar_function(node)

    def rounding(quantized: QuantizedType, low: int, high: int) -> fx.Node:
        return _lookup(lowering, x, arithmetic.build_table(computed, _type_of(x), quantized), quantized, low, high)

    return Unrounded(rounding)


def prelu(lowering: Lowering, node: fx.Node) -> Value:
    """``x`` where it is positive, else ``slope * x``: one table, or one for each channel."""
    x = lowering.activation(node.args[0])
    slopes = edit.constant_value(argument(node, "weight"))
    if slopes is None:
        raise unsupported(node, "its slopes are computed", "use constant slopes")

    def rounding(quantized: QuantizedType, low: int, high: int) -> fx.Node:
        def leaky(slope: float) -> torch.Tensor:
            return arithmetic.build_table(lambda reals: torch.where(reals > 0, reals, slope * reals), _type_of(x), quantized)

        tables = torch.stack([leaky(slope) for slope in slopes.reshape(-1).double().tolist()])
        return _lookup(lowering, x, tables[0] if len(tables) == 1 else tables, quantized, low, high)

    return Unrounded(rounding)


LOWERINGS: dict[object, LoweringFunction] = {
    **dict.fromkeys(elementwise.CLAMPS, clamp),
    _aten.prelu.default: prelu,
}


def _lookup(lowering: Lowering, x: IntegerValue, table: torch.Tensor, quantized: QuantizedType, low: int, high: int) -> fx.Node:
    name = lowering.node.args[0].name  # type: ignore[union-attr]  # the node is the quantize of a value
    constant = lowering.constant(f"{name}_table", table.clamp(low, high))
    return lowering.call(_qc.lookup.default, x.node, constant, quantized.integer.bits, quantized.integer.signed, name=f"{name}_integers")


def _type_of(value: IntegerValue) -> QuantizedType:
    return QuantizedType(value.integer, (float(value.scale),), (value.zero_point,))
