"""TIR for what reads whole rows: products of matrices, softmax, normalization. Plain loops, one row a thread at a time.

The arithmetic is that of ``arithmetic.softmax`` and ``arithmetic.normalize``, whose formulas the functions below repeat one to one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import BufferStore, For, ForKind, SeqStmt, Stmt

from qcompiler.arithmetic.normalize import LARGEST_EPSILON, ROOT_START, ROOT_STEPS, magnitude_bits
from qcompiler.arithmetic.softmax import RECIPROCAL_START, RECIPROCAL_STEPS, TABLE_ENTRIES
from qcompiler.backends.tvm.extents import Extents
from qcompiler.backends.tvm.kernels import Normalize, Operand, ProductKernel, RowKernel, Size, Softmax, maxima, maximum
from qcompiler.backends.tvm.shifts import amount, rounding_shift
from qcompiler.backends.tvm.target import KernelTarget


def emit_product(kernel: ProductKernel, target: KernelTarget) -> tirx.PrimFunc:
    """Each element of the result is one sum; LLVM turns the innermost loop into vectors where both operands are contiguous."""
    extents = (*kernel.shape, kernel.length)
    a, b = _buffer("a", kernel.a, extents), _buffer("b", kernel.b, extents)
    output, ends = _buffer("output", kernel.output, kernel.shape), Extents(kernel)

    def element(index: list[Expr]) -> Stmt:
        total = _Scalar("int32")

        def term(step: Expr) -> Stmt:
            left = a[_position(kernel.a, [*index, step])].astype("int32") - kernel.zero_point_a
            right = b[_position(kernel.b, [*index, step])].astype("int32") - kernel.zero_point_b
            return total.set(total.value + left * right)

        store = BufferStore(output, total.value, [_position(kernel.output, index)])
        return SeqStmt([total.allocate(), total.set(0), _steps(ends(kernel.length), term), store])

    return tirx.PrimFunc([a, b, output, *ends.parameters], ends.bind(_over([*map(ends, kernel.shape)], element)))


def emit_rows(kernel: RowKernel, target: KernelTarget) -> tirx.PrimFunc:
    """Softmax or normalization, row by row."""
    extents = (*kernel.shape, kernel.length)
    x, output = _buffer("x", kernel.operand, extents), _buffer("output", kernel.output, extents)
    table, ends = tirx.decl_buffer((TABLE_ENTRIES,), "int32", name="table"), Extents(kernel)

    def row(index: list[Expr]) -> Stmt:
        def load(step: Expr) -> Expr:
            return x[_position(kernel.operand, [*index, step])].astype("int32")

        def store(step: Expr, value: Expr) -> Stmt:
            return BufferStore(output, value.astype(kernel.output.dtype), [_position(kernel.output, [*index, step])])

        if isinstance(kernel.operation, Softmax):
            return _softmax(kernel.operation, ends(kernel.length), load, table, store)
        return _normalize(kernel.operation, maximum(kernel.length), load, store)

    tables = [table] if isinstance(kernel.operation, Softmax) else []
    return tirx.PrimFunc([x, *tables, output, *ends.parameters], ends.bind(_over([*map(ends, kernel.shape)], row)))


Load = Callable[[Expr], Expr]
Store = Callable[[Expr, Expr], Stmt]


class _Scalar:
    """A local variable."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self._buffer = tirx.decl_buffer((1,), dtype, name="scalar", scope="local")

    @property
    def value(self) -> Expr:
        return self._buffer[0]

    def allocate(self) -> Stmt:
        return tirx.AllocBuffer(self._buffer)

    def set(self, value: Expr | int) -> Stmt:
        return BufferStore(self._buffer, tirx.const(value, self.dtype) if isinstance(value, int) else value.astype(self.dtype), [0])


