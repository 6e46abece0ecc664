"""What a kernel reads before its loops: their ends where a size is dynamic, and the numbers that its specification leaves open."""

from __future__ import annotations

from typing import Any, TypeVar

from tvm import tirx
from tvm.ir import Expr

from qcompiler.backends.tvm import sharing
from qcompiler.backends.tvm.kernels import Extent, Size, is_dynamic

_Kernel = TypeVar("_Kernel")


class Extents:
    """The dynamic sizes of one kernel: ``parameters`` go last into its function, ``bind`` reads the value once before its loops.

    ::

        ends = Extents(kernel)
        loop = For(index, 0, ends(kernel.length), ForKind.SERIAL, body)
        return tirx.PrimFunc([x, output, *ends.parameters], ends.bind(loop))
    """

    def __init__(self, kernel: object) -> None:
        self._buffer = tirx.decl_buffer((1,), "int32", name="extents") if is_dynamic(kernel) else None
        self._symbol = tirx.Var("symbol", "int32")

    @property
    def parameters(self) -> list[tirx.Buffer]:
        return [] if self._buffer is None else [self._buffer]

    def __call__(self, size: Size) -> int | Expr:
        """The end of a loop over ``size``."""
        return self._symbol + size.offset if isinstance(size, Extent) else size

    def bind(self, statement: tirx.Stmt) -> tirx.Stmt:
        if self._buffer is None:
            return statement
        return tirx.SeqStmt([tirx.Bind(self._symbol, self._buffer[0]), statement])


class Numbers:
    """The open numbers of one kernel: ``resolve`` puts int64 variables in their place, ``bind`` reads them once before its loops."""

    def __init__(self, kernel: object) -> None:
        count = sharing.count(kernel)
        self._buffer = tirx.decl_buffer((count,), "int64", name="numbers") if count else None
        self._variables = [tirx.Var(f"number{i}", "int64") for i in range(count)]

    @property
    def parameters(self) -> list[tirx.Buffer]:
        return [] if self._buffer is None else [self._buffer]

    def resolve(self, kernel: _Kernel) -> _Kernel:
        result: _Kernel = sharing.resolved(kernel, self._variables.__getitem__)
        return result

    def bind(self, statement: tirx.Stmt) -> tirx.Stmt:
        if self._buffer is None:
            return statement
        return tirx.SeqStmt([*(tirx.Bind(variable, self._buffer[i]) for i, variable in enumerate(self._variables)), statement])


def as_type(number: Any, dtype: str) -> Expr:
    """A number of a resolved kernel in this type."""
    return tirx.const(number, dtype) if isinstance(number, int) else number.astype(dtype)
