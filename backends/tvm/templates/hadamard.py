"""Hadamard transforms of rows (``arithmetic.hadamard``), with the requantization behind them: additions and subtractions of vectors.

A block of n = m P elements, P a power of two, goes three ways through a buffer on the stack, which stays in the first-level cache:

1. vectors in, less the zero point; butterflies inside each vector (y[i] = x[i ^ h] +- x[i]: a permutation and a sum), two vectors at a
   time where a pair of bits is divided between lane and vector;
2. butterflies between vectors, four at a time, until runs of P are done;
3. products with the small matrix of order m over vectors P apart, sums and differences written out; requantization; vectors out.

Steps 1 and 2 work in 16-bit lanes where the sums of a run are proven to fit: P |x - zero point| < 2^15, which 8-bit values do up to
P = 128. A task is one block of one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx.script import builder as T

from qcompiler.arithmetic.hadamard import small_matrix, small_order
from qcompiler.backends.tvm.kernels import ITEM_SIZE, HadamardKernel
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates import rescaling
from qcompiler.backends.tvm.templates import vectors as v
from qcompiler.backends.tvm.templates.emission import Buffer, Expr

if TYPE_CHECKING:
    from qcompiler.backends.tvm.target import KernelTarget

_LARGEST_BYTE = 255  # of an 8-bit value and its zero point


def emit(kernel: HadamardKernel, target: KernelTarget) -> tirx.PrimFunc:
    """The kernel's function."""
    sizes, whole = v.Sizes(kernel), (*kernel.shape, kernel.length)
    parameters = [
        v.parameter("operand", kernel.operand, whole),
        *(rescaling.rounding_parameters("") if kernel.rounding is not None else []),
        v.parameter("output", kernel.output, whole),
        *sizes.parameters,
    ]

    def body(buffers: list[Buffer]) -> None:
        sizes.bind(buffers)
        named = {parameter.name: buffer for parameter, buffer in zip(parameters, buffers, strict=True)}
        block = Block(e.resolved(kernel, named), target.vector_bytes, named)
        with v.over_shape([*(sizes(size) for size in kernel.shape), kernel.length // kernel.block]) as (*index, number):
            first = T.Bind(number * kernel.block)
            block.emit(*(T.Bind(v.position(operand, index) + first) for operand in (kernel.operand, kernel.output)))

    return e.function(parameters, body)


class Block:
    """The code of a kernel for one block; ``buffers``: operand, output and the parameters of the rounding."""

    def __init__(self, kernel: HadamardKernel, vector_bytes: int, buffers: Mapping[str, Buffer]) -> None:
        small = small_order(kernel.block)
        assert small is not None  # by ``is_online_order``
        self._kernel, self._buffers = kernel, dict(buffers)
        self._small, self._run = small, kernel.block // small
        words = kernel.operand.dtype in ("int8", "uint8") and self._run * _LARGEST_BYTE < 1 << 15
        self._kind = "int16" if words else "int32"
        self._lanes = min(vector_bytes // (2 if words else 4), self._run)
        self._out_lanes = min(vector_bytes // 4, self._run)

    def emit(self, start: Expr, end: Expr) -> None:
        """From element ``start`` of the operand to element ``end`` of the output."""
        sums = e.scratch(self._kernel.block, self._kind)
        done, vectors = self._load(sums, start), self._run // self._lanes
        while done < vectors:
            radix = min(4, vectors // done)
            self._between(sums, done, radix)
            done *= radix
        self._finish(sums, end)

    def _load(self, sums: Buffer, start: Expr) -> int:
        """Step 1; gives how many vectors in a row are transformed. One by one, or in pairs: LLVM takes long over many permutations."""
        group = 2 if self._lanes.bit_length() % 2 == 0 and self._lanes < self._run else 1
        with T.serial(0, self._kernel.block // (group * self._lanes)) as number:
            at = T.Bind(number * (group * self._lanes))
            loaded = [self._inside(self._centred(start + at + i * self._lanes), i == 1) for i in range(group)]
            for i, vector in enumerate(loaded if group == 1 else [T.Bind(loaded[0] + loaded[1]), T.Bind(loaded[0] - loaded[1])]):
                e.store(sums, at + i * self._lanes, vector)
        return group

    def _centred(self, at: Expr) -> Expr:
        loaded = e.load(self._buffers["operand"], at, self._lanes)
        if v.element(loaded) != self._kernel.operand.dtype:  # bytes of a layer, whose templates declare all of them as int8
            loaded = e.reinterpret(loaded, self._kernel.operand.dtype)
        value = loaded if v.element(loaded) == self._kind else e.cast(loaded, self._kind)
        return rescaling.centred(value, self._kernel.zero_point)

    def _inside(self, vector: Expr, is_second: bool) -> Expr:
        """The transform of one vector, bit by bit of the lane: lane i takes the sum of lanes i and i ^ h, or their difference.

        The difference goes to the lane with the bit, but where the next bit is set to the lane without it (matrix B). ``is_second``: the
        bit after the last one of the lane, which is the vector's.
        """
        for bit in range(self._lanes.bit_length() - 1):
            half = 1 << bit
            swapped = e.pick(vector, [lane ^ half for lane in range(self._lanes)])
            total, difference = T.Bind(swapped + vector), T.Bind(swapped - vector)
            places = (lane + self._lanes * is_second for lane in range(self._lanes))
            differs = [bool(place & half) != (bit % 2 == 0 and bool(place & (2 * half))) for place in places]
            vector = e.shuffle([total, difference], [lane + self._lanes * differs[lane] for lane in range(self._lanes)])
        return vector

    def _between(self, sums: Buffer, done: int, radix: int) -> None:
        """Step 2: ``radix`` vectors, ``done`` vectors apart."""
        reach = done * radix * self._lanes
        with T.serial(0, self._kernel.block // reach) as outer, T.serial(0, done) as inner:
            at = T.Bind(outer * reach + inner * self._lanes)
            places = [at + i * done * self._lanes for i in range(radix)]
            for place, vector in zip(places, _butterflies([e.load(sums, place, self._lanes) for place in places]), strict=True):
                e.store(sums, place, vector)

    def _finish(self, sums: Buffer, end: Expr) -> None:
        """Step 3."""
        together = 2 if self._rounds_words else 1
        lanes = self._out_lanes
        round_ = self._rounding(together)
        matrix = small_matrix(self._small).tolist()
        with T.serial(0, self._run // (together * lanes)) as number:
            at = T.Bind(number * (together * lanes))
            columns = [
                [self._wide(e.load(sums, at + a * self._run + i * lanes, lanes)) for a in range(self._small)] for i in range(together)
            ]
            totals = [[_signed_sum(column, [row[c] for row in matrix]) for c in range(self._small)] for column in columns]
            for c, values in enumerate(zip(*totals, strict=True)):
                e.store(self._buffers["output"], end + at + c * self._run, round_(values))

    @property
    def _rounds_words(self) -> bool:
        """Whether the rounding is done in words, of two vectors at a time."""
        rounding, is_byte = self._kernel.rounding, ITEM_SIZE[self._kernel.output.dtype] == 1
        return rounding is not None and rounding.form == "narrow" and is_byte and self._run >= 2 * self._out_lanes

    def _rounding(self, together: int) -> Callable[[Sequence[Expr]], Expr]:
        """From sums of so many vectors to what is stored."""
        rounding, dtype = self._kernel.rounding, self._kernel.output.dtype
        if rounding is None:
            return lambda values: values[0]
        if together == 2:
            words = rescaling.word_parameters(self._buffers, self._out_lanes)
            return lambda values: e.cast(rescaling.narrow_bytes(values[0], values[1], rounding, words), dtype)
        parameters = rescaling.shared_parameters(self._buffers, self._out_lanes)
        return lambda values: e.cast(rescaling.requantized(values[0], rounding, parameters), dtype)

    def _wide(self, vector: Expr) -> Expr:
        return vector if self._kind == "int32" else e.cast(vector, "int32")


def _butterflies(vectors: Sequence[Expr]) -> list[Expr]:
    """The transform over two vectors, or over four by the matrix B of ``arithmetic.hadamard``."""
    if len(vectors) == 2:
        a, b = vectors
        return [T.Bind(a + b), T.Bind(a - b)]
    a, b, c, d = vectors
    left, right, other, total = T.Bind(a + b), T.Bind(a - b), T.Bind(d - c), T.Bind(c + d)
    return [T.Bind(left + other), T.Bind(right + total), T.Bind(left - other), T.Bind(right - total)]


def _signed_sum(terms: Sequence[Expr], signs: Sequence[int]) -> Expr:
    """The sum of the terms with their signs: one addition or subtraction each."""
    first, rest = (terms[0] if signs[0] > 0 else T.Bind(v.like(terms[0], 0) - terms[0])), zip(terms[1:], signs[1:], strict=True)
    for term, sign in rest:
        first = T.Bind(first + term) if sign > 0 else T.Bind(first - term)
    return first