def _softmax(operation: Softmax, length: int | Expr, load: Load, table: tirx.Buffer, store: Store) -> Stmt:
    largest, total, bits, reciprocal = _Scalar("int32"), _Scalar("int32"), _Scalar("int32"), _Scalar("int32")

    def exponential(step: Expr) -> Expr:
        return table[largest.value - load(step)]

    def probability(step: Expr) -> Expr:
        scaled = ((exponential(step) * y) >> 15) * high
        return tirx.max(tirx.min(rounding_shift(scaled, bits.value - 1), high), 0)

    high = (1 << operation.bits) - 1
    f = ((total.value << amount(31 - bits.value)) >> 16).astype("int32")
    y = reciprocal.value
    return SeqStmt(
        [
            *(scalar.allocate() for scalar in (largest, total, bits, reciprocal)),
            largest.set(tirx.min_value("int32")),
            _steps(length, lambda step: largest.set(tirx.max(largest.value, load(step)))),
            total.set(0),
            _steps(length, lambda step: total.set(total.value + exponential(step))),
            bits.set(32 - tirx.clz(total.value)),
            reciprocal.set(RECIPROCAL_START - f),
            *[reciprocal.set((y * (65536 - ((f * y) >> 14))) >> 15)] * RECIPROCAL_STEPS,
            _steps(length, lambda step: store(step, probability(step))),
        ]
    )


def _normalize(operation: Normalize, length: int, load: Load, store: Store) -> Stmt:
    total, largest, shift = _Scalar("int32"), _Scalar("int32"), _Scalar("int32")
    power, even, root, factor = _Scalar("int64"), _Scalar("int64"), _Scalar("int64"), _Scalar("int32")

    def centred(step: Expr) -> Expr:
        x = load(step) - operation.zero_point
        return x * length - total.value if operation.centre else x

    def reduced(step: Expr) -> Expr:
        return rounding_shift(centred(step), shift.value)

    def square(step: Expr) -> Expr:
        return reduced(step).astype("int64") * reduced(step).astype("int64")

    epsilon = tirx.const(operation.epsilon, "int64") >> amount(2 * shift.value.astype("int64"))
    epsilon = tirx.min(epsilon, tirx.const(LARGEST_EPSILON, "int64"))
    v, y = power.value << amount(2 * even.value), root.value
    return SeqStmt(
        [
            *(scalar.allocate() for scalar in (total, largest, shift, power, even, root, factor)),
            total.set(0),
            *([_steps(length, lambda step: total.set(total.value + load(step) - operation.zero_point))] if operation.centre else []),
            largest.set(0),
            _steps(length, lambda step: largest.set(tirx.max(largest.value, tirx.abs(centred(step))))),
            shift.set(tirx.max(_bit_length(largest.value, 32) - magnitude_bits(length), 0)),
            power.set(0),
            _steps(length, lambda step: power.set(power.value + square(step))),
            power.set(tirx.max(power.value + epsilon, tirx.const(1, "int64"))),
            even.set(tirx.max(30 - _bit_length(power.value, 64), 0) >> 1),
            root.set(ROOT_START - ((5 * v) >> 15)),
            *[root.set((y * (tirx.const(3 << 30, "int64") - ((v * ((y * y) >> 8)) >> 28))) >> 31)] * ROOT_STEPS,
            factor.set((root.value << amount(even.value)) >> 4),
            _steps(length, lambda step: store(step, reduced(step) * factor.value)),
        ]
    )


def _steps(length: int | Expr, body: Callable[[Expr], Stmt]) -> Stmt:
    """``body(step)`` for each step along a row."""
    step = tirx.Var("step", "int32")
    return For(step, 0, length, ForKind.SERIAL, body(step))


def _bit_length(x: Expr, width: int) -> Expr:
    """int32; 0 for 0, where counting leading zeros is undefined."""
    one = tirx.const(1, f"int{width}")
    return tirx.Select(x > 0, width - tirx.clz(tirx.max(x, one)).astype("int32"), tirx.const(0, "int32"))


def _over(shape: Sequence[int | Expr], body: Callable[[list[Expr]], Stmt]) -> Stmt:
    """Loops over ``shape``, the outermost in parallel."""
    index = [tirx.Var(f"i{i}", "int32") for i in range(len(shape))]
    statement = body(list(index))
    for position in reversed(range(len(shape))):
        kind = ForKind.PARALLEL if position == 0 else ForKind.SERIAL
        statement = For(index[position], 0, shape[position], kind, statement)
    return statement


def _buffer(name: str, operand: Operand, extents: Sequence[Size]) -> tirx.Buffer:
    steps = zip(maxima(extents), operand.strides, strict=True)
    reach = operand.offset + sum((extent - 1) * stride for extent, stride in steps if stride > 0)
    return tirx.decl_buffer((reach + 1,), operand.dtype, name=name)


def _position(operand: Operand, index: Sequence[Expr]) -> Expr:
    position = tirx.const(operand.offset, "int32")
    for coordinate, stride in zip(index, operand.strides, strict=True):
        position = position + coordinate * stride
    return position
