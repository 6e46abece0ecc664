"""Kernels of one function a row: which class emits a row of which operation, and the short ones themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx.script import builder as T

from qcompiler.arithmetic import i_bert, i_vit
from qcompiler.arithmetic.softmax import TABLE_ENTRIES, TABLE_FORMS
from qcompiler.backends.tvm.kernels import (
    ArgumentMaximum,
    Bucketize,
    Divide,
    Embedding,
    Nonlinear,
    Normalize,
    Operand,
    RowKernel,
    Softmax,
    maximum,
)
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates import exponential as x
from qcompiler.backends.tvm.templates import vectors as v
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.layout import Parameter
from qcompiler.backends.tvm.templates.nonlinear import NonlinearRows
from qcompiler.backends.tvm.templates.row import Row
from qcompiler.backends.tvm.templates.softmax import SoftmaxRows

if TYPE_CHECKING:
    from qcompiler.backends.tvm.target import KernelTarget

_WIDE_TABLE_LANES = 64  # of softmax by vpermi2b
_EPSILON = 10_000  # I-BERT's 0.0001 added to a standard deviation, inverted


def emit(kernel: RowKernel, target: KernelTarget) -> tirx.PrimFunc:
    """The kernel's function."""
    sizes, whole = v.Sizes(kernel), (*kernel.shape, kernel.length)
    table = _table_size(kernel)
    parameters = [
        v.parameter("operand", kernel.operand, whole),
        *([_second(kernel)] if kernel.second is not None else []),
        *([Parameter("table", "int32", table)] if table else []),
        v.parameter("output", kernel.output, whole if len(kernel.output.strides) == len(whole) else kernel.shape),
        *sizes.parameters,
    ]

    def body(buffers: list[Buffer]) -> None:
        sizes.bind(buffers)
        named = {parameter.name: buffer for parameter, buffer in zip(parameters, buffers, strict=True)}
        length = sizes(kernel.length)
        with v.over_shape([sizes(size) for size in kernel.shape]) as index:
            emit_row, lanes = _row_emitter(kernel, target.vector_bytes, named)
            emit_row(Row(kernel, named, index, length, lanes))

    return e.function(parameters, body)


def _second(kernel: RowKernel) -> Parameter:
    """The second operand has the shape of the first; an embedding's table has its own, whose rows are not known here."""
    assert kernel.second is not None  # the caller's guard
    if isinstance(kernel.operation, Embedding):
        return Parameter("second", kernel.second.dtype, 1)
    return v.parameter("second", kernel.second, (*kernel.shape, kernel.length))


def _table_size(kernel: RowKernel) -> int:
    operation = kernel.operation
    if isinstance(operation, Bucketize):
        return operation.boundaries
    return TABLE_ENTRIES if isinstance(operation, Softmax) and operation.form in TABLE_FORMS else 0


def _row_emitter(kernel: RowKernel, vector_bytes: int, buffers: dict[str, Buffer]) -> tuple[Callable[[Row], None], int]:
    """What emits a row, and the elements of its vectors."""
    operation, lanes, table = kernel.operation, vector_bytes // 4, buffers.get("table")
    if isinstance(operation, Softmax):
        wide = operation.form == "table" and vector_bytes == _WIDE_TABLE_LANES
        return SoftmaxRows(operation, vector_bytes, table).emit, _WIDE_TABLE_LANES if wide else lanes
    if isinstance(operation, Nonlinear):
        return NonlinearRows(operation).emit, lanes
    if isinstance(operation, Normalize):
        return lambda row: _normalize(operation, row), lanes
    if isinstance(operation, Divide):
        return lambda row: _divide(operation, row), lanes // 2
    if isinstance(operation, Bucketize):
        return lambda row: _bucketize(operation, row, buffers["table"]), lanes
    if isinstance(operation, ArgumentMaximum):
        return lambda row: _argument_maximum(row, kernel.output, buffers), lanes
    return lambda row: _embedding(row, kernel, buffers), vector_bytes


def _normalize(operation: Normalize, row: Row) -> None:
    """``i_vit.normalize`` and ``i_bert.normalize``: their numbers for a row are divided as the papers do."""
    length = maximum(row.kernel.length)
    total = v.Register(e.constant(0, "int32", row.lanes))
    power = v.Register(e.constant(0, "int64", row.lanes))
    mean = T.int32(operation.zero_point)
    if operation.centre:
        row.over(lambda at, rest: total.set(T.Bind(total.value + v.only_first(row.load(at), rest, 0))))
        mean = _rounded_mean(v.reduce("add", total.value), length, operation.zero_point)
    means = v.splat(mean, row.lanes)

    def square(at: Expr, rest: Expr | None) -> None:
        y = e.cast(v.only_first(T.Bind(row.load(at) - means), rest, 0), "int64")
        power.set(T.Bind(power.value + y * y))

    row.over(square)
    factor = v.splat(_papers_factor(operation.form, v.reduce("add", power.value)), row.lanes)
    row.over(lambda at, rest: row.store(at, rest, x.shift_right(T.Bind(T.Bind(row.load(at) - means) * factor), 1)))


def _rounded_mean(total: Expr, length: int, zero_point: Expr) -> Expr:
    """``i_vit.rounded_mean`` of x - zero point, plus the zero point again: what is subtracted from x itself."""
    doubled = T.Bind((T.cast(total, "int64") - T.int64(length * zero_point)) * T.int64(2) + T.int64(length))
    mean = T.Bind(T.floordiv(doubled, T.int64(2 * length)))
    half = T.Bind(T.Select(mean * T.int64(2 * length) == doubled, T.bitwise_and(mean, T.int64(1)), T.int64(0)))
    return T.Bind(T.cast(mean - half + T.int64(zero_point), "int32"))


