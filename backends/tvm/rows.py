"""TIR for products of matrices of any strides: plain loops, one row a thread at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import BufferStore, For, ForKind, SeqStmt, Stmt

from qcompiler.backends.tvm.extents import Extents, Numbers, as_type
from qcompiler.backends.tvm.kernels import Operand, ProductKernel, Size, maxima
from qcompiler.backends.tvm.target import KernelTarget


def emit_product(kernel: ProductKernel, target: KernelTarget) -> tirx.PrimFunc:
    """Each element of the result is one sum; LLVM turns the innermost loop into vectors where both operands are contiguous."""
    extents = (*kernel.shape, kernel.length)
    a, b = _buffer("a", kernel.a, extents), _buffer("b", kernel.b, extents)
    output, ends, numbers = _buffer("output", kernel.output, kernel.shape), Extents(kernel), Numbers(kernel)
    open_kernel = numbers.resolve(kernel)
    zero_points = [as_type(zero_point, "int32") for zero_point in (open_kernel.zero_point_a, open_kernel.zero_point_b)]

    def element(index: list[Expr]) -> Stmt:
        total = _Scalar("int32")

        def term(step: Expr) -> Stmt:
            left = a[_position(kernel.a, [*index, step])].astype("int32") - zero_points[0]
            right = b[_position(kernel.b, [*index, step])].astype("int32") - zero_points[1]
            return total.set(total.value + left * right)

        store = BufferStore(output, total.value, [_position(kernel.output, index)])
        return SeqStmt([total.allocate(), total.set(0), _steps(ends(kernel.length), term), store])

    body = numbers.bind(ends.bind(_over([*map(ends, kernel.shape)], element)))
    return tirx.PrimFunc([a, b, output, *numbers.parameters, *ends.parameters], body)


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


def _steps(length: int | Expr, body: Callable[[Expr], Stmt]) -> Stmt:
    """``body(step)`` for each step along a row."""
    step = tirx.Var("step", "int32")
    return For(step, 0, length, ForKind.SERIAL, body(step))


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
