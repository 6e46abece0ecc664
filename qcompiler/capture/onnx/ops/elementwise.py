"""Ops that work on each element: arithmetic, activations, comparisons, logic, conversions.

Formulas: https://onnx.ai/onnx/operators. Where stage FLOAT has no op of that meaning, the formula is written with ops that it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.capture.onnx.call import Call
from qcompiler.capture.onnx.minifloats import MINIFLOATS, rounded
from qcompiler.capture.onnx.registry import converter
from qcompiler.capture.onnx.types import dtype_of, traced_dtype

Number = float | int | bool
# As torch.finfo writes it where ONNX says "no bound".
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875

_UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
_COMPARISONS: Mapping[str, Callable[[Any, Any], Tensor]] = {
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
}
_LOGIC: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}
# The other way round, for a number on the left.
_MIRRORED = {"Equal": "Equal", "Greater": "Less", "GreaterOrEqual": "LessOrEqual", "Less": "Greater", "LessOrEqual": "GreaterOrEqual"}


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call.tensor(0))


for _name, _function in _UNARY.items():
    converter(_name)(_unary(_function))


# ---- arithmetic -------------------------------------------------------------------------------------------------------------------


def _pair(call: Call) -> tuple[Any, Any]:
    """The two operands, at most one of them as a number."""
    return call.operand(0), call.operand(1)


@converter("Add")
def add(call: Call) -> Tensor:
    left, right = _pair(call)
    return right + left if isinstance(left, Number) else torch.add(left, right)


@converter("Sub")
def subtract(call: Call) -> Tensor:
    left, right = _pair(call)
    return torch.sub(left, right) if isinstance(left, Tensor) else torch.rsub(right, left)


@converter("Mul")
def multiply(call: Call) -> Tensor:
    left, right = _pair(call)
    return right * left if isinstance(left, Number) else torch.mul(left, right)


@converter("Div")
def divide(call: Call) -> Tensor:
    """Whole numbers are rounded towards zero."""
    left, right = _pair(call)
    whole = not any(isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point()) for value in (left, right))
    if not whole:
        return torch.div(left, right) if isinstance(left, Tensor) else left / call.tensor(1)
    return torch.div(call.tensor(0), call.tensor(1), rounding_mode="trunc")


@converter("Pow")
def power(call: Call) -> Tensor:
    """The result has the type of the base."""
    base, exponent = _pair(call)
    if isinstance(base, Number):
        return torch.pow(base, exponent)
    return torch.pow(base, exponent).to(base.dtype) if not base.is_floating_point() else torch.pow(base, exponent)


@converter("Mod")
def modulo(call: Call) -> Tensor:
    """``fmod=1``: the sign of the dividend, as C; otherwise that of the divisor."""
    if call.flag("fmod"):
        return torch.fmod(call.tensor(0), call.tensor(1))
    return torch.remainder(call.tensor(0), call.tensor(1))


@converter("Sum")
def total(call: Call) -> Tensor:
    return reduce(torch.add, _all(call))


@converter("Mean")
def mean(call: Call) -> Tensor:
    return reduce(torch.add, _all(call)) / len(call)


@converter("Max")
def maximum(call: Call) -> Tensor:
    """With a number it is a bound."""
    x, bound = _bounded(call)
    return reduce(torch.maximum, _all(call)) if bound is None else _clamped(x, bound, None)


@converter("Min")
def minimum(call: Call) -> Tensor:
    """As Max."""
    x, bound = _bounded(call)
    return reduce(torch.minimum, _all(call)) if bound is None else _clamped(x, None, bound)


def _bounded(call: Call) -> tuple[Tensor, Number | None]:
    """The tensor and the number, where one of two operands is a constant of rank 0."""
    if call.folding or len(call) != 2:
        return call.tensor(0), None
    left, right = _pair(call)
    if isinstance(left, Number):
        return call.tensor(1), left
    return left, right if isinstance(right, Number) else None


def _all(call: Call) -> list[Tensor]:
    return [call.tensor(position) for position in range(len(call))]


@converter("BitShift")
def shift(call: Call) -> Tensor:
    left, right = call.tensor(0), call.tensor(1)
    return torch.bitwise_left_shift(left, right) if call.text("direction") == "LEFT" else torch.bitwise_right_shift(left, right)


# ---- activations ------------------------------------------------------------------------------------------------------------------


@converter("LeakyRelu")
def leaky_relu(call: Call) -> Tensor:
    return F.leaky_relu(call.tensor(0), call.real("alpha", 0.01))


@converter("PRelu")
def prelu(call: Call) -> Tensor:
    """A slope for each channel is torch's op; slopes that broadcast otherwise are written out: max(x, 0) + slope * min(x, 0)."""
    x, slope = call.tensor(0), call.tensor(1)
    if slope.numel() == 1:
        return F.prelu(x, slope.reshape(1))
    if x.ndim >= 2 and slope.ndim == x.ndim - 1 and slope.shape[0] == slope.numel() == x.shape[1]:
        return F.prelu(x, slope.reshape(-1))
    return torch.relu(x) - slope * torch.relu(-x)


