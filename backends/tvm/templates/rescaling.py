"""``qc::requantize`` of int32 lanes in registers, forms ``high`` and ``narrow`` (``arithmetic.requantize``)."""

from __future__ import annotations

import numpy as np
from tvm.tirx.script import builder as T

from qcompiler.arithmetic import DYADIC_PARAMETERS
from qcompiler.backends.tvm.kernels import Requantize
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates import vectors as v
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.layout import Parameter

_WORD = (-(2**15), 2**15 - 1)


def rounding_parameters(prefix: str) -> list[Parameter]:
    """The operands of a requantization per tensor."""
    return [Parameter(f"{prefix}{name}", "int32", 1) for name in DYADIC_PARAMETERS]


def shared_parameters(buffers: dict[str, Buffer], lanes: int) -> tuple[Expr, ...]:
    """Pre-shift, multiplier and shift that all channels share, in all lanes."""
    return tuple(v.splat(T.Bind(buffers[name][0]), lanes) for name in DYADIC_PARAMETERS)


def requantized(value: Expr, operation: Requantize, parameters: tuple[Expr, ...]) -> Expr:
    """``clamp(round((value - input_zero_point) * factor) + zero_point)`` as int32 lanes."""
    pre_shift, multiplier, shift = parameters
    value = centred(value, operation.input_zero_point)
    if operation.form == "high":
        scaled = v.multiply_halves(T.Bind(T.shift_left(value, pre_shift)), multiplier)
    else:
        word = v.clamp(_rounding_shift(value, pre_shift), *_WORD)
        scaled = T.Bind(T.shift_right(T.Bind(word * multiplier + v.like(word, 1 << 14)), v.like(word, 15)))
    return saturated(_rounding_shift(scaled, shift), operation.zero_point, operation.low, operation.high)


def word_parameters(buffers: dict[str, Buffer], lanes: int) -> tuple[Expr, ...]:
    """The same for ``narrow_bytes``: pre-shift of ``lanes`` numbers, multiplier and ``2^(15 - shift)`` of twice as many words.

    A shift of 0 gets ``2^15 - 1``, which is off by one beyond 2^14, where 8 bits end long before; a shift past 15 leaves nothing, factor 0.
    """
    pre_shift, multiplier, shift = (T.Bind(buffers[name][0]) for name in DYADIC_PARAMETERS)
    power = T.Bind(T.shift_left(T.int32(1), T.max(15 - shift, 0)))
    factor = T.Bind(T.Select(shift > 15, T.int32(0), T.min(power, _WORD[1])))
    return v.splat(pre_shift, lanes), *(v.splat(T.Bind(T.Cast("int16", each)), 2 * lanes) for each in (multiplier, factor))


def narrow_bytes(low: Expr, high: Expr, operation: Requantize, parameters: tuple[Expr, ...]) -> Expr:
    """Form ``narrow`` of two vectors, in words, as numbers of 8 bits: vpmulhrsw by ``2^(15 - s)`` is its rounding shift by s."""
    pre_shift, multiplier, factor = parameters
    shifted = [_rounding_shift(centred(value, operation.input_zero_point), pre_shift) for value in (low, high)]
    # vpackssdw takes four of one vector and four of the other, by turns.
    natural = np.arange(2 * e.lanes(low)).reshape(-1, 2, 4).transpose(1, 0, 2).reshape(-1)
    word = e.multiply_high_round(e.pick(e.pack_words(*shifted), natural), multiplier)
    scaled = e.multiply_high_round(word, factor)
    if not e.is_zero(operation.zero_point):
        scaled = e.add_saturating(scaled, v.like(scaled, operation.zero_point))
    return v.clamp(scaled, operation.low, operation.high)


def saturated(value: Expr, zero_point: Expr, low: Expr, high: Expr) -> Expr:
    """``clamp(value + zero_point)`` without leaving int32: the bounds move instead of the value, which may be anything."""
    bounded = v.clamp(value, *e.centred_bounds(low, high, zero_point))
    return bounded if e.is_zero(zero_point) else T.Bind(bounded + v.like(bounded, zero_point))


def centred(value: Expr, zero_point: Expr) -> Expr:
    """Less the zero point; no instruction where that is 0."""
    return value if e.is_zero(zero_point) else T.Bind(value - v.like(value, zero_point))


def _rounding_shift(value: Expr, shift: Expr) -> Expr:
    """``(value + 2^(shift - 1)) >> shift``; a shift of 0 has no rounding term."""
    one = v.like(value, 1)
    return T.Bind(T.shift_right(T.Bind(value + T.shift_right(T.shift_left(one, shift), one)), shift))
