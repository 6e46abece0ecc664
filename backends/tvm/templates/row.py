"""One row of a row kernel: where it lies, how its vectors are loaded, masked and stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tvm.tirx.script import builder as T

from qcompiler.backends.tvm.kernels import RowKernel
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates import vectors as v
from qcompiler.backends.tvm.templates.emission import Buffer, Expr


class Row:
    """``index`` is its place in the kernel's shape; a step takes ``lanes`` elements."""

    def __init__(self, kernel: RowKernel, buffers: Mapping[str, Buffer], index: list[Expr], length: Expr, lanes: int) -> None:
        self.kernel = kernel
        self.lanes = lanes
        self.index = index
        self.length = length
        self._buffers = buffers
        self._start = v.position(kernel.operand, index)
        self._end = v.position(kernel.output, index)
        self._second = v.position(kernel.second, index) if kernel.second is not None else None

    def over(self, step: Callable[[Expr, Expr | None], None]) -> None:
        """``step(start, rest)`` for every vector of the row."""
        v.over_row(self.length, self.lanes, step)

    def load(self, at: Expr) -> Expr:
        """Elements of the operand as int32."""
        loaded = e.load(self._buffers["operand"], self._start + at, self.lanes)
        return loaded if v.element(loaded) == "int32" else e.cast(loaded, "int32")

    def load_second(self, at: Expr) -> Expr:
        """Elements of the second operand in its own type: one for all where it does not vary along the row."""
        second = self.kernel.second
        assert second is not None  # its caller knows the kernel
        if second.strides[-1] == 0:
            return v.splat(T.Bind(self._buffers["second"][self._second]), self.lanes)
        return e.load(self._buffers["second"], self._second + at, self.lanes)

    def kept(self, vector: Expr, at: Expr, rest: Expr | None, neutral: int) -> Expr:
        """The vector, with ``neutral`` where the mask (the second operand, if any) drops an element or the row has ended."""
        if self.kernel.second is not None:
            mask = self.load_second(at)
            vector = T.Bind(T.Select(mask != v.like(mask, 0), vector, v.like(vector, neutral)))
        return v.only_first(vector, rest, neutral)

    def store(self, at: Expr, rest: Expr | None, value: Expr) -> None:
        """Store int32 lanes in the output's type."""
        dtype = self.kernel.output.dtype
        v.store(self._buffers["output"], self._end + at, value if v.element(value) == dtype else e.cast(value, dtype), rest)