def _papers_factor(form: str, power: Expr) -> Expr:
    """int32 reciprocal of the standard deviation, times 2^31."""
    if form == "i-layernorm":
        root = T.Bind(T.int64(i_vit.ROOT_START))
        for _ in range(i_vit.ROOT_ITERATIONS):
            root = T.Bind(T.shift_right(root + T.truncdiv(power, root), T.int64(1)))
        return T.Bind(T.cast(T.truncdiv(T.int64(i_vit.LARGEST_FACTOR), root), "int32"))
    positive = T.Bind(T.max(power, T.int64(1)))
    zeros = T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id("llvm.ctlz"), positive, T.bool(False), dtype="int64")
    root = T.Bind(T.shift_left(T.int64(1), T.shift_right(T.int64(65) - zeros, T.int64(1))))
    for _ in range(i_bert.ROOT_STEPS):
        root = T.Bind(T.min(root, T.shift_right(root + T.truncdiv(positive, root), T.int64(1))))
    root = T.Bind(T.Select(power == T.int64(0), T.int64(0), root))
    factor = T.Bind(T.truncdiv(T.int64(_EPSILON << 31), root * T.int64(_EPSILON) + T.int64(1)))
    return T.Bind(T.cast(T.min(factor, T.int64(2**31 - 1)), "int32"))


def _divide(operation: Divide, row: Row) -> None:
    """The reciprocal of a divisor that a whole row shares is computed once."""
    second = row.kernel.second
    assert second is not None  # the divisor
    shared = _reciprocal(row.load_second(T.int32(0)), operation) if second.strides[-1] == 0 else None

    def step(at: Expr, rest: Expr | None) -> None:
        reciprocal, shift, rounding = shared or _reciprocal(v.only_first(row.load_second(at), rest, 1), operation)
        product = T.Bind(e.cast(row.load(at), "int64") * reciprocal + rounding)
        row.store(at, rest, e.cast(T.Bind(T.shift_right(product, shift)), "int32"))

    row.over(step)


def _reciprocal(divisor: Expr, operation: Divide) -> tuple[Expr, Expr, Expr]:
    """r, k and the rounding term of ``arithmetic.reciprocal.divide``, in 64-bit lanes."""
    zeros = v.leading_zeros(e.cast(divisor, "int32"))  # 32 - b
    f = T.Bind(T.shift_left(e.cast(divisor, "uint64"), e.cast(T.Bind(zeros - v.like(zeros, 1)), "uint64")))
    shift = e.cast(T.Bind(v.like(zeros, 62 - operation.fraction_bits) - zeros), "int64")
    rounding = T.Bind(T.shift_left(v.like(shift, 1), T.Bind(shift - v.like(shift, 1))))
    return e.cast(x.wide_reciprocal(f), "int64"), shift, rounding


def _bucketize(operation: Bucketize, row: Row, boundaries: Buffer) -> None:
    """A comparison for each boundary, sixteen elements at a time."""

    def step(at: Expr, rest: Expr | None) -> None:
        loaded, codes = row.load(at), v.Register(e.constant(0, "int32", row.lanes))
        with T.serial(0, operation.boundaries) as i:
            reached = v.splat(T.Bind(boundaries[i]), row.lanes) <= loaded
            codes.set(T.Bind(codes.value + T.Select(reached, v.like(loaded, 1), v.like(loaded, 0))))
        row.store(at, rest, codes.value)

    row.over(step)


def _argument_maximum(row: Row, output: Operand, buffers: dict[str, Buffer]) -> None:
    """The largest element by vectors, then the first place that has it, one by one."""
    largest = v.Register(e.constant(-(2**31), "int32", row.lanes))
    row.over(lambda at, rest: largest.set(v.maximum(largest.value, v.only_first(row.load(at), rest, -(2**31)))))
    top, start = v.reduce("smax", largest.value), v.position(row.kernel.operand, row.index)
    place = v.Register(T.int32(0))
    with T.serial(0, row.length) as i:
        behind = T.Bind(row.length - 1 - i)
        is_top = T.cast(buffers["operand"][start + behind], "int32") == top
        place.set(T.Select(is_top, behind, place.value))
    T.buffer_store(buffers["output"], T.cast(place.value, "int64"), [v.position(output, row.index)])


def _embedding(row: Row, kernel: RowKernel, buffers: dict[str, Buffer]) -> None:
    """A row of the table, copied."""
    second = kernel.second
    assert second is not None  # the table
    number = T.cast(buffers["operand"][v.position(kernel.operand, row.index)], "int32")
    source, target = T.Bind(number * second.strides[0]), v.position(kernel.output, row.index)
    size = {"int8": 1, "uint8": 1, "int16": 2}[second.dtype]
    count = row.lanes // size

    def step(at: Expr, rest: Expr | None) -> None:
        if rest is None:
            e.store(buffers["output"], target + at, e.load(buffers["second"], source + at, count))
            return
        # A table is not read past its end.
        with T.serial(0, rest) as i:
            T.buffer_store(buffers["output"], buffers["second"][source + at + i], [target + at + i])

    v.over_row(row.length, count, step)
