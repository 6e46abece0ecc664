"""Activations: bounds become the limits of a rounding, every other function of one 8-bit value is a table.

The functions of which ``arithmetic.nonlinear`` has integer forms can be computed instead, of inputs of up to 16 bits: the option
``activation`` of the pass. A form of a paper that lacks a function is replaced by its nearest of ours (``_FORMS``).
"""

from __future__ import annotations

import torch
from torch import fx

from qcompiler import arithmetic
from qcompiler.errors import VerificationError
from qcompiler.ir import edit, elementwise
from qcompiler.ir.edit import argument
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import QuantizedType
from qcompiler.passes.lower.lowering import IntegerValue, Lowering, LoweringFunction, Unrounded, Value, limit, unsupported

_aten, _qc = torch.ops.aten, torch.ops.qc

_BYTE, _WIDE = 8, 16

_NAMES: dict[object, str] = {
    _aten.gelu.default: "gelu",
    _aten.silu.default: "silu",
    _aten.sigmoid.default: "sigmoid",
    _aten.tanh.default: "tanh",
    _aten.exp.default: "exp",
    _aten.erf.default: "erf",
}
# Option -> the forms to try in order: no paper has all functions.
_FORMS = {"poly": ("poly",), "shift": ("shift",), "shift-gelu": ("shift-gelu", "shift"), "i-gelu": ("i-gelu", "i-exp", "poly")}


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
    """Any function of one value, element by element: a table with the exact rounding of the float64 function, or an integer form."""
    name, option = _NAMES.get(node.target), lowering.functions.activation
    if option == "auto":
        option = "table" if lowering.integers(node.args[0]).integer.bits <= _BYTE else "poly"
    if name is not None and option != "table":
        return _computed(lowering, node, name, _form(name, option))
    if name is not None and lowering.integers(node.args[0]).integer.bits > _BYTE:
        raise unsupported(node, "a table needs 8 bits", "quantize its input to 8 bits, or lower with activation=poly")
    x = lowering.activation(node.args[0])
    computed = elementwise.scalar_function(node)

    def rounding(quantized: QuantizedType, low: int, high: int) -> fx.Node:
        return _lookup(
            lowering, x, arithmetic.build_table(computed, _type_of(x), quantized, lowering.functions.rounding), quantized, low, high
        )

    return Unrounded(rounding)


def _computed(lowering: Lowering, node: fx.Node, name: str, form: str) -> Value:
    """``qc.nonlinear``, an accumulator that waits for its rounding."""
    x = lowering.activation(node.args[0], bits=_WIDE)
    reach = lowering.bounds_of(x.node).minus(x.zero_point).range
    bound = reach.high if name == "exp" else max(abs(reach.low), abs(reach.high))
    try:
        constants, scale = arithmetic.nonlinear_parameters(name, form, float(x.scale), bound)
    except VerificationError as error:
        raise VerificationError(f"{describe(node)}: {error}") from error
    accumulator = lowering.call(_qc.nonlinear.default, x.node, x.zero_point, name, form, constants, name=f"{node.name}_accumulator")
    return lowering.accumulator(accumulator, torch.tensor(scale, dtype=torch.float64))


def _form(name: str, option: str) -> str:
    return next(form for form in _FORMS[option] if arithmetic.has_form(name, form))


def prelu(lowering: Lowering, node: fx.Node) -> Value:
    """``x`` where it is positive, else ``slope * x``: one table, or one for each channel."""
    x = lowering.activation(node.args[0])
    slopes = edit.constant_value(argument(node, "weight"))
    if slopes is None:
        raise unsupported(node, "its slopes are computed", "use constant slopes")

    def rounding(quantized: QuantizedType, low: int, high: int) -> fx.Node:
        def leaky(slope: float) -> torch.Tensor:
            return arithmetic.build_table(
                lambda reals: torch.where(reals > 0, reals, slope * reals), _type_of(x), quantized, lowering.functions.rounding
            )

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
