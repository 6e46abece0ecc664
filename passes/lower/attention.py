r"""What transformers add to convolutional networks: products of two activations, softmax, LayerNorm.

LayerNorm of a row of N values with scale gamma and offset beta, from the normalized integers y of ``qc.normalize``::

    gamma (x - mean) / sqrt(variance + epsilon) + beta  =  y sqrt(N) 2^-29 gamma  +  s_beta q_beta

One ``qc.add`` computes the right side with one rounding: operand a is y with the multiplier of ``sqrt(N) 2^-29 gamma / s`` for each
channel, negative where gamma is, operand b the constant ``q_beta = rint(beta / s_beta)`` in int16. Nothing is divided by gamma.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from qcompiler import arithmetic
from qcompiler.arithmetic.normalize import OUTPUT_FRACTION_BITS
from qcompiler.errors import VerificationError
from qcompiler.ir import edit
from qcompiler.ir.edit import argument
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import INT16, IntegerType, QuantizedType, probability_type
from qcompiler.passes.lower.lowering import IntegerValue, Lowering, LoweringFunction, Unrounded, Value, unsupported

_aten, _qc = torch.ops.aten, torch.ops.qc

_LARGEST_EPSILON = (1 << 62) - 1


def matmul(lowering: Lowering, node: fx.Node) -> Value:
    """``s_a (q_a - z_a) @ s_b (q_b - z_b)``: an exact int32 product of scale ``s_a s_b``."""
    a, b = lowering.activation(argument(node, "self")), lowering.activation(argument(node, "other"))
    if min(a.node.meta["val"].ndim, b.node.meta["val"].ndim) < 2:
        raise unsupported(node, "an operand is a vector", "reshape it to a matrix")
    product = lowering.call(_qc.matmul.default, a.node, b.node, a.zero_point, b.zero_point, name=f"{node.name}_accumulator")
    return lowering.accumulator(product, a.scale * b.scale)


def softmax(lowering: Lowering, node: fx.Node) -> Value:
    """Over the last dimension, to unsigned integers of as many bits as the input and scale ``1 / (2^bits - 1)``."""
    x = lowering.activation(argument(node, "self"))
    if argument(node, "dim") not in (-1, x.node.meta["val"].ndim - 1):
        raise unsupported(node, f"it runs over dimension {argument(node, 'dim')}, not the last", "permute the values around it")
    quantized = probability_type(x.integer.bits)
    table = lowering.constant(f"{node.name}_exponentials", arithmetic.exponential_table(float(x.scale)))
    return lowering.rounded(
        lowering.call(_qc.softmax.default, x.node, table, None, "table", [], x.integer.bits, name=f"{node.name}_integers"), quantized
    )


def layer_norm(lowering: Lowering, node: fx.Node) -> Value:
    """Over the last dimension; see the module's formula."""
    x = lowering.integers(argument(node, "input"))
    if len(argument(node, "normalized_shape")) != 1 or x.scale.numel() != 1 or x.is_accumulator:
        raise unsupported(node, "it runs over several dimensions, or its input is not quantized per tensor", "reshape around it")
    length = x.node.meta["val"].shape[-1]
    epsilon = arithmetic.integer_epsilon(argument(node, "eps"), float(x.scale), length, centre=True)
    name = f"{node.name}_normalized"
    normalized = lowering.call(_qc.normalize.default, x.node, x.zero_point, min(epsilon, _LARGEST_EPSILON), True, "newton", name=name)
    gamma, beta = (_affine(node, which, length, default) for which, default in (("weight", 1.0), ("bias", 0.0)))
    scale = gamma.abs() * math.sqrt(length) * 2.0**-OUTPUT_FRACTION_BITS
    offset = _quantized_offset(lowering, node, beta)

    def rounding(quantized: QuantizedType, low: int, high: int) -> fx.Node:
        bound = lowering.magnitude(IntegerValue(normalized, torch.ones(()), 0, IntegerType(32, signed=True)))
        factors = scale / quantized.scale[0], offset.scale / quantized.scale[0]
        try:
            dyadic = arithmetic.choose_residual(factors[0], bound, factors[1], torch.tensor(INT16.high))
        except VerificationError as error:
            raise VerificationError(f"{describe(node)}: {error}") from error
        multiplier_a = torch.where(gamma < 0, -dyadic.multiplier_a, dyadic.multiplier_a)
        values = (dyadic.pre_shift_a, multiplier_a, dyadic.pre_shift_b, dyadic.multiplier_b)
        names = ("pre_shift_a", "multiplier_a", "pre_shift_b", "multiplier_b")
        parameters = [lowering.constant(f"{node.name}_{name}", value) for name, value in zip(names, values, strict=True)]
        integer, zero_points = quantized.integer, (0, 0, quantized.zero_point[0])
        limits = (low, high, integer.bits, integer.signed)
        operands = (normalized, offset.node, *parameters, dyadic.shift, *zero_points, *limits)
        return lowering.call(_qc.add.default, *operands, name=f"{node.name}_requantized")

    return Unrounded(rounding)


LOWERINGS: dict[object, LoweringFunction] = {
    _aten.matmul.default: matmul,
    _aten.softmax.int: softmax,
    _aten.layer_norm.default: layer_norm,
}


def _affine(node: fx.Node, name: str, length: int, default: float) -> torch.Tensor:
    """gamma or beta, float64 [N]."""
    operand = argument(node, name)
    if operand is None:
        return torch.full((length,), default, dtype=torch.float64)
    value = edit.constant_value(operand)
    if value is None:
        raise unsupported(node, f"its {name} is computed", "use a constant")
    return value.to(torch.float64)


def _quantized_offset(lowering: Lowering, node: fx.Node, beta: torch.Tensor) -> IntegerValue:
    """q_beta and s_beta of the module's formula."""
    largest = float(beta.abs().max())
    scale = torch.tensor(largest / INT16.high if largest > 0 else 1.0, dtype=torch.float64)
    integers = lowering.constant(f"{node.name}_offset", torch.round(beta / scale).to(torch.int16))
    return IntegerValue(integers, scale, 0, INT16)
