"""Attention as one kernel: scores, softmax by table and the product with the values, block of queries by block of queries.

A thread packs the keys and values of a head once (``product.Right``). A block of queries then goes through three phases whose intermediate
results stay in the first-level cache: scores are summed in registers, rounded to 8 bits and stored; each row of them becomes
probabilities; these are the left operand of the second product.

A row's probabilities are those of ``arithmetic.softmax``, which this module computes in 16-bit lanes. With e < 2^15, y <= 2^15 + 2 and
u = (e y) >> 15 <= 2^15, shifted by s = b - 1 >= 14 (the table starts at 2^14 at least)::

    u                                = vpmulhuw(2 e, y)
    (u L + 2^(s-1)) >> s             = ((u L >> 8) + 2^(s-9)) >> (s - 8)              floors nest, and 2^8 divides 2^(s-1)
                                     = vpmulhrsw(vpmulhuw(u, 2^8 L), 2^(23-s))        0 instead of the factor for s > 23

The last one is exact because u L < 2^23. Exponentials come from two byte tables by vpermi2b, on AVX2 from memory one by one.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.tirx.script import builder as T

from qcompiler.arithmetic.softmax import RECIPROCAL_START, RECIPROCAL_STEPS, TABLE_ENTRIES
from qcompiler.backends.tvm.kernels import AttentionKernel, maximum
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates import vectors as v
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.epilogue import Place
from qcompiler.backends.tvm.templates.layout import Chunk, Parameter, chunks
from qcompiler.backends.tvm.templates.product import (
    Blocks,
    Index,
    Left,
    Multiplier,
    Right,
    Rounding,
    Source,
    Start,
    Store,
    Zeros,
    addition_parameters,
    stored,
)
from qcompiler.backends.tvm.templates.product_layout import Scheme, block_rows, row_tile, scheme
from qcompiler.backends.tvm.templates.rescaling import rounding_parameters

_PROBABILITY_SHIFT = 23
_BYTE_LANES = {16: 64, 8: 16}  # scores that are worked on together, by the int32 lanes of a vector


def emit(kernel: AttentionKernel, target: str) -> tirx.PrimFunc:
    """The kernel's function."""
    sizes = v.Sizes(kernel)
    batch = kernel.batch
    parameters = [
        v.parameter("q", kernel.q, (*batch, kernel.queries, kernel.depth)),
        v.parameter("k", kernel.k, (*batch, kernel.keys, kernel.depth)),
        v.parameter("v", kernel.v, (*batch, kernel.keys, kernel.value_depth)),
        *_score_parameters(kernel),
        Parameter("table", "int32", TABLE_ENTRIES),
        *([v.parameter("mask", stored(kernel.mask), (*batch, kernel.queries, kernel.keys))] if kernel.mask is not None else []),
        *rounding_parameters("result_"),
        v.parameter("output", stored(kernel.output), (*batch, kernel.queries, kernel.value_depth)),
        *sizes.parameters,
    ]

    def body(buffers: list[Buffer]) -> None:
        sizes.bind(buffers)
        named = {parameter.name: buffer for parameter, buffer in zip(parameters, buffers, strict=True)}
        _Attention(e.resolved(kernel, named), scheme(target, kernel.q.dtype), named, sizes).emit()

    return e.function(parameters, body)


def _score_parameters(kernel: AttentionKernel) -> list[Parameter]:
    if kernel.bias is None:
        return rounding_parameters("score_")
    return [v.parameter("bias", kernel.bias, (*kernel.batch, kernel.queries, kernel.keys)), *addition_parameters("score_")]


