"""Loop ends in TIR: numbers, or for dynamic sizes what the kernel's last pointer says. Strides stay numbers either way."""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Expr

from qcompiler.backends.tvm.kernels import Extent, Size, is_dynamic


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
