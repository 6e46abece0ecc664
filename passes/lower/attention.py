r"""What transformers add to convolutional networks: products of two activations, softmax, LayerNorm, RMSNorm, L2 normalization.

LayerNorm of a row of N values with scale gamma and offset beta, from the normalized integers y of ``qc.normalize``, of step u::

    gamma (x - mean) / sqrt(variance + epsilon) + beta  =  y sqrt(N) u gamma  +  s_beta q_beta

One ``qc.add`` computes the right side with one rounding: operand a is y with the multiplier of ``sqrt(N) u gamma / s`` for each
channel, negative where gamma is, operand b the constant ``q_beta = rint(beta / s_beta)`` of 24 bits. Nothing is divided by gamma, also not
for the forms of I-ViT and I-BERT, whose papers add ``floor(beta / gamma / (sqrt(N) u))`` to y: that differs by less than a step of y, and
does not exist where gamma is 0. RMSNorm has no mean; L2 normalization neither sqrt(N) nor an affine part.
"""

from __future__ import annotations

import math
from dataclasses import fields

import torch
from torch import fx

from qcompiler import arithmetic
from qcompiler.errors import VerificationError
from qcompiler.ir import edit
from qcompiler.ir.edit import argument
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import INT32, IntegerType, QuantizedType, probability_type
from qcompiler.passes.lower.lowering import (
    IntegerValue,
    Lowering,
    LoweringFunction,
    Masked,
    OwnScale,
    Unrounded,
    Value,
    unsupported,
)

_aten, _qc = torch.ops.aten, torch.ops.qc

_BYTE, _WIDE = 8, 16
_LARGEST_OFFSET = (1 << 23) - 1  # a step of 16 bits would be up to 0.004 of a step of the result


def matmul(lowering: Lowering, node: fx.Node) -> Value:
    """``s_a (q_a - z_a) @ s_b (q_b - z_b)``: an exact int32 product of scale ``s_a s_b``."""
    a, b = (lowering.activation(argument(node, name), bits=_WIDE) for name in ("self", "other"))
    if min(a.node.meta["val"].ndim, b.node.meta["val"].ndim) < 2:
        raise unsupported(node, "an operand is a vector", "reshape it to a matrix")
    product = lowering.call(_qc.matmul.default, a.node, b.node, a.zero_point, b.zero_point, name=f"{node.name}_accumulator")
    return lowering.accumulator(product, a.scale * b.scale)


def softmax(lowering: Lowering, node: fx.Node) -> Value:
    """Over the last dimension, to unsigned integers whose largest is 1; a paper's form to as many bits and the scale that it has."""
    x, drop = _scores(lowering, node)
    if argument(node, "dim") not in (-1, x.node.meta["val"].ndim - 1):
        raise unsupported(node, f"it runs over dimension {argument(node, 'dim')}, not the last", "permute the values around it")
    form = _softmax_form(lowering, x)
    try:
        table, constants = arithmetic.softmax_parameters(form, float(x.scale))
    except VerificationError as error:
        raise VerificationError(f"{describe(node)}: {error}") from error
    own_rounding = form in arithmetic.PAPER_FORMS
    entries = None if table is None else lowering.constant(f"{node.name}_exponentials", table)
    keep = None if drop is None else lowering.call(_aten.logical_not.default, drop, name=f"{node.name}_keep")

    def probabilities(bits: int) -> fx.Node:
        how = () if own_rounding else (lowering.functions.rounding,)
        return lowering.call(_qc.softmax.default, x.node, entries, keep, form, constants, bits, *how, name=f"{node.name}_integers")

    def fine() -> IntegerValue:
        """With all bits that the form has."""
        bits = arithmetic.most_probability_bits(form)
        if bits <= _WIDE:
            return lowering.rounded(probabilities(bits), probability_type(bits))
        return IntegerValue(probabilities(bits), torch.tensor(arithmetic.softmax_scale(form, bits), dtype=torch.float64), 0, INT32)

    if own_rounding:
        bits = _bits_of_reader(node, x.integer.bits)
        quantized = QuantizedType(IntegerType(bits, signed=False), (arithmetic.softmax_scale(form, bits),))
        value = lowering.rounded(probabilities(bits), quantized)
        return OwnScale(*(getattr(value, field.name) for field in fields(value)))

    def rounding(quantized: QuantizedType, low: int, high: int) -> fx.Node:
        bits = quantized.integer.bits
        plain = (low, high) == (0, (1 << bits) - 1) and quantized.zero_point == (0,)
        if plain and quantized.scale == probability_type(bits).scale:
            return probabilities(bits)
        return lowering.requantize(fine(), quantized, low, high)

    return Unrounded(rounding)


def layer_norm(lowering: Lowering, node: fx.Node) -> Value:
    """Over the last dimension; see the module's formula."""
    return _normalized(lowering, node, centre=True, epsilon=argument(node, "eps"))


def rms_norm(lowering: Lowering, node: fx.Node) -> Value:
    """``gamma x / sqrt(mean(x^2) + epsilon)`` over the last dimension."""
    epsilon = argument(node, "eps")
    return _normalized(lowering, node, centre=False, epsilon=torch.finfo(torch.float32).eps if epsilon is None else epsilon)


