"""Sums, products and quotients of two values, multiples of one, concatenation.

``a - b`` is ``a + (-b)``: 8-bit integers of b are negated by a table, ``q -> (low + high) - q``, which is exact with the zero point
negated likewise; wider ones by a negative multiplier of the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from qcompiler import arithmetic
from qcompiler.errors import VerificationError
from qcompiler.ir import edit, elementwise
from qcompiler.ir.edit import argument
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import INT32, QuantizedType
from qcompiler.passes.lower.lowering import IntegerValue, Lowering, LoweringFunction, Unrounded, Value, quotient, unsupported

_aten, _qc = torch.ops.aten, torch.ops.qc

_BYTE = 8


def add(lowering: Lowering, node: fx.Node) -> Value:
    """``a + alpha * b``."""
    return _sum(lowering, node, 1.0)


def subtract(lowering: Lowering, node: fx.Node) -> Value:
    """``a - alpha * b``."""
    return _sum(lowering, node, -1.0)


def multiply(lowering: Lowering, node: fx.Node) -> Value:
    """``s_a (q_a - z_a) * s_b (q_b - z_b)``: an exact int32 product of scale ``s_a s_b``. By a positive number: a change of scale."""
    if elementwise.is_scaling(node):
        return scaled(lowering, node)
    a, b = (lowering.activation(operand, bits=16) for operand in node.args[:2])
    factors = _channel_factors(a, b)
    if factors is not None:
        return IntegerValue(a.node, a.scale * factors, a.zero_point, a.integer)
    product = lowering.call(_qc.multiply.default, a.node, b.node, a.zero_point, b.zero_point, name=f"{node.name}_accumulator")
    return lowering.accumulator(product, a.scale * b.scale)


def hadamard(lowering: Lowering, node: fx.Node) -> Value:
    """Sums and differences of integers at their own scale: exact in int32."""
    x = lowering.activation(argument(node, "x"), bits=16)
    if argument(node, "zero_point") != 0:
        raise unsupported(node, "it has a zero point, which floats do not have", "give it 0")
    total = lowering.call(_qc.hadamard.default, x.node, argument(node, "block"), x.zero_point, name=f"{node.name}_accumulator")
    return lowering.accumulator(total, x.scale)


def _channel_factors(a: IntegerValue, b: IntegerValue) -> torch.Tensor | None:
    """The reals of a constant b that is a vector of positive numbers along the last dimension: a change of scale for each channel."""
    integers = edit.constant_value(b.node)
    last = a.node.meta["val"].shape[-1]
    if integers is None or integers.dim() != 1 or integers.shape[0] != last or bool((integers <= b.zero_point).any()):
        return None
    return (integers.to(torch.float64) - b.zero_point) * b.scale


def divide(lowering: Lowering, node: fx.Node) -> Value:
    """By a positive number: a change of scale. By a count of tokens, at least 1: ``qc.divide`` with all fraction bits that int32 has."""
    if elementwise.is_scaling(node):
        return scaled(lowering, node)
    x, (count, unit) = lowering.activation(node.args[0], bits=32), _count(lowering, node)
    if x.zero_point != 0:
        raise unsupported(node, "its dividend has a zero point", "quantize it symmetrically")
    return quotient(lowering, node, x, count).scaled(1.0 / unit)


def scaled(lowering: Lowering, node: fx.Node) -> Value:
    """The same integers, or the same waiting computation, at another scale."""
    factor = elementwise.scaling_factor(node)
    value = lowering.values.get(node.args[0])  # type: ignore[arg-type]  # the op's tensor
    return value.scaled(factor) if isinstance(value, Unrounded) else lowering.integers(node.args[0]).scaled(factor)


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
    _aten.div.Tensor: divide,
    _aten.cat.default: concatenate,
    _qc.hadamard.default: hadamard,
}


def _sum(lowering: Lowering, node: fx.Node, sign: float) -> Value:
    """``a + weight * b`` in one rounding; an int32 accumulator, if there is one, is operand a of ``qc.add``."""
    a, b = (lowering.integers(operand) for operand in node.args[:2])
    weight = sign * float(argument(node, "alpha"))
    if weight == 0:
        raise unsupported(node, "alpha is 0", "leave the second operand out")
    b, sign_b = _multiple(lowering, node, b, weight)
    operands = [(a, 1), (b, sign_b)]
    if b.is_accumulator and not a.is_accumulator:
        operands.reverse()

    def rounding(quantized: QuantizedType, low: int, high: int) -> fx.Node:
        return _add(lowering, node, operands, quantized, (low, high))

    return Unrounded(rounding)


def _add(
    lowering: Lowering, node: fx.Node, operands: Sequence[tuple[IntegerValue, int]], quantized: QuantizedType, limits: tuple[int, int]
) -> fx.Node:
    """``qc.add`` of two values, each with the sign that its multiplier gets."""
    (a, sign_a), (b, sign_b) = operands
    factor_a, factor_b = a.scale / quantized.scale[0], b.scale / quantized.scale[0]
    try:
        dyadic = arithmetic.choose_residual(factor_a, lowering.magnitude(a), factor_b, lowering.magnitude(b))
    except VerificationError as error:
        raise VerificationError(f"{describe(node)}: {error}") from error
    values = {
        "pre_shift_a": dyadic.pre_shift_a,
        "multiplier_a": sign_a * dyadic.multiplier_a,
        "pre_shift_b": dyadic.pre_shift_b,
        "multiplier_b": sign_b * dyadic.multiplier_b,
    }
    parameters = [lowering.constant(f"{node.name}_{name}", value) for name, value in values.items()]
    zero_points = (a.zero_point, b.zero_point, quantized.zero_point[0])
    integer = quantized.integer
    arguments = (a.node, b.node, *parameters, dyadic.shift, *zero_points, *limits, integer.bits, integer.signed)
    return lowering.call(_qc.add.default, *arguments, name=f"{node.name}_requantized")


def _multiple(lowering: Lowering, node: fx.Node, value: IntegerValue, weight: float) -> tuple[IntegerValue, int]:
    """``weight`` times the value, by its scale alone; a negative one by a table, or as the sign of the multiplier."""
    multiple = value.scaled(abs(weight))
    if weight > 0:
        return multiple, 1
    return (multiple, -1) if value.integer.bits > _BYTE else (_negated(lowering, node, multiple), 1)


def _negated(lowering: Lowering, node: fx.Node, value: IntegerValue) -> IntegerValue:
    limits = torch.iinfo(value.integer.dtype)
    ends = value.integer.low + value.integer.high
    mirrored = ends - torch.arange(limits.min, limits.max + 1)
    table = lowering.constant(f"{node.name}_negation", mirrored.clamp(value.integer.low, value.integer.high).to(value.integer.dtype))
    negated = lowering.call(_qc.lookup.default, value.node, table, value.integer.bits, value.integer.signed, name=f"{node.name}_negated")
    zero_point = ends - value.zero_point
    negated.meta["quantized"] = QuantizedType(value.integer, (float(value.scale),), (zero_point,))
    return IntegerValue(negated, value.scale, zero_point, value.integer)


def _count(lowering: Lowering, node: fx.Node) -> tuple[fx.Node, float]:
    """The integers that a quotient divides by, int32 and 1 at least, and what 1 stands for: a bound from below is how models avoid to
    divide by 0. Of tokens it is 1; of a mask that a tool quantized it is the scale.
    """
    divisor = node.args[1]
    while edit.is_call(divisor, *elementwise.CLAMPS):
        divisor = divisor.args[0]  # type: ignore[union-attr]  # a call is a node
    count = lowering.activation(divisor, bits=32)
    if not edit.is_call(divisor, _aten.sum.dim_IntList) and float(count.scale) != 1.0 or count.zero_point != 0:
        raise unsupported(node, "it divides by a value that is no whole number", "multiply by a constant, or divide by a sum of a mask")
    if lowering.bounds_of(count.node).range.low >= 1:
        return count.node, float(count.scale)
    return lowering.call(_qc.clamp.default, count.node, 1, INT32.high, name=f"{node.name}_count"), float(count.scale)
