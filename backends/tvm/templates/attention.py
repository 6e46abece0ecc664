"""Attention as one kernel: scores, softmax by table and the product with the values, block of queries by block of queries.

A thread packs the keys and values of a head once (``product.Right``). A block of queries then goes through three phases whose intermediate
results stay in the first-level cache: scores are summed in registers, rounded to 8 bits and stored; each row of them becomes
probabilities; these are the left operand of the second product.

Softmax of the rows: ``attention_rows``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script import builder as T

from qcompiler.arithmetic.softmax import TABLE_ENTRIES
from qcompiler.backends.tvm.kernels import AttentionKernel, maximum
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates import vectors as v
from qcompiler.backends.tvm.templates.attention_rows import TAIL_KEYS, rows_of, tail_keys
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
        self._block = block_rows(how, kernel.keys, math.lcm(self._score_tile, self._value_tile))
        self._pitch = how.padded(kernel.keys)

    def emit(self) -> None:
        """Each thread takes consecutive blocks of queries, and packs keys and values where a head begins."""
        blocks = e.ceiling(self._queries, self._block)
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
        self._rows = rows_of(kernel, how, self._buffers, self._pitch, self._block)
        has_terms = not e.is_zero(self._value_zeros.flipped_right)
        self._value_terms = T.alloc_buffer((self._rows.padded,), "int32", scope="local") if has_terms else None
        bias = kernel.bias.dtype if kernel.bias is not None else "int8"
        self._score_rounding = Rounding(kernel.scores, kernel.scores_dtype, self._buffers, "score_", bias)
        self._result_rounding = Rounding(kernel.result, kernel.output.dtype, self._buffers, "result_")
        # Only one of the products can have tiles for what is left of its inner dimension.
        key_tails = kernel.depth % how.cells != 0
        self._score_multiplier = Multiplier(how, kernel.depth, kernel.depth, has_tail=key_tails)
        self._value_multiplier = Multiplier(how, kernel.keys, self._keys, has_tail=not key_tails)
        (self._score_multiplier if key_tails else self._value_multiplier).configure()

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
        emit_some(wide, T.Bind(T.min(e.ceiling(self._keys, wide.channels), T.int32(full))))
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
            return None if kernel.mask is None else T.Bind(mask + T.min(first + row, self._queries - 1) * kernel.mask.strides[-2])

        self._rows.emit(rows, self._keys, mask_of, self._value_terms, self._value_zeros)
        output = T.Bind(v.position(kernel.output, index) + first * kernel.output.strides[-2])
        for chunk in self._value_chunks:
            self._result(chunk, rows, output)

    def _score(self, chunk: Chunk, count: Expr, first: Expr, rows: Expr, biases: Expr | None) -> None:
        """The scores of ``rows`` queries from ``first`` on, for ``count`` chunks of keys."""
        tile, is_tail = self._score_tile, chunk.valid == tail_keys(self._kernel, self._how)

        def key(number: Expr) -> Expr:
            return T.Bind(number * chunk.channels + chunk.first)

        def operands(index: Index) -> tuple[Expr, Expr]:
            return T.Bind(index[1] * (tile * self._left.pitch)), T.Bind(key(index[0]) // self._how.lanes)

        def results(index: Index) -> tuple[Start, Store]:
            column, top = key(index[0]), T.Bind(index[1] * tile)

            def store(row: Expr, sums: list[Expr]) -> None:
                place = self._place(biases, T.Bind(first + top + row), column)
                result = self._score_rounding.epilogue.packed_bytes(sums, chunk, place)
                if is_tail:
                    e.store(self._rows.tails, T.Bind((top + row) * TAIL_KEYS), result)
                else:
                    e.store(self._rows.scores, T.Bind((top + row) * self._pitch + column), result)

            zeros = self._score_zeros
            return Start(self._packed_keys.columns(zeros), self._left.row_terms(zeros), self._score_rounding, top, column), store

        # In this order: inside of a loop over chunks, LLVM would spread and spill all of a tile's queries before it.
        blocks = Blocks(self._left.buffer, self._left.pitch, self._packed_keys, chunk, tile, operands, results)
        self._score_multiplier.emit(blocks, [count, e.ceiling(rows, tile)])

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
            return T.Bind(index[0] * (tile * self._pitch)), T.int32(chunk.first // self._how.lanes)

        def results(index: Index) -> tuple[Start, Store]:
            top = T.Bind(index[0] * tile)

            def store(row: Expr, sums: list[Expr]) -> None:
                with T.If(top + row < rows), T.Then():
                    at = T.Bind(output + (top + row) * self._kernel.output.strides[-2] + chunk.first)
                    rounding.epilogue.store_at(sums, chunk, rounding.place, at)

            return Start(None, self._value_terms, rounding, top), store

        blocks = Blocks(self._rows.probabilities, self._pitch, self._packed_values, chunk, tile, operands, results)
        self._value_multiplier.emit(blocks, [e.ceiling(rows, tile)])
