"""Sums and products of two values, concatenation.

``a - b`` is ``a + (-b)``: the 8-bit integers of b are negated by a table, ``q -> (low + high) - q``, which is exact with the zero point
negated likewise, so that the sum needs no signed multipliers.
"""

from __future__ import annotations

import torch
from torch import fx

from qcompiler import arithmetic
from qcompiler.errors import VerificationError
from qcompiler.ir.edit import argument
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import QuantizedType
from qcompiler.passes.lower.lowering import IntegerValue, Lowering, LoweringFunction, Unrounded, Value, unsupported

_aten, _qc = torch.ops.aten, torch.ops.qc


def add(lowering: Lowering, node: fx.Node) -> Value:
    """``a + alpha * b``."""
    return _sum(lowering, node, 1.0)


def subtract(lowering: Lowering, node: fx.Node) -> Value:
    """``a - alpha * b``."""
    return _sum(lowering, node, -1.0)


def multiply(lowering: Lowering, node: fx.Node) -> Value:
    """``s_a (q_a - z_a) * s_b (q_b - z_b)``: an exact int32 product of scale ``s_a s_b``."""
    a, b = (lowering.activation(operand) for operand in node.args[:2])
    product = lowering.call(_qc.multiply.default, a.node, b.node, a.zero_point, b.zero_point, name=f"{node.name}_accumulator")
    return lowering.accumulator(product, a.scale.reshape(()) * b.scale.reshape(()))


def concatenate(lowering: Lowering, node: fx.Node) -> Value:
    """Inputs of the result's type are copied, others requantized to it."""
    inputs = [lowering.integers(operand) for operand in argument(node, "tensors")]

    def rounding(quantized: QuantizedType, low: int, high: int) -> fx.Node:
        parts = [lowering.converted(value, quantized) for value in inputs]
        for part in parts:
            part.meta.setdefault("quantized", quantized)
        joined = lowering.call(_aten.cat.default, parts, argument(node, "dim"), name=f"{node.name}_integers")
        if (low, high) == (quantized.integer.low, quantized.integer.high):
            return joined
        joined.meta["quantized"] = quantized
        return lowering.call(_qc.clamp.default, joined, low, high, name=f"{node.name}_clamped")

    return Unrounded(rounding)


LOWERINGS: dict[object, LoweringFunction] = {
    _aten.add.Tensor: add,
    _aten.sub.Tensor: subtract,
    _aten.mul.Tensor: multiply,
    _aten.cat.default: concatenate,
}


def _sum(lowering: Lowering, node: fx.Node, sign: float) -> Value:
    """``a + weight * b`` in one rounding; an int32 accumulator, if there is one, is operand a of ``qc.add``."""
    a, b = (lowering.integers(operand) for operand in node.args[:2])
    weight = sign * float(argument(node, "alpha"))
    if weight == 0:
        raise unsupported(node, "alpha is 0", "leave the second operand out")
    b = _scaled(lowering, node, b, weight)
    if b.is_accumulator and not a.is_accumulator:
        a, b = b, a

    def rounding(quantized: QuantizedType, low: int, high: int) -> fx.Node:
        factor_a, factor_b = a.scale / quantized.scale[0], b.scale / quantized.scale[0]
        try:
            dyadic = arithmetic.choose_residual(factor_a, lowering.magnitude(a), factor_b, lowering.magnitude(b))
        except VerificationError as error:
            raise VerificationError(f"{describe(node)}: {error}") from error
        names = ("pre_shift_a", "multiplier_a", "pre_shift_b", "multiplier_b")
        parameters = [lowering.constant(f"{node.name}_{name}", getattr(dyadic, name)) for name in names]
        zero_points = (a.zero_point, b.zero_point, quantized.zero_point[0])
        integer = quantized.integer
        return lowering.call(
            _qc.add.default,
            a.node,
            b.node,
            *parameters,
            dyadic.shift,
            *zero_points,
            low,
            high,
            integer.bits,
            integer.signed,
            name=f"{node.name}_requantized",
        )

    return Unrounded(rounding)


def _scaled(lowering: Lowering, node: fx.Node, value: IntegerValue, weight: float) -> IntegerValue:
    """``weight`` times the value, by its scale alone, and negated if need be."""
    scaled = IntegerValue(value.node, value.scale * abs(weight), value.zero_point, value.integer)
    return scaled if weight > 0 else _negated(lowering, node, scaled)


def _negated(lowering: Lowering, node: fx.Node, value: IntegerValue) -> IntegerValue:
    if value.integer.bits > 8:
        raise unsupported(node, f"it subtracts {value.integer} integers", "quantize the second operand to 8 bits")
    limits = torch.iinfo(value.integer.dtype)
    ends = value.integer.low + value.integer.high
    mirrored = ends - torch.arange(limits.min, limits.max + 1)
    table = lowering.constant(f"{node.name}_negation", mirrored.clamp(value.integer.low, value.integer.high).to(value.integer.dtype))
    negated = lowering.call(_qc.lookup.default, value.node, table, value.integer.bits, value.integer.signed, name=f"{node.name}_negated")
    zero_point = ends - value.zero_point
    negated.meta["quantized"] = QuantizedType(value.integer, (float(value.scale),), (zero_point,))
    return IntegerValue(negated, value.scale, zero_point, value.integer)
