"""Softmax of rows in all its forms, with a mask or without; formulas: ``arithmetic.softmax``, ``i_vit.shiftmax``, ``i_bert.softmax``.

Three passes over a row: its maximum; exponentials, kept on the stack, and their sum; probabilities. The table of 256 exponentials of
15 bits becomes two tables of bytes where a target has vpermi2b (four of them and two blends for 64 elements), else, and for 30 bits, it is
gathered from.
A row of which a mask keeps nothing has the sum 0, which every form brings to what gives 0.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script import builder as T

from qcompiler.arithmetic import i_bert, i_vit
from qcompiler.arithmetic.exponential import ONE
from qcompiler.arithmetic.softmax import EXPONENT_BITS, LARGEST_WIDE_SHIFT, WIDE_EXPONENT_BITS
from qcompiler.backends.tvm.kernels import Softmax, maximum
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates import exponential as x
from qcompiler.backends.tvm.templates import vectors as v
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.row import Row

_LARGEST = 2**31 - 1
_SMALLEST = -(2**31)
_SMALLEST_TOTAL = 1 << (EXPONENT_BITS - 1)
_MOST_SHIFT = 62
_TABLE_VECTOR = 64  # bytes of vpermi2b
_WIDE_SUM_SHIFT = 16  # a sum of 46 bits can be shifted left by so many


class SoftmaxRows:
    """What does not change between rows is emitted once, by the constructor."""

    def __init__(self, operation: Softmax, vector_bytes: int, table: Buffer | None) -> None:
        self._operation = operation
        self._table = table
        self._planes = _planes(table) if table is not None and operation.form == "table" and vector_bytes == _TABLE_VECTOR else []

    def emit(self, row: Row) -> None:
        """One row."""
        length = -(-maximum(row.kernel.length) // _TABLE_VECTOR) * _TABLE_VECTOR
        exponentials = e.scratch(length, "int32")
        largest = self._largest(row)
        others = {"wide-table": self._wide_table, "shiftmax": self._shiftmax, "i-softmax": self._i_softmax}
        steps = others.get(self._operation.form, self._own)
        steps(row, largest, exponentials)

    def _largest(self, row: Row) -> Expr:
        largest = v.Register(e.constant(_SMALLEST, "int32", row.lanes))

        def step(at: Expr, rest: Expr | None) -> None:
            largest.set(v.maximum(largest.value, row.kept(row.load(at), at, rest, _SMALLEST)))

        row.over(step)
        return v.reduce("smax", largest.value)

    def _own(self, row: Row, largest: Expr, exponentials: Buffer) -> None:
        """Forms table, shift and poly."""
        total = self._sum(row, largest, exponentials, self._exponentials, "int32")
        total = v.maximum(total, T.int32(_SMALLEST_TOTAL))
        bits = T.Bind(32 - T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id("llvm.ctlz"), total, T.bool(False), dtype="int32"))
        f = T.Bind(T.shift_right(T.shift_left(total, 31 - bits), 16))
        y = v.splat(x.newton_reciprocal(f), row.lanes)
        shift = v.splat(T.Bind(bits - 2), row.lanes)
        half = T.shift_left(T.int32(1), bits - 3) if self._operation.rounding == "nearest" else T.int32(0)
        rounding = v.splat(T.Bind(half), row.lanes)
        high = (1 << self._operation.bits) - 1

        def step(at: Expr, rest: Expr | None) -> None:
            part = x.shift_right(T.Bind(e.load(exponentials, at, row.lanes) * y), 15)
            halved = x.shift_right(T.Bind(part * v.like(part, high)), 1)
            row.store(at, rest, v.clamp(T.Bind(T.shift_right(T.Bind(halved + rounding), shift)), 0, high))

        row.over(step)

    def _wide_table(self, row: Row, largest: Expr, exponentials: Buffer) -> None:
        total = self._sum(row, largest, exponentials, self._exponentials, "int64")
        total = T.Bind(T.max(total, T.int64(1 << (WIDE_EXPONENT_BITS - 1))))
        length, bits = T.Bind(T.int64(64) - v.leading_zeros(total)), self._operation.bits
        f = T.Bind(T.shift_right(T.shift_left(total, T.int64(_WIDE_SUM_SHIFT)), length - (31 - _WIDE_SUM_SHIFT)))
        reciprocal = T.Bind(T.cast(x.wide_reciprocal(T.Bind(T.cast(f, "uint64"))), "int64"))
        high = (1 << bits) - 1
        factor = v.splat(T.Bind(T.cast(T.shift_right(reciprocal * high, T.int64(bits)), "int32")), row.lanes)
        shift = T.Bind(T.cast(T.min(length - (2 + bits), T.int64(LARGEST_WIDE_SHIFT)), "int32"))
        half = T.shift_left(T.int32(1), shift - 1) if self._operation.rounding == "nearest" else T.int32(0)
        rounding, amount = v.splat(T.Bind(half), row.lanes), v.splat(shift, row.lanes)

        def step(at: Expr, rest: Expr | None) -> None:
            product = v.multiply_halves(e.load(exponentials, at, row.lanes), factor)
            row.store(at, rest, v.clamp(T.Bind(T.shift_right(T.Bind(product + rounding), amount)), 0, high))

        row.over(step)

    def _exponentials(self, differences: Expr) -> Expr:
        if self._table is None:
            power = x.power(x.fixed_point(differences, self._operation.constants), self._operation.form)
            return v.minimum(power, v.like(power, ONE - 1))
        inside = T.Bind(T.bitwise_and(differences, v.like(differences, 255)))
        return self._permuted(inside) if self._planes else _gather(self._table, inside)

    def _permuted(self, index: Expr) -> Expr:
        """Low and high bytes of 64 entries, put together in 32-bit lanes."""
        codes = e.cast(index, "int8")
        low, high = (e.cast(e.cast(v.look_up_bytes(plane, codes), "uint8"), "int32") for plane in self._planes)
        return T.Bind(low + x.shift_left(high, 8))

    def _shiftmax(self, row: Row, largest: Expr, exponentials: Buffer) -> None:
        step_constant, n = self._operation.constants

        def exponential(difference: Expr) -> Expr:
            return e.cast(x.shift_exponential(difference, step_constant, n), "int32")

        total = self._sum(row, largest, exponentials, exponential, "int64")
        total = T.Bind(T.cast(T.max(T.min(total, T.int64(i_vit.LARGEST_FACTOR)), T.int64(1)), "int32"))
        self._scale_by(row, exponentials, T.Bind(T.truncdiv(T.int32(i_vit.LARGEST_FACTOR), total)))

    def _i_softmax(self, row: Row, largest: Expr, exponentials: Buffer) -> None:
        *polynomial, multiplier, shift = self._operation.constants

        def exponential(difference: Expr) -> Expr:
            value, q = x.polynomial(difference, polynomial, i_bert.EXPONENTIAL_BITS)
            amount = e.cast(v.minimum(T.Bind(q + v.like(q, shift)), v.like(q, _MOST_SHIFT)), "uint64")
            product = v.low_product(e.cast(value, "uint64"), v.like(amount, multiplier))
            half = x.shift_right(T.Bind(T.shift_left(v.like(amount, 1), amount)), 1)
            return e.cast(T.Bind(T.shift_right(T.Bind(product + half), amount)), "int32")

        total = self._sum(row, largest, exponentials, exponential, "int32")
        total = T.Bind(T.cast(T.max(total, 1), "int64"))
        # Where nothing is kept the factor is 2^32, of which 0 is left: all exponentials are 0 as well.
        self._scale_by(row, exponentials, T.Bind(T.cast(T.truncdiv(T.int64(1 << 32), total), "int32")))

    def _scale_by(self, row: Row, exponentials: Buffer, factor: Expr) -> None:
        """``(e * factor) >> (32 - bits)`` without sign, which fits 32 bits."""
        factors = e.reinterpret(v.splat(factor, row.lanes), "uint32")

        def step(at: Expr, rest: Expr | None) -> None:
            product = T.Bind(e.reinterpret(e.load(exponentials, at, row.lanes), "uint32") * factors)
            row.store(at, rest, e.reinterpret(x.shift_right(product, 32 - self._operation.bits), "int32"))

        row.over(step)

    def _sum(self, row: Row, largest: Expr, exponentials: Buffer, exponential: Callable[[Expr], Expr], dtype: str) -> Expr:
        """Exponentials of the row, 0 where nothing is kept, and their sum."""
        total, top = v.Register(e.constant(0, dtype, row.lanes)), v.splat(largest, row.lanes)

        def step(at: Expr, rest: Expr | None) -> None:
            difference = row.kept(T.Bind(top - row.load(at)), at, rest, 0)
            value = row.kept(exponential(difference), at, rest, 0)
            e.store(exponentials, at, value)
            total.set(T.Bind(total.value + (value if dtype == "int32" else e.cast(value, dtype))))

        row.over(step)
        return v.reduce("add", total.value)


def _planes(table: Buffer) -> list[list[Expr]]:
    """The low bytes of the table's entries in four vectors, and the high ones."""
    parts = [[e.load(table, start + 16 * i, 16) for i in range(4)] for start in range(0, 256, _TABLE_VECTOR)]
    low = [e.shuffle([e.cast(piece, "int8") for piece in part], range(_TABLE_VECTOR)) for part in parts]
    high = [e.shuffle([e.cast(x.shift_right(piece, 8), "int8") for piece in part], range(_TABLE_VECTOR)) for part in parts]
    return [low, high]


def _gather(table: Buffer, index: Expr) -> Expr:
    """vpgatherdd of eight entries each."""
    parts, count = [], 8
    for start in range(0, e.lanes(index), count):
        lanes = e.pick(index, range(start, start + count))
        every = e.constant(-1, "int32", count)
        arguments = (e.constant(0, "int32", count), T.address_of(table[0]), lanes, every, T.int8(4))
        intrinsic = T.llvm_lookup_intrinsic_id("llvm.x86.avx2.gather.d.d.256")
        parts.append(T.Bind(T.call_llvm_intrin("int32x8", intrinsic, *arguments)))
    return parts[0] if len(parts) == 1 else e.shuffle(parts, range(e.lanes(index)))
