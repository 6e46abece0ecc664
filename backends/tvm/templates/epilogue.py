"""From int32 accumulators to stored outputs: requantization, residual add, zero point, clamp, table.

The formulas are those of ``qcompiler.arithmetic``; this module only says with which instructions they are computed. On the way to
an 8-bit output values saturate to 16 bits: adding the zero point with saturation and clamping then gives what unbounded integers give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tvm.tirx.script import builder as T

from qcompiler.backends.tvm.kernels import Activation, ConvolutionKernel, Requantization, ResidualAdd
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.layout import Chunk, is_wide

_INT32 = (-(2**31), 2**31 - 1)
_INT16 = (-(2**15), 2**15 - 1)
_TABLE_VECTOR = 64


@dataclass(frozen=True)
class Place:
    """Where a chunk of sums belongs: output pixel, first channel, and first entry in the packed parameters."""

    row: Expr
    column: Expr
    channel: Expr
    offset: Expr


def position(activation: Activation, row: Expr, column: Expr) -> Expr:
    """Index in the buffer of the first channel of a pixel."""
    return activation.origin + row * activation.row_stride + column * activation.pixel_stride


class Epilogue:
    """Turns sums into outputs. ``buffers`` holds output, residual operand and ``layout.epilogue_parameters`` by their names."""

    def __init__(self, kernel: ConvolutionKernel, buffers: Mapping[str, Buffer], permutes_bytes: bool) -> None:
        self._output = kernel.output
        self._epilogue: Requantization | ResidualAdd | None = e.resolved(kernel.epilogue, buffers)
        self._wide = is_wide(kernel)
        self._table = kernel.table
        self._buffers = buffers
        self._permutes_bytes = permutes_bytes

    def store(self, sums: Sequence[Expr], chunk: Chunk, place: Place) -> None:
        """Store the vectors of a chunk, its channels that exist and nothing else."""
        at = T.Bind(position(self._output, place.row, place.column) + place.channel)
        self.store_at(sums, chunk, place, at)

    def store_at(self, sums: Sequence[Expr], chunk: Chunk, place: Place, at: Expr) -> None:
        """The same, to element ``at`` of the output's buffer."""
        store = self._store_wide if self._wide else self._store_bytes
        store(sums, chunk, place, at)

    def packed_bytes(self, sums: Sequence[Expr], chunk: Chunk, place: Place) -> Expr:
        """What is stored of a chunk with an 8-bit output and no table, as int8 lanes."""
        return self._bytes(self._words(sums, chunk, place))

    def _store_wide(self, sums: Sequence[Expr], chunk: Chunk, place: Place, at: Expr) -> None:
        if self._packs_words(chunk):
            e.store_first(self._buffers["output"], at, self._packed_words(sums, chunk, place), chunk.valid)
            return
        values = sums if self._epilogue is None else [self._clamped(value) for value in self._scaled(sums, chunk, place)]
        narrowed = [e.cast(value, self._output.dtype) for value in values]
        natural = narrowed[0] if len(narrowed) == 1 else e.shuffle(narrowed, np.argsort(chunk.accumulator_order))
        e.store_first(self._buffers["output"], at, natural, chunk.valid)

    def _packs_words(self, chunk: Chunk) -> bool:
        """Whether vpackssdw makes the outputs: int16 without a zero point, of which saturation is the outer part of the clamp."""
        return self._output.dtype == "int16" and chunk.vectors == 2 and self._epilogue is not None and e.is_zero(self._epilogue.zero_point)

    def _packed_words(self, sums: Sequence[Expr], chunk: Chunk, place: Place) -> Expr:
        assert self._epilogue is not None  # by _packs_words
        return _clamp(e.pack_words(*self._scaled(sums, chunk, place)), self._epilogue.low, self._epilogue.high)

    def _clamped(self, value: Expr) -> Expr:
        """``clamp(value + zero_point)`` without leaving int32: the bounds move instead of the value."""
        assert self._epilogue is not None
        zero_point = self._epilogue.zero_point
        bounded = _clamp(value, *e.centred_bounds(self._epilogue.low, self._epilogue.high, zero_point))
        return T.Bind(bounded + e.constant(zero_point, "int32", e.lanes(value)))

    def _store_bytes(self, sums: Sequence[Expr], chunk: Chunk, place: Place, at: Expr) -> None:
        result = self._bytes(self._words(sums, chunk, place))
        if self._table and self._permutes_bytes:
            result = self._look_up(result)
        e.store_first(self._buffers["output"], at, result, chunk.valid)
        if self._table and not self._permutes_bytes:
            self._look_up_in_place(at, chunk.valid)

    def _words(self, sums: Sequence[Expr], chunk: Chunk, place: Place) -> list[Expr]:
        """The values before zero point and clamp, as saturated int16."""
        if isinstance(self._epilogue, Requantization) and self._epilogue.form == "narrow":
            return self._narrow_words(sums, place)
        return _join_words(self._scaled(sums, chunk, place))

    def _narrow_words(self, sums: Sequence[Expr], place: Place) -> list[Expr]:
        """Form narrow on int16: vpmulhrsw by ``2^(15 - s)`` is its rounding shift by s."""
        shifted = [T.Bind(T.shift_right(total, self._lane("pre_shift", place.offset, i, total))) for i, total in enumerate(sums)]
        result = []
        for index, word in enumerate(_join_words(shifted)):
            offset, count = place.offset + index * e.lanes(word), e.lanes(word)
            product = e.multiply_high_round(word, e.load(self._buffers["multiplier"], offset, count))
            result.append(e.multiply_high_round(product, e.load(self._buffers["rescale"], offset, count)))
        return result

    def _bytes(self, words: Sequence[Expr]) -> Expr:
        assert self._epilogue is not None
        low, high, unsigned = self._epilogue.low, self._epilogue.high, self._output.dtype == "uint8"
        if not e.is_zero(self._epilogue.zero_point):
            words = [e.add_saturating(word, e.constant(self._epilogue.zero_point, "int16", e.lanes(word))) for word in words]
        if len(words) == 1:
            return e.reinterpret(e.cast(_clamp(words[0], low, high), self._output.dtype), "int8")
        packed = e.reinterpret(e.pack_bytes(words[0], words[1], unsigned), self._output.dtype)
        return e.reinterpret(_clamp(packed, low, high), "int8")

    def _look_up(self, indices: Expr) -> Expr:
        """256 entries are two vpermi2b and a choice by the sign bit."""
        count = e.lanes(indices)
        full = indices if count == _TABLE_VECTOR else e.shuffle([indices] * (_TABLE_VECTOR // count), range(_TABLE_VECTOR))
        quarters = [e.load(self._buffers["table"], start, _TABLE_VECTOR) for start in range(0, 256, _TABLE_VECTOR)]
        low = e.permute_bytes(quarters[0], full, quarters[1])
        high = e.permute_bytes(quarters[2], full, quarters[3])
        found = T.Bind(T.Select(full < e.constant(0, "int8", _TABLE_VECTOR), high, low))
        return found if count == _TABLE_VECTOR else e.pick(found, range(count))

    def _look_up_in_place(self, at: Expr, count: int) -> None:
        output = self._buffers["output"]
        with T.serial(0, count) as i:
            index = T.Bind(T.cast(T.cast(output[at + i], "uint8"), "int32"))
            T.buffer_store(output, self._buffers["table"][index], [at + i])

    # int32 values before zero point and clamp

    def _scaled(self, sums: Sequence[Expr], chunk: Chunk, place: Place) -> list[Expr]:
        if isinstance(self._epilogue, ResidualAdd):
            operands = self._operands(self._epilogue, chunk, place)
            return [
                self._residual(self._epilogue, total, operand, place, i)
                for i, (total, operand) in enumerate(zip(sums, operands, strict=True))
            ]
        assert self._epilogue is not None
        scale = {"high": self._high, "narrow": self._narrow, "exact64": self._exact64}[self._epilogue.form]
        return [scale(total, place, i) for i, total in enumerate(sums)]

    def _high(self, total: Expr, place: Place, index: int) -> Expr:
        high = self._high_half(total, place, index)
        return self._rounded_shift(high, place, index)

    def _high_half(self, total: Expr, place: Place, index: int) -> Expr:
        """``((total << pre_shift) * multiplier) >> 32``."""
        shifted = T.Bind(T.shift_left(total, self._lane("pre_shift", place.offset, index, total)))
        return e.join_high_halves(*self._products(shifted, place, index))

    def _products(self, value: Expr, place: Place, index: int) -> tuple[Expr, Expr]:
        even, odd = self._halves("multiplier", place, index, value)
        return T.Bind(e.even_lanes(value) * e.sign_extended(even)), T.Bind(e.odd_lanes(value) * e.sign_extended(odd))

    def _rounded_shift(self, value: Expr, place: Place, index: int) -> Expr:
        rounding, shift = (self._lane(name, place.offset, index, value) for name in ("rounding", "shift"))
        return T.Bind(T.shift_right(value + rounding, shift))

    def _narrow(self, total: Expr, place: Place, index: int) -> Expr:
        """Form narrow in int32 lanes, for outputs that do not fit 8 bits."""
        count = e.lanes(total)
        word = T.Bind(_clamp(T.Bind(T.shift_right(total, self._lane("pre_shift", place.offset, index, total))), *_INT16))
        product = T.Bind(word * self._lane("multiplier", place.offset, index, total) + e.constant(2**14, "int32", count))
        return self._rounded_shift(T.Bind(T.shift_right(product, e.constant(15, "int32", count))), place, index)

    def _exact64(self, total: Expr, place: Place, index: int) -> Expr:
        assert self._epilogue is not None
        low, high = e.centred_bounds(self._epilogue.low, self._epilogue.high, self._epilogue.zero_point)
        roundings, shifts = (self._halves(name, place, index, total) for name in ("rounding", "shift"))
        products = self._products(total, place, index)
        shifted = [T.Bind(T.shift_right(a + b, c)) for a, b, c in zip(products, roundings, shifts, strict=True)]
        return e.join_low_halves(*(T.Bind(_clamp(value, low, high)) for value in shifted))

    def _residual(self, epilogue: ResidualAdd, total: Expr, operand: Expr, place: Place, index: int) -> Expr:
        count = e.lanes(total)
        centred = T.Bind(operand - e.constant(epilogue.operand_zero_point, "int32", count))
        shifted = T.Bind(T.shift_left(centred, e.load(self._buffers["operand_pre_shift"], 0, count)))
        multiplier = e.sign_extended(e.load(self._buffers["operand_multiplier"], 0, count // 2))
        other = e.join_high_halves(T.Bind(e.even_lanes(shifted) * multiplier), T.Bind(e.odd_lanes(shifted) * multiplier))
        rounding = e.constant(e.half(epilogue.shift), "int32", count)
        both = T.Bind(self._high_half(total, place, index) + other + rounding)
        return T.Bind(T.shift_right(both, e.constant(e.amount(epilogue.shift), "int32", count)))

    def _operands(self, epilogue: ResidualAdd, chunk: Chunk, place: Place) -> list[Expr]:
        """The other feature map's values in the order of the accumulators."""
        at = position(epilogue.operand, place.row, place.column) + place.channel
        natural = e.load(self._buffers["operand"], at, chunk.channels)
        words = _operand_words(natural, chunk)
        if words:
            return [value for word in words for value in _unpack_words(word)]
        orders = chunk.accumulator_order.reshape(chunk.vectors, chunk.lanes)
        return [e.cast(e.pick(natural, order), "int32") for order in orders]

    # parameters

    def _lane(self, name: str, offset: Expr, index: int, like: Expr) -> Expr:
        count = e.lanes(like)
        return e.load(self._buffers[name], offset + index * count, count)

    def _halves(self, name: str, place: Place, index: int, like: Expr) -> tuple[Expr, Expr]:
        """int64 parameters: those of a vector's even lanes, then those of the odd ones."""
        count = e.lanes(like)
        start, half = place.offset + index * count, count // 2
        return e.load(self._buffers[name], start, half), e.load(self._buffers[name], start + half, half)


def _operand_words(natural: Expr, chunk: Chunk) -> list[Expr]:
    """A residual operand as int16 whose punpckl/hwd give the order of a chunk's accumulators; empty where there is no short way to it."""
    element = str(natural.ty.dtype).split("x")[0]
    if chunk.vectors == 2 and element != "int32":
        return [e.cast(natural, "int16")]
    if chunk.vectors == 4 and element in ("int8", "uint8"):
        # Each byte on top of its word, then shifted down with its sign or without.
        tops = [e.interleave(e.constant(0, "int8", e.lanes(natural)), e.reinterpret(natural, "int8"), half) for half in (0, 1)]
        wide = "int16" if element == "int8" else "uint16"
        down = [T.Bind(T.shift_right(e.reinterpret(top, wide), e.constant(8, wide, e.lanes(top) // 2))) for top in tops]
        return [e.reinterpret(word, "int16") for word in down]
    return []


def _unpack_words(word: Expr) -> list[Expr]:
    """Two vectors of int32 from one of int16, by halves of its 128-bit lanes."""
    tops = [e.reinterpret(e.interleave(e.constant(0, "int16", e.lanes(word)), word, half), "int32") for half in (0, 1)]
    return [T.Bind(T.shift_right(top, e.constant(16, "int32", e.lanes(top)))) for top in tops]


def _join_words(values: Sequence[Expr]) -> list[Expr]:
    if len(values) == 1:
        return [e.cast(T.Bind(_clamp(values[0], *_INT16)), "int16")]
    return [e.pack_words(low, high) for low, high in zip(values[::2], values[1::2], strict=True)]


def _clamp(vector: Expr, low: Expr, high: Expr) -> Expr:
    """Bounds that the element type is known to imply cost nothing."""
    element = str(vector.ty.dtype).split("x")[0]
    limits = np.iinfo(element)
    count = e.lanes(vector)
    if not isinstance(low, int) or low > limits.min:
        vector = T.Bind(T.max(vector, e.constant(low, element, count)))
    if not isinstance(high, int) or high < limits.max:
        vector = T.Bind(T.min(vector, e.constant(high, element, count)))
    return vector
