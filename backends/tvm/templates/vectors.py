"""Words for kernels that walk rows: loops over a row with a tail, variables in registers, reductions of a vector, 64-bit products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from tvm.tirx.script import builder as T

from qcompiler.backends.tvm import sharing
from qcompiler.backends.tvm.kernels import Operand, Size, is_dynamic, maxima
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.layout import Parameter

_SLACK = 256  # bytes that may be read past a row


class Register:
    """A variable, or a vector of them, that LLVM keeps in a register."""

    def __init__(self, start: Expr) -> None:
        self._count = int(start.ty.dtype.lanes)
        self._buffer = T.alloc_buffer((self._count,), str(start.ty.dtype).split("x", maxsplit=1)[0], scope="local")
        self.set(start)

    @property
    def value(self) -> Expr:
        return e.load(self._buffer, 0, self._count) if self._count > 1 else T.Bind(self._buffer[0])

    def set(self, value: Expr) -> None:
        T.buffer_store(self._buffer, value, [T.Ramp(T.int32(0), 1, self._count) if self._count > 1 else 0])


class Sizes:
    """The ends of loops: numbers, or for dynamic sizes what the kernel's last pointer says. ``parameters``: that of open numbers too."""

    def __init__(self, kernel: object) -> None:
        numbers = sharing.count(kernel)
        self._is_dynamic = is_dynamic(kernel)
        self.parameters = [
            *([Parameter("numbers", "int64", numbers)] if numbers else []),
            *([Parameter("extents", "int32", 1)] if self._is_dynamic else []),
        ]
        self._symbol: Expr = None

    def bind(self, buffers: Sequence[Buffer]) -> None:
        """Read the symbol's value, once, from the last of the kernel's buffers."""
        if self._is_dynamic:
            self._symbol = T.Bind(buffers[-1][0])

    def __call__(self, size: Size) -> Expr:
        return size if isinstance(size, int) else T.Bind(self._symbol + size.offset)


def parameter(name: str, operand: Operand, shape: Sequence[Size], slack: int = _SLACK) -> Parameter:
    """The argument behind which an operand lies, with the bytes that may be read past its end."""
    steps = zip(maxima(shape), operand.strides, strict=True)
    reach = operand.offset + sum((extent - 1) * stride for extent, stride in steps if stride > 0)
    # Booleans are bytes of 0 and 1; TVM's own are bits.
    dtype = "uint8" if operand.dtype == "bool" else operand.dtype
    return Parameter(name, dtype, reach + 1 + slack // np.dtype(dtype).itemsize)


def position(operand: Operand, index: Sequence[Expr]) -> Expr:
    """Where element ``index`` lies; ``index`` may leave the last dimensions out."""
    at: Expr = T.int32(operand.offset)
    for coordinate, stride in zip(index, operand.strides, strict=False):
        at = at + coordinate * stride
    return T.Bind(at)


def over_row(length: Expr, count: int, body: Callable[[Expr, Expr | None], None]) -> None:
    """``body(start, None)`` for each whole vector of ``count`` elements, then ``body(start, rest)`` for what is left, if anything."""
    full, rest = length // count, length % count
    if not isinstance(length, int):
        full, rest = T.Bind(full), T.Bind(rest)
        with T.serial(0, full) as chunk:
            body(T.Bind(chunk * count), None)
        with T.If(rest > 0), T.Then():
            body(T.Bind(full * count), rest)
        return
    if full:
        with T.serial(0, full) as chunk:
            body(T.Bind(chunk * count), None)
    if rest:
        body(T.int32(full * count), rest)


def only_first(vector: Expr, rest: Expr | None, neutral: int) -> Expr:
    """The vector, in a tail with ``neutral`` after its first ``rest`` lanes."""
    if rest is None:
        return vector
    count = e.lanes(vector)
    inside = T.Ramp(T.int32(0), 1, count) < T.Broadcast(rest if not isinstance(rest, int) else T.int32(rest), count)
    return T.Bind(T.Select(inside, vector, e.constant(neutral, element(vector), count)))


def store(buffer: Buffer, offset: Expr, vector: Expr, rest: Expr | None) -> None:
    """The whole vector, in a tail its first ``rest`` lanes and not a byte more."""
    if rest is None:
        e.store(buffer, offset, vector)
    elif isinstance(rest, int):
        e.store_first(buffer, offset, vector, rest)
    else:
        count = e.lanes(vector)
        inside = T.Ramp(T.int32(0), 1, count) < T.Broadcast(rest, count)
        T.evaluate(T.call_llvm_intrin("void", "llvm.masked.store", vector, T.address_of(buffer[offset]), inside))


def element(vector: Expr) -> str:
    """The type of one lane."""
    return str(vector.ty.dtype).split("x", maxsplit=1)[0]


def reduce(operation: str, vector: Expr) -> Expr:
    """The sum (``add``), maximum (``smax``) or minimum (``smin``) of all lanes."""
    intrinsic = T.llvm_lookup_intrinsic_id(f"llvm.vector.reduce.{operation}")
    return T.Bind(T.call_llvm_pure_intrin(intrinsic, vector, dtype=element(vector)))


def leading_zeros(vector: Expr) -> Expr:
    """Of int32 lanes; 32 for 0."""
    return T.Bind(T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id("llvm.ctlz"), vector, T.bool(False), dtype=vector.ty.dtype))