class _Attention:
    def __init__(self, kernel: AttentionKernel, how: Scheme, buffers: dict[str, Buffer], sizes: v.Sizes) -> None:
        self._kernel = kernel
        self._how = how
        self._buffers = buffers
        self._batch = [sizes(size) for size in kernel.batch]
        self._queries, self._keys = sizes(kernel.queries), sizes(kernel.keys)
        self._key_chunks = chunks(maximum(kernel.keys), how.lanes, how.widest)
        self._value_chunks = chunks(kernel.value_depth, how.lanes, how.widest)
        self._score_tile = row_tile(how, kernel.queries, self._key_chunks[0].vectors)
        self._value_tile = row_tile(how, kernel.queries, self._value_chunks[0].vectors)
        both = math.lcm(self._score_tile, self._value_tile)
        self._block = both * max(1, block_rows(how, kernel.keys) // both)
        self._pitch = how.padded(kernel.keys)

    def emit(self) -> None:
        """Each thread takes consecutive blocks of queries, and packs keys and values where a head begins."""
        blocks = T.Bind((self._queries + (self._block - 1)) // self._block)
        heads: Expr = T.int32(1)
        for count in self._batch:
            heads = T.Bind(heads * count)
        with e.per_thread():
            self._prepare()
            head_packed = v.Register(T.int32(-1))
            with T.parallel(0, T.Bind(heads * blocks)) as task:
                head, block = T.Bind(task // blocks), T.Bind(task % blocks)
                index: list[Expr] = []
                rest = head
                for count in reversed(self._batch):
                    index.insert(0, T.Bind(rest % count))
                    rest = T.Bind(rest // count)
                with T.If(head_packed.value != head), T.Then():
                    self._pack(index)
                    head_packed.set(head)
                self._block_of_queries(index, T.Bind(block * self._block))
            self._value_multiplier.release()

    def _prepare(self) -> None:
        """What a thread keeps."""
        kernel, how = self._kernel, self._how
        zeros = kernel.zero_points
        self._score_zeros = Zeros(how, kernel.q.dtype, zeros[0], kernel.k.dtype, zeros[1])
        self._value_zeros = Zeros(how, "uint8", 0, kernel.v.dtype, zeros[2])
        self._left = Left(how, kernel.q.dtype, kernel.depth, self._block)
        self._packed_keys = Right(how, kernel.k.dtype, kernel.depth, sum(chunk.vectors for chunk in self._key_chunks))
        self._packed_values = Right(how, kernel.v.dtype, kernel.keys, sum(chunk.vectors for chunk in self._value_chunks))
        self._scores = e.scratch(self._block * self._pitch, "int8")
        self._probability_pitch = self._pitch * (1 if how.kind == "words" else 2)  # exponentials of 16 bits lie there first
        self._probabilities = e.scratch(self._block * self._probability_pitch, how.element)
        self._value_terms = (
            T.alloc_buffer((self._block,), "int32", scope="local") if not e.is_zero(self._value_zeros.flipped_right) else None
        )
        bias = kernel.bias.dtype if kernel.bias is not None else "int8"
        self._score_rounding = Rounding(kernel.scores, kernel.scores_dtype, self._buffers, "score_", bias)
        self._result_rounding = Rounding(kernel.result, kernel.output.dtype, self._buffers, "result_")
        # Only one of the products can have tiles for what is left of its inner dimension.
        key_tails = kernel.depth % how.cells != 0
        self._score_multiplier = Multiplier(how, kernel.depth, kernel.depth, has_tail=key_tails)
        self._value_multiplier = Multiplier(how, kernel.keys, self._keys, has_tail=not key_tails)
        (self._score_multiplier if key_tails else self._value_multiplier).configure()
        rows = _VectorRows if how.lanes == 16 else _ScalarRows
        self._rows = rows(kernel, how, self._buffers, self._pitch, self._block)

    def _pack(self, index: list[Expr]) -> None:
        kernel = self._kernel
        k, values = (v.position(operand, index) for operand in (kernel.k, kernel.v))
        source = Source(self._buffers["k"], k, kernel.k.strides[-1], kernel.k.strides[-2], kernel.depth, self._keys)

        def pack_keys(chunk: Chunk, count: Expr) -> None:
            with T.serial(0, count) as number:
                first = T.Bind(number * chunk.channels + chunk.first)
                vector = T.Bind(first // self._how.lanes)
                self._packed_keys.pack(source, chunk, first, vector, self._score_zeros)
                self._packed_keys.correct(chunk, vector, kernel.depth, self._score_zeros)

        self._for_key_chunks(pack_keys)
        source = Source(self._buffers["v"], values, kernel.v.strides[-2], kernel.v.strides[-1], self._keys, T.int32(kernel.value_depth))
        for chunk in self._value_chunks:
            self._packed_values.pack(source, chunk, chunk.first, chunk.first // self._how.lanes, self._value_zeros)

    def _for_key_chunks(self, emit_some: Callable[[Chunk, Expr], None]) -> None:
        """``emit_some(chunk, count)`` for those chunks of full width that have keys, then for each other one that has."""
        wide = self._key_chunks[0]
        full = sum(chunk.vectors == wide.vectors for chunk in self._key_chunks)
        emit_some(wide, T.Bind(T.min((self._keys + (wide.channels - 1)) // wide.channels, T.int32(full))))
        for chunk in self._key_chunks[full:]:
            if isinstance(self._keys, int):
                emit_some(chunk, T.int32(1))
                continue
            with T.If(self._keys > chunk.first), T.Then():
                emit_some(chunk, T.int32(1))

    def _block_of_queries(self, index: list[Expr], first: Expr) -> None:
        kernel = self._kernel
        rows = T.Bind(T.min(self._queries - first, T.int32(self._block)))
        q = Source(self._buffers["q"], v.position(kernel.q, index), kernel.q.strides[-2], 1, kernel.depth, self._queries)
        self._left.pack(q, first, 0, T.int32(self._block), self._score_zeros)
        self._left.add_up(0, T.int32(self._block), kernel.depth, self._score_zeros)
        biases = v.position(kernel.bias, index) if kernel.bias is not None else None
        self._for_key_chunks(lambda chunk, count: self._score(chunk, count, first, rows, biases))
        mask = v.position(kernel.mask, index) if kernel.mask is not None else None

        def mask_of(row: Expr) -> Expr | None:
            return None if kernel.mask is None else T.Bind(mask + (first + row) * kernel.mask.strides[-2])

        self._rows.emit(self._scores, self._probabilities, rows, self._keys, mask_of, self._value_terms, self._value_zeros)
        output = T.Bind(v.position(kernel.output, index) + first * kernel.output.strides[-2])
        for chunk in self._value_chunks:
            self._result(chunk, rows, output)

    def _score(self, chunk: Chunk, count: Expr, first: Expr, rows: Expr, biases: Expr | None) -> None:
        """The scores of ``rows`` queries from ``first`` on, for ``count`` chunks of keys."""
        tile = self._score_tile

        def key(number: Expr) -> Expr:
            return T.Bind(number * chunk.channels + chunk.first)

        def operands(index: Index) -> tuple[Expr, Expr]:
            return T.Bind(index[1] * (tile * self._left.pitch)), T.Bind(key(index[0]) // self._how.lanes)

        def results(index: Index) -> tuple[Start, Store]:
            column, top = key(index[0]), T.Bind(index[1] * tile)

            def store(row: Expr, sums: list[Expr]) -> None:
                place = self._place(biases, T.Bind(first + top + row), column)
                result = self._score_rounding.epilogue.packed_bytes(sums, chunk, place)
                e.store(self._scores, T.Bind((top + row) * self._pitch + column), result)

            zeros = self._score_zeros
            return Start(self._packed_keys.columns(zeros), self._left.row_terms(zeros), self._score_rounding, top, column), store

        # In this order: inside of a loop over chunks, LLVM would spread and spill all of a tile's queries before it.
        blocks = Blocks(self._left.buffer, self._left.pitch, self._packed_keys, chunk, tile, operands, results)
        self._score_multiplier.emit(blocks, [count, T.Bind((rows + (tile - 1)) // tile)])

    def _place(self, biases: Expr | None, query: Expr, key: Expr) -> Place:
        """Where the epilogue of the scores finds their biases; a tile's rows past the last query have that one's."""
        bias = self._kernel.bias
        if bias is None:
            return self._score_rounding.place
        row = T.Bind(T.min(query, self._queries - 1))
        return dataclasses.replace(self._score_rounding.place, channel=T.Bind(biases + row * bias.strides[-2] + key))

    def _result(self, chunk: Chunk, rows: Expr, output: Expr) -> None:
        """A chunk of the result of ``rows`` queries, to rows from ``output`` on."""
        tile, rounding = self._value_tile, self._result_rounding

        def operands(index: Index) -> tuple[Expr, Expr]:
            return T.Bind(index[0] * (tile * self._probability_pitch)), T.int32(chunk.first // self._how.lanes)

        def results(index: Index) -> tuple[Start, Store]:
            top = T.Bind(index[0] * tile)

            def store(row: Expr, sums: list[Expr]) -> None:
                with T.If(top + row < rows), T.Then():
                    at = T.Bind(output + (top + row) * self._kernel.output.strides[-2] + chunk.first)
                    rounding.epilogue.store_at(sums, chunk, rounding.place, at)

            return Start(None, self._value_terms, rounding, top), store

        blocks = Blocks(self._probabilities, self._probability_pitch, self._packed_values, chunk, tile, operands, results)
        self._value_multiplier.emit(blocks, [T.Bind((rows + (tile - 1)) // tile)])


class _Rows(abc.ABC):
    """From the scores of a block of queries to probabilities, in phases over all rows, so that the rows' reductions overlap.

    A row of exponentials (int16) becomes the row of probabilities in place, from its first byte on.
    """

    def __init__(self, kernel: AttentionKernel, how: Scheme, buffers: dict[str, Buffer], pitch: int, block: int) -> None:
        self._kernel = kernel
        self._how = how
        self._buffers = buffers
        self._pitch = pitch
        self._count = _BYTE_LANES[how.lanes]
        self._words = self._count // 2 if how.lanes == 16 else self._count
        self._rows = -(-block // how.lanes) * how.lanes
        self._largest_scores = T.alloc_buffer((self._rows,), "int8", scope="local")
        self._totals, self._reciprocals, self._scales = (e.scratch(self._rows, "int32") for _ in range(3))
        for start in range(0, self._rows, how.lanes):
            e.store(self._totals, start, e.constant(0, "int32", how.lanes))
        self._make_tables()

    @abc.abstractmethod
    def _make_tables(self) -> None:
        """Bring the table of exponentials into the form that ``_exponentiate`` reads."""

    @abc.abstractmethod
    def _exponentiate(self, scores: Buffer, row: Expr, exponentials: Buffer, keys: Expr, mask: Expr | None) -> Expr:
        """Fill a row of exponentials, with zeros after the last key; gives their sum."""

    @abc.abstractmethod
    def _doubled(self, exponentials: Buffer, start: Expr) -> list[Expr]:
        """Twice the exponentials from element ``start`` on, in the order that packing makes natural."""

    @abc.abstractmethod
    def _probability(self, words: Sequence[Expr], high: int) -> Expr:
        """These words as a vector of probabilities, at most ``high``."""

    def emit(
        self,
        scores: Buffer,
        probabilities: Buffer,
        rows: Expr,
        keys: Expr,
        masks: Callable[[Expr], Expr | None],
        terms: Buffer | None,
        zeros: Zeros,
    ) -> None:
        """``probabilities`` of all rows, with zeros up to a whole vector; ``terms``: where the rows' terms of the second product belong."""
        with T.serial(0, rows) as row:
            T.buffer_store(self._largest_scores, self._largest(scores, T.Bind(row * self._pitch), keys, masks(row)), [row])
        with T.serial(0, rows) as row:
            T.buffer_store(self._totals, self._exponentiate(scores, row, probabilities, keys, masks(row)), [row])
        self._invert()
        with T.serial(0, rows) as row:
            self._normalize(probabilities, row, keys, terms, zeros)

    def _invert(self) -> None:
        """``y`` and ``2^(23-s)`` of every row's sum."""
        lanes = self._how.lanes

        def number(value: int) -> Expr:
            return e.constant(value, "int32", lanes)

        for start in range(0, self._rows, lanes):
            total = e.load(self._totals, start, lanes)
            zeros = v.leading_zeros(T.Bind(T.max(total, number(1))))  # 32 - b
            f = T.Bind(T.shift_right(T.shift_left(total, T.bitwise_and(zeros - number(1), number(31))), number(16)))
            y = T.Bind(number(RECIPROCAL_START) - f)
            for _ in range(RECIPROCAL_STEPS):
                rest = T.Bind(number(1 << 16) - T.Bind(T.shift_right(T.Bind(f * y), number(14))))
                y = T.Bind(T.shift_right(T.Bind(y * rest), number(15)))
            e.store(self._reciprocals, start, y)
            shift = T.bitwise_and(number(31) - zeros, number(31))
            e.store(self._scales, start, T.Bind(T.shift_right(number(1 << _PROBABILITY_SHIFT), shift)))

    def _normalize(self, probabilities: Buffer, row: Expr, keys: Expr, terms: Buffer | None, zeros: Zeros) -> None:
        high = (1 << self._kernel.bits) - 1
        reciprocal, rescale = (v.splat(T.Cast("int16", buffer[row]), self._words) for buffer in (self._reciprocals, self._scales))
        factor = e.constant((high << 8) - (1 << 16 if high >= 128 else 0), "int16", self._words)  # its bits as uint16
        total = v.Register(e.constant(0, "int32", self._how.lanes)) if terms is not None else None
        start = T.Bind(row * self._row_items)

        def body(first: Expr, rest: Expr | None) -> None:
            words = []
            for doubled in self._doubled(probabilities, T.Bind(start + first * self._items)):
                u = e.multiply_high_unsigned(doubled, reciprocal)
                words.append(e.multiply_high_round(e.multiply_high_unsigned(u, factor), rescale))
            packed = self._probability(words, high)
            e.store(probabilities, T.Bind(start + first), packed)
            if total is not None:
                total.set(e.dot_bytes(total.value, packed, e.constant(1, "int8", e.lanes(packed))))

        v.over_row(keys, self._count, body)
        if total is not None:
            T.buffer_store(terms, v.reduce("add", total.value) * e.number(-zeros.flipped_right, "int32"), [row])

    @property
    def _items(self) -> int:
        """Elements of the probabilities' buffer that one exponential takes."""
        return 1 if self._how.kind == "words" else 2

    @property
    def _row_items(self) -> int:
        return self._pitch * self._items

    def _largest(self, scores: Buffer, start: Expr, keys: Expr, mask: Expr | None) -> Expr:
        kind = self._kernel.scores_dtype
        lowest = -128 if kind == "int8" else 0
        largest = v.Register(e.constant(lowest, kind, self._count))

        def body(first: Expr, rest: Expr | None) -> None:
            natural = e.reinterpret(e.load(scores, T.Bind(start + first), self._count), kind)
            largest.set(v.maximum(largest.value, self._kept(natural, first, rest, mask, lowest)))

        v.over_row(keys, self._count, body)
        found = v.reduce("smax" if kind == "int8" else "umax", largest.value)
        return found if kind == "int8" else T.reinterpret(found, dtype="int8")

    def _kept(self, vector: Expr, first: Expr, rest: Expr | None, mask: Expr | None, neutral: int) -> Expr:
        """The lanes that exist and are not masked, ``neutral`` in the others."""
        if mask is not None:
            kept = e.load(self._buffers["mask"], T.Bind(mask + first), self._count)
            vector = T.Bind(T.Select(kept != v.like(kept, 0), vector, v.like(vector, neutral)))
        return v.only_first(vector, rest, neutral)


class _VectorRows(_Rows):
    """AVX512-VBMI: byte planes of twice the table."""

    def _make_tables(self) -> None:
        self._planes = [e.scratch(TABLE_ENTRIES, "int8") for _ in range(2)]
        for start in range(0, TABLE_ENTRIES, 16):
            entry = e.load(self._buffers["table"], start, 16)
            e.store(self._planes[0], start, e.cast(T.Bind(T.shift_left(entry, v.like(entry, 1))), "int8"))
            e.store(self._planes[1], start, e.cast(T.Bind(T.shift_right(entry, v.like(entry, 7))), "int8"))

    def _exponentiate(self, scores: Buffer, row: Expr, exponentials: Buffer, keys: Expr, mask: Expr | None) -> Expr:
        start, target = T.Bind(row * self._pitch), T.Bind(row * self._row_items)
        top = v.splat(self._largest_scores[row], self._count)
        sums = [v.Register(e.constant(0, "int32", 16)) for _ in range(2)]
        ones = e.constant(1, "int8", self._count)

        def body(first: Expr, rest: Expr | None) -> None:
            difference = T.Bind(top - e.load(scores, T.Bind(start + first), self._count))
            is_far = difference < v.like(difference, 0)  # not bound: TVM cannot analyse a vector of bool
            found = []
            for plane, total in zip(self._planes, sums, strict=True):
                quarters = [e.load(plane, quarter, 64) for quarter in range(0, TABLE_ENTRIES, 64)]
                near = e.permute_bytes(quarters[0], difference, quarters[1])
                far = e.permute_bytes(quarters[2], difference, quarters[3])
                byte = self._kept(T.Bind(T.Select(is_far, far, near)), first, rest, mask, 0)
                total.set(e.dot_bytes(total.value, byte, ones))
                found.append(byte)
            at = T.Bind(target + first * self._items)
            for half in (0, 1):
                words = e.interleave(found[0], found[1], half)
                e.store(exponentials, at + half * 32 * self._items, e.reinterpret(words, self._how.element))

        v.over_row(keys, self._count, body)
        low, high = (total.value for total in sums)
        doubled = v.reduce("add", T.Bind(low + T.shift_left(high, e.constant(8, "int32", 16))))
        return T.Bind(T.shift_right(doubled, T.int32(1)))

    def _doubled(self, exponentials: Buffer, start: Expr) -> list[Expr]:
        count = 32 * self._items
        return [e.reinterpret(e.load(exponentials, start + half * count, count), "int16") for half in (0, 1)]

    def _probability(self, words: Sequence[Expr], high: int) -> Expr:
        packed = e.pack_bytes(words[0], words[1], unsigned=True)
        if self._how.kind == "words":
            return e.cast(e.reinterpret(packed, "uint8"), "int16")
        if high == 255:
            return packed
        return e.reinterpret(v.minimum(e.reinterpret(packed, "uint8"), e.constant(high, "uint8", 64)), "int8")


class _ScalarRows(_Rows):
    """AVX2: exponentials one by one from the table in 16 bits."""

    def _make_tables(self) -> None:
        self._table = e.scratch(TABLE_ENTRIES, "int16")
        for start in range(0, TABLE_ENTRIES, 8):
            e.store(self._table, start, e.cast(e.load(self._buffers["table"], start, 8), "int16"))

    def _exponentiate(self, scores: Buffer, row: Expr, exponentials: Buffer, keys: Expr, mask: Expr | None) -> Expr:
        start = T.Bind(row * self._pitch)
        kind = self._kernel.scores_dtype
        top = T.Bind(T.Cast("int32", T.reinterpret(self._largest_scores[row], dtype=kind)))
        with T.serial(0, keys) as key:
            score = T.Cast("int32", T.reinterpret(scores[start + key], dtype=kind))
            found = T.Bind(self._table[T.bitwise_and(top - score, T.int32(255))])
            if mask is not None:
                found = T.Bind(T.Select(self._buffers["mask"][mask + key] != T.int8(0), found, T.int16(0)))
            T.buffer_store(exponentials, found, [start + key])
        total = v.Register(e.constant(0, "int32", 8))

        def body(first: Expr, rest: Expr | None) -> None:
            words = v.only_first(e.load(exponentials, T.Bind(start + first), 16), rest, 0)
            if rest is not None:
                e.store(exponentials, T.Bind(start + first), words)
            total.set(e.dot_words(total.value, words, e.constant(1, "int16", 16)))

        v.over_row(keys, 16, body)
        return v.reduce("add", total.value)

    def _doubled(self, exponentials: Buffer, start: Expr) -> list[Expr]:
        words = e.load(exponentials, start, 16)
        return [T.Bind(words + words)]

    def _probability(self, words: Sequence[Expr], high: int) -> Expr:
        return v.minimum(words[0], e.constant(high, "int16", 16))