@converter("Elu")
def elu(call: Call) -> Tensor:
    return F.elu(call.tensor(0), call.real("alpha", 1.0))


@converter("Celu")
def celu(call: Call) -> Tensor:
    """max(x, 0) + min(0, alpha (exp(x / alpha) - 1))."""
    x, alpha = call.tensor(0), call.real("alpha", 1.0)
    return F.elu(x / alpha) * alpha


@converter("Selu")
def selu(call: Call) -> Tensor:
    x, alpha, gamma = call.tensor(0), call.real("alpha", _SELU_ALPHA), call.real("gamma", _SELU_GAMMA)
    return F.elu(x, alpha) * gamma


@converter("ThresholdedRelu")
def thresholded_relu(call: Call) -> Tensor:
    x = call.tensor(0)
    return torch.where(x > call.real("alpha", 1.0), x, 0.0)


@converter("Shrink")
def shrink(call: Call) -> Tensor:
    """x + bias below -lambd, x - bias above lambd, 0 between."""
    x, bias, lambd = call.tensor(0), call.real("bias"), call.real("lambd", 0.5)
    zero = torch.where(x > lambd, x - bias, 0)
    return torch.where(x < -lambd, x + bias, zero).to(x.dtype)


@converter("HardSigmoid")
def hard_sigmoid(call: Call) -> Tensor:
    """clamp(alpha x + beta, 0, 1); torch's op is the one with alpha 1/6 and beta 1/2."""
    x, alpha, beta = call.tensor(0), call.real("alpha", 0.2), call.real("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


@converter("Softplus")
def softplus(call: Call) -> Tensor:
    return F.softplus(call.tensor(0))


@converter("Softsign")
def softsign(call: Call) -> Tensor:
    x = call.tensor(0)
    return x / (torch.abs(x) + 1)


@converter("Swish")
def swish(call: Call) -> Tensor:
    x, alpha = call.tensor(0), call.real("alpha", 1.0)
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(x * alpha)


@converter("Gelu")
@converter("Gelu", domain="com.microsoft")
def gelu(call: Call) -> Tensor:
    return F.gelu(call.tensor(0), approximate=call.text("approximate", "none"))


@converter("FastGelu", domain="com.microsoft")
def fast_gelu(call: Call) -> Tensor:
    x, bias = call.tensor(0), call.optional(1)
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@converter("QuickGelu", domain="com.microsoft")
def quick_gelu(call: Call) -> Tensor:
    x = call.tensor(0)
    return x * torch.sigmoid(x * call.real("alpha", 1.702))


@converter("Clip", since=1)
def clip_attributes(call: Call) -> Tensor:
    return _clamped(call.tensor(0), call.attribute("min"), call.attribute("max"))


@converter("Clip", since=11)
def clip(call: Call) -> Tensor:
    """max(min(x, high), low) order: where low exceeds high the result is high."""
    x = call.tensor(0)
    bounds = [call.number(i) if call.is_constant(i) else None for i in (1, 2)]
    if all(bound is not None or not call.has(i) for i, bound in zip((1, 2), bounds, strict=True)):
        return _clamped(x, *bounds)
    x = torch.maximum(x, call.tensor(1)) if call.has(1) else x
    return torch.minimum(x, call.tensor(2)) if call.has(2) else x


def _clamped(x: Tensor, low: Number | None, high: Number | None) -> Tensor:
    low = None if low is not None and x.is_floating_point() and low <= torch.finfo(x.dtype).min else low
    high = None if high is not None and x.is_floating_point() and high >= torch.finfo(x.dtype).max else high
    return x if low is None and high is None else torch.clamp(x, low, high)


# ---- comparisons and logic --------------------------------------------------------------------------------------------------------


@converter(*_COMPARISONS)
def compare(call: Call) -> Tensor:
    left, right = _pair(call)
    if isinstance(left, Number):
        return _COMPARISONS[_MIRRORED[call.node.op_type]](right, left)
    return _COMPARISONS[call.node.op_type](left, right)


@converter(*_LOGIC)
def logic(call: Call) -> Tensor:
    return _LOGIC[call.node.op_type](call.tensor(0), call.tensor(1))


@converter("IsInf")
def is_infinite(call: Call) -> Tensor:
    x, negative, positive = call.tensor(0), call.flag("detect_negative", True), call.flag("detect_positive", True)
    if negative and positive:
        return torch.isinf(x)
    if not negative and not positive:
        return torch.zeros_like(x, dtype=torch.bool)
    return x == (math.inf if positive else -math.inf)


@converter("Where")
def where(call: Call) -> Tensor:
    condition, left, right = call.tensor(0), call.operand(1), call.operand(2)
    if isinstance(left, Number) and isinstance(right, Number):
        return torch.where(condition, call.tensor(1), call.tensor(2))
    return torch.where(condition, left, right)


# ---- conversions ------------------------------------------------------------------------------------------------------------------


@converter("Cast")
def cast(call: Call) -> Tensor:
    """Floats of 16 bits and more are float32 in a program, those of 8 and 4 bits float32 that is rounded to them; constants keep their
    type until the program reads them.
    """
    kind = MINIFLOATS.get(call.integer("to"))
    if kind is not None and not call.folding and call.tensor(0).is_floating_point():
        return rounded(call.tensor(0), kind, call.flag("saturate", True))
    dtype = dtype_of(call.integer("to"), f"the result of node {call.node.label}")
    return _converted(call, dtype)


@converter("CastLike")
def cast_like(call: Call) -> Tensor:
    return _converted(call, call.tensor(1).dtype)


def _converted(call: Call, dtype: torch.dtype) -> Tensor:
    x = call.tensor(0)
    dtype = dtype if call.folding else traced_dtype(dtype)
    if x.is_floating_point() and dtype is torch.bool:
        return x != 0
    return x if x.dtype is dtype else x.to(dtype)


@converter("Identity")
def identity(call: Call) -> Any:
    return call.value(0) if not call.folding and not isinstance(call.value(0), Tensor) else call.tensor(0)


@converter("Dropout")
def dropout(call: Call) -> tuple[Tensor, ...]:
    """At inference nothing is dropped; the mask is all true."""
    if call.has(2) and bool(call.number(2)) and (not call.has(1) or call.number(1) != 0):
        raise call.fail("is in training mode: export the model for inference")
    x = call.tensor(0)
    return (x, torch.ones_like(x, dtype=torch.bool)) if len(call.node.outputs) > 1 else (x,)