def l2_normalize(lowering: Lowering, node: fx.Node) -> Value:
    """``x / max(norm(x), epsilon)`` over the last dimension: rows of integers that are not 0 have a norm of a step at least."""
    x = _rows(lowering, node, argument(node, "x"))
    if argument(node, "eps") > float(x.scale):
        raise unsupported(node, f"its eps is more than the step {float(x.scale):.3g} of its input", "use a smaller eps")
    form = lowering.functions.normalize
    normalized = lowering.call(_qc.normalize.default, x.node, x.zero_point, 0, False, form, name=f"{node.name}_normalized")
    unit = arithmetic.normalized_scale(form, x.node.meta["val"].shape[-1], centre=False)
    return lowering.round_accumulator(IntegerValue(normalized, torch.tensor(unit, dtype=torch.float64), 0, INT32))


LOWERINGS: dict[object, LoweringFunction] = {
    _aten.matmul.default: matmul,
    _aten.softmax.int: softmax,
    _aten.layer_norm.default: layer_norm,
    _aten.rms_norm.default: rms_norm,
    _qc.l2_normalize.default: l2_normalize,
}


def _scores(lowering: Lowering, node: fx.Node) -> tuple[IntegerValue, fx.Node | None]:
    """What a softmax reads, with one scale and as many bits as its form takes, and the mask of what it leaves out."""
    operand = argument(node, "self")
    value = lowering.values.get(operand)
    masked = value if isinstance(value, Masked) else None
    scores = masked.scores if masked is not None else lowering.integers(operand)
    form = _softmax_form(lowering, scores)
    most = _BYTE if form in arithmetic.TABLE_FORMS else _WIDE
    if scores.integer.bits > most or scores.scale.numel() != 1:
        advice = "quantize them to 8 bits, or lower with softmax=poly" if most == _BYTE else "quantize them to 16 bits at most"
        raise unsupported(node, f"its scores are {scores.integer} and form '{form}' takes {most} bits of one scale", advice)
    return scores, masked.drop if masked is not None else None


def _softmax_form(lowering: Lowering, scores: IntegerValue) -> str:
    form = lowering.functions.softmax
    return form if form != "auto" else "wide-table" if scores.integer.bits <= _BYTE else "poly"


def _bits_of_reader(node: fx.Node, default: int) -> int:
    """Bits that the QDQ graph rounds the value to."""
    widths = [argument(user, "bits") for user in node.users if user.target is _qc.quantize.default]
    return max(widths, default=default)


def _rows(lowering: Lowering, node: fx.Node, operand: fx.Node) -> IntegerValue:
    x = lowering.integers(operand)
    if x.scale.numel() != 1 or x.is_accumulator:
        raise unsupported(node, "its input is not quantized per tensor", "quantize it to 16 bits with one scale")
    return x


def _normalized(lowering: Lowering, node: fx.Node, centre: bool, epsilon: float) -> Value:
    if len(argument(node, "normalized_shape")) != 1:
        raise unsupported(node, "it runs over several dimensions", "reshape around it")
    x, form = _rows(lowering, node, argument(node, "input")), lowering.functions.normalize
    length = x.node.meta["val"].shape[-1]
    rounded = arithmetic.integer_epsilon(epsilon, float(x.scale), length, centre) if form == "newton" else 0
    name = f"{node.name}_normalized"
    normalized = lowering.call(_qc.normalize.default, x.node, x.zero_point, rounded, centre, form, name=name)
    gamma = _affine(node, "weight", length, 1.0)
    slope = gamma * math.sqrt(length) * arithmetic.normalized_scale(form, length, centre)
    beta = _affine(node, "bias", length, 0.0) if centre else torch.zeros(length, dtype=torch.float64)
    return _affine_rounding(lowering, node, normalized, slope, beta)


def _affine_rounding(lowering: Lowering, node: fx.Node, normalized: fx.Node, slope: torch.Tensor, beta: torch.Tensor) -> Unrounded:
    """``normalized * slope + beta`` for each channel, rounded once."""
    offset = _quantized_offset(lowering, node, beta)

    def rounding(quantized: QuantizedType, low: int, high: int) -> fx.Node:
        bound = lowering.magnitude(IntegerValue(normalized, torch.ones(()), 0, INT32))
        factors = slope.abs() / quantized.scale[0], offset.scale / quantized.scale[0]
        try:
            dyadic = arithmetic.choose_residual(factors[0], bound, factors[1], torch.tensor(_LARGEST_OFFSET))
        except VerificationError as error:
            raise VerificationError(f"{describe(node)}: {error}") from error
        multiplier_a = torch.where(slope < 0, -dyadic.multiplier_a, dyadic.multiplier_a)
        values = (dyadic.pre_shift_a, multiplier_a, dyadic.pre_shift_b, dyadic.multiplier_b)
        names = ("pre_shift_a", "multiplier_a", "pre_shift_b", "multiplier_b")
        parameters = [lowering.constant(f"{node.name}_{name}", value) for name, value in zip(names, values, strict=True)]
        integer, zero_points = quantized.integer, (0, 0, quantized.zero_point[0])
        limits = (low, high, integer.bits, integer.signed)
        operands = (normalized, offset.node, *parameters, dyadic.shift, *zero_points, *limits)
        return lowering.call(_qc.add.default, *operands, name=f"{node.name}_requantized")

    return Unrounded(rounding)


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
    largest = float(beta.abs().max()) or 1.0
    scale = torch.tensor(largest / _LARGEST_OFFSET, dtype=torch.float64)
    integers = lowering.constant(f"{node.name}_offset", torch.round(beta / scale).to(torch.int32))
    return IntegerValue(integers, scale, 0, INT32)