def maximum(x: Expr, y: Expr) -> Expr:
    """The larger in each lane."""
    return T.Bind(T.max(x, y))


def minimum(x: Expr, y: Expr) -> Expr:
    """The smaller in each lane."""
    return T.Bind(T.min(x, y))


def clamp(vector: Expr, low: Expr, high: Expr) -> Expr:
    """Each lane brought into the bounds."""
    count, kind = e.lanes(vector), element(vector)
    return T.Bind(T.max(T.min(vector, e.constant(high, kind, count)), e.constant(low, kind, count)))


def splat(scalar: Expr, count: int) -> Expr:
    """The scalar in all lanes."""
    return T.Bind(T.Broadcast(scalar, count))


@contextmanager
def over_shape(ends: Sequence[Expr], loop: e.Loop = e.parallel) -> Iterator[list[Expr]]:
    """One loop over all indices of a shape."""
    total: Expr = 1
    for end in ends:
        total = total * end
    with loop(total if isinstance(total, int) else T.Bind(total)) as task:
        index: list[Expr] = []
        rest = task
        for end in reversed(ends[1:]):
            index.insert(0, T.Bind(rest % end))
            rest = T.Bind(rest // end)
        yield [rest, *index] if ends else []


def like(vector: Expr, value: Expr) -> Expr:
    """The number in all lanes of a vector of this type; a number for a number."""
    count = e.lanes(vector)
    return e.constant(value, element(vector), count) if count > 1 else e.number(value, element(vector))


def multiply_halves(value: Expr, multiplier: Expr) -> Expr:
    """``(value * multiplier) >> 32`` of int32 lanes: vpmuldq for even and odd lanes."""
    even = T.Bind(e.even_lanes(value) * e.even_lanes(multiplier))
    odd = T.Bind(e.odd_lanes(value) * e.odd_lanes(multiplier))
    return e.join_high_halves(even, odd)


def look_up_bytes(quarters: Sequence[Expr], codes: Expr) -> Expr:
    """A table of 256 bytes in four vectors at 64 codes: two vpermi2b and a choice by the sign bit."""
    low, high = e.permute_bytes(quarters[0], codes, quarters[1]), e.permute_bytes(quarters[2], codes, quarters[3])
    return T.Bind(T.Select(codes < like(codes, 0), high, low))


def low_product(x: Expr, y: Expr) -> Expr:
    """Product of uint64 lanes below 2^32: vpmuludq."""
    mask = like(x, 0xFFFFFFFF)
    return T.Bind(T.bitwise_and(x, mask) * T.bitwise_and(y, mask))
