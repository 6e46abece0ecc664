"""Fused normalization of rows: residual add, LayerNorm or RMSNorm, affine part, narrower copy; all exact, 32 bits an element.

Formulas: ``arithmetic.normalize`` (c, V, g, j, w, r, t, y below are its names), ``arithmetic.residual_add``, ``arithmetic.requantize``.

A task is a block of eight rows. What is one number a row (V, j, the Newton steps) is computed for all eight at once in the lanes of a
vector, so that no row waits for the latency of another one's:

1. sums of the elements and of their squares (vpmaddwd). A pair of squares of 16 bits fills 32 bits without sign: it is added to one of
   two sums of 64-bit lanes by its place, and nothing carries;
2. V by 64-bit integers, r for eight rows in 64-bit lanes: every factor is below 2^32, hence vpmuludq;
3. t = (x A + B) >> d with A = N << max(j - g, 0), B = rounding - (sum << max(j - g, 0)), modulo 2^32: t itself is in between, as it fits;
4. y, the affine part, the narrower copy, row by row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx.script import builder as T

from qcompiler.arithmetic import DYADIC_PARAMETERS
from qcompiler.arithmetic.normalize import POWER_BITS, ROOT_SLOPE, ROOT_START, ROOT_STEPS, guard_bits
from qcompiler.backends.tvm import packing_rows
from qcompiler.backends.tvm.kernels import Add, NormalizationKernel, Operand, Requantize, RowAffine
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates import vectors as v
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.rescaling import centred, requantized, saturated

if TYPE_CHECKING:
    from qcompiler.backends.tvm.target import KernelTarget

_BLOCK = 8  # rows


def emit(kernel: NormalizationKernel, target: KernelTarget) -> tirx.PrimFunc:
    """The kernel's function."""
    sizes, whole = v.Sizes(kernel), (*kernel.shape, kernel.length)
    ends = {"total": kernel.total, "output": kernel.output, "narrow_output": kernel.narrow_output}
    starts = {"operand": kernel.operand, "addend": kernel.addend}
    parameters = [
        *(v.parameter(name, operand, whole) for name, operand in starts.items() if operand is not None),
        *packing_rows.parameters(kernel),
        *(v.parameter(name, operand, whole) for name, operand in ends.items() if operand is not None),
        *sizes.parameters,
    ]

    def body(buffers: list[Buffer]) -> None:
        sizes.bind(buffers)
        named = {parameter.name: buffer for parameter, buffer in zip(parameters, buffers, strict=True)}
        _Normalization(e.resolved(kernel, named), target.vector_bytes, named, sizes).emit()

    return e.function(parameters, body)


class _Normalization:
    def __init__(self, kernel: NormalizationKernel, vector_bytes: int, buffers: Mapping[str, Buffer], sizes: v.Sizes) -> None:
        self._kernel = kernel
        self._length = kernel.length
        self._words = vector_bytes // 2  # lanes of a vector of int16
        self._lanes = vector_bytes // 4
        self._buffers = buffers
        self._sizes = sizes

    def emit(self) -> None:
        """A parallel loop over blocks of rows; dimensions before the rows are walked one by one."""
        *outer, rows = self._kernel.shape or (1,)
        count = self._sizes(rows)
        blocks = e.ceiling(count, _BLOCK)
        total = blocks
        for size in outer:
            total = total * self._sizes(size)
        with e.parallel(total if isinstance(total, int) else T.Bind(total)) as task:
            block, rest = T.Bind(task % blocks), T.Bind(task // blocks)
            index: list[Expr] = []
            for size in reversed(outer):
                end = self._sizes(size)
                index.insert(0, T.Bind(rest % end))
                rest = T.Bind(rest // end)
            first = T.Bind(block * _BLOCK)
            self._block(index, first, T.Bind(T.min(count - first, _BLOCK)))

    # One block of rows

    def _block(self, outer: list[Expr], first: Expr, rows: Expr) -> None:
        kernel, has_rows = self._kernel, bool(self._kernel.shape)

        def start(operand: Operand, row: Expr) -> Expr:
            return v.position(operand, [*outer, first + row] if has_rows else [])

        sums, powers = e.scratch(_BLOCK, "int32"), e.scratch(_BLOCK, "int64")
        e.store(sums, 0, e.constant(0, "int32", _BLOCK))
        e.store(powers, 0, e.constant(1, "int64", _BLOCK))
        source: Callable[[Expr], tuple[Buffer, Expr]] = lambda row: (self._buffers["operand"], start(kernel.operand, row))  # noqa: E731
        if kernel.addition is not None:
            source = self._add_rows(kernel.addition, rows, start)
        with T.serial(0, rows) as row:
            self._measure(*source(row), row, sums, powers)
        self._scale(rows, source, self._parameters_of_rows(e.load(sums, 0, _BLOCK), e.load(powers, 0, _BLOCK)), start)

    def _measure(self, buffer: Buffer, start: Expr, row: Expr, sums: Buffer, powers: Buffer) -> None:
        """What c subtracts, and V."""
        kind, lanes = ("int32", self._lanes) if self._kernel.operand.dtype == "int32" else ("int16", self._words)
        is_byte = self._kernel.addition is None and self._kernel.operand.dtype in ("int8", "uint8")
        total, ones = v.Register(e.constant(0, "int32", self._lanes)), e.constant(1, "int16", lanes)
        squares = _NarrowSum(self._lanes) if is_byte else _WideSum(self._lanes)

        def step(at: Expr, rest: Expr | None) -> None:
            loaded = e.load(buffer, start + at, lanes)
            x = v.only_first(loaded if v.element(loaded) == kind else e.cast(loaded, kind), rest, 0)
            total.set(T.Bind(total.value + x) if kind == "int32" else e.dot_words(total.value, x, ones))
            squares.add(_square(x) if kind == "int32" else e.multiply_words(x, x))

        v.over_row(self._length, lanes, step)
        total_wide, square = T.Bind(T.cast(v.reduce("add", total.value), "int64")), squares.result()
        if self._kernel.operation.centre:
            subtracted = total_wide
            power = T.Bind(square * self._length - total_wide * total_wide)
        else:
            subtracted = T.Bind(e.number(self._kernel.operation.zero_point, "int64"))
            power = T.Bind(square - subtracted * (total_wide * 2 - subtracted * self._length))
        epsilon = e.number(self._kernel.operation.epsilon, "int64")
        T.buffer_store(sums, T.cast(subtracted, "int32"), [row])
        T.buffer_store(powers, T.max(power + epsilon, T.int64(1)), [row])

    def _parameters_of_rows(self, sums: Expr, powers: Expr) -> _Rows:
        """A, B, d and r of eight rows."""
        centre = self._kernel.operation.centre
        # Amounts of which TVM sees the range (see ``shifts``).
        even = T.Bind(T.shift_right(v.leading_zeros(powers) - v.like(powers, 64 - POWER_BITS), v.like(powers, 1)))
        twice = T.Bind(T.bitwise_and(even + even, v.like(even, 63)))
        value = e.cast(T.Bind(T.shift_right(T.shift_left(powers, twice), v.like(powers, 30))), "uint64")
        lift = T.Bind(e.cast(even, "int32") - e.constant(guard_bits(self._length, centre), "int32", _BLOCK))
        up, down = (T.Bind(T.bitwise_and(v.maximum(amount, v.like(lift, 0)), v.like(lift, 31))) for amount in (lift, -lift))
        rounding = T.Bind(T.shift_right(T.shift_left(v.like(down, 1), down), v.like(down, 1)))
        up = e.cast(up, "uint32")
        factor = T.Bind(T.shift_left(e.constant(self._length if centre else 1, "uint32", _BLOCK), up))
        offset = T.Bind(e.cast(rounding, "uint32") - T.shift_left(e.cast(sums, "uint32"), up))
        vectors = {"factor": factor, "offset": offset, "shift": down, "root": e.cast(_reciprocal_root(value), "int32")}
        buffers = {name: e.scratch(_BLOCK, v.element(vector)) for name, vector in vectors.items()}
        for name, vector in vectors.items():
            e.store(buffers[name], 0, vector)
        return _Rows(**buffers)

    # Outputs

    def _scale(
        self, rows: Expr, source: Callable[[Expr], tuple[Buffer, Expr]], of_rows: _Rows, start: Callable[[Operand, Expr], Expr]
    ) -> None:
        kernel = self._kernel
        outputs = [(name, getattr(kernel, name)) for name in ("output", "narrow_output")]
        shared = self._narrowing_parameters(None)
        with T.serial(0, rows) as row:
            (buffer, first), normalized = source(row), of_rows.normalization(row, self._lanes, kernel.operation.drops)
            places = {name: start(operand, row) for name, operand in outputs if operand is not None}

            def step(at: Expr, rest: Expr | None) -> None:
                y = normalized(e.load(buffer, first + at, self._lanes))
                value = y if kernel.affine is None else self._affine(kernel.affine, y, self._affine_parameters("", at))
                values = {"output": value, "narrow_output": value}
                if isinstance(kernel.narrowing, RowAffine):
                    values["narrow_output"] = self._affine(kernel.narrowing, value, self._affine_parameters("narrow_", at))
                elif kernel.narrowing is not None:
                    values["narrow_output"] = requantized(value, kernel.narrowing, shared or self._narrowing_parameters(at))
                for name, place in places.items():
                    dtype = getattr(kernel, name).dtype
                    vector = values[name] if v.element(values[name]) == dtype else e.cast(values[name], dtype)
                    v.store(self._buffers[name], place + at, vector, rest)

            v.over_row(self._length, self._lanes, step)

    def _affine_parameters(self, prefix: str, at: Expr) -> dict[str, Expr]:
        named = {name: self._buffers.get(prefix + name) for name in ("multiplier", "offset", "pre_shift", "shift")}
        return {name: e.load(buffer, at, self._lanes) for name, buffer in named.items() if buffer is not None}

    def _affine(self, affine: RowAffine, y: Expr, channel: Mapping[str, Expr]) -> Expr:
        y = centred(y, affine.input_zero_point)
        y = T.Bind(T.shift_left(y, channel["pre_shift"])) if "pre_shift" in channel else _shifted_left(y, affine.pre_shift)
        shift = channel["shift"] if affine.shift is None else v.like(y, e.amount(affine.shift))
        value = T.Bind(T.shift_right(v.multiply_halves(y, channel["multiplier"]) + channel["offset"], shift))
        return saturated(value, 0 if affine.offset_has_zero_point else affine.zero_point, affine.low, affine.high)

    def _narrowing_parameters(self, at: Expr | None) -> tuple[Expr, ...]:
        """Pre-shift, multiplier and shift of these channels; with None those of all channels, if they share them."""
        kernel = self._kernel
        if not isinstance(kernel.narrowing, Requantize) or kernel.narrowing_per_channel != (at is not None):
            return ()
        buffers = [self._buffers[f"narrow_{name}"] for name in DYADIC_PARAMETERS]
        if at is None:
            return tuple(v.splat(T.Bind(buffer[0]), self._lanes) for buffer in buffers)
        return tuple(e.load(buffer, at, self._lanes) for buffer in buffers)

    # The sum before

    def _add_rows(self, addition: Add, rows: Expr, start: Callable[[Operand, Expr], Expr]) -> Callable[[Expr], tuple[Buffer, Expr]]:
        """Compute the sums of the block; gives where each row of them starts."""
        kernel, padded = self._kernel, -(-self._length // self._words) * self._words
        assert kernel.addend is not None  # comes with the addition
        addend, total = kernel.addend, kernel.total
        sums = e.scratch(_BLOCK * padded, "int16") if total is None else self._buffers["total"]
        parameters = [v.splat(T.Bind(self._buffers[name][0]), self._lanes) for name in packing_rows.ADDITION_ROLES]

        def place(row: Expr) -> Expr:
            return T.Bind(row * padded) if total is None else start(total, row)

        with T.serial(0, rows) as row:
            left, right, result = start(kernel.operand, row), start(addend, row), place(row)

            def step(at: Expr, rest: Expr | None) -> None:
                a, b = (
                    T.Bind(e.cast(e.load(self._buffers[name], begin + at, self._lanes), "int32") - e.constant(zero, "int32", self._lanes))
                    for name, begin, zero in (("operand", left, addition.zero_point_a), ("addend", right, addition.zero_point_b))
                )
                high = v.multiply_halves(T.Bind(T.shift_left(a, parameters[0])), parameters[1])
                other = v.multiply_halves(T.Bind(T.shift_left(b, parameters[2])), parameters[3])
                both = T.Bind(high + other + v.like(high, e.half(addition.shift)))
                rounded = T.Bind(T.shift_right(both, v.like(both, e.amount(addition.shift))))
                value = saturated(rounded, addition.zero_point, addition.low, addition.high)
                v.store(sums, result + at, e.cast(value, "int16" if total is None else total.dtype), rest)

            v.over_row(self._length, self._lanes, step)
        return lambda row: (sums, place(row))


def _square(x: Expr) -> Expr:
    """Of int32 lanes; without sign, as those of 16 bits without sign leave int32."""
    unsigned = e.reinterpret(x, "uint32")
    return T.Bind(unsigned * unsigned)


class _NarrowSum:
    """Of squares of bytes, whose sum over a row fits 32 bits."""

    def __init__(self, lanes: int) -> None:
        self._total = v.Register(e.constant(0, "int32", lanes))

    def add(self, squares: Expr) -> None:
        """int32 lanes."""
        self._total.set(T.Bind(self._total.value + squares))

    def result(self) -> Expr:
        """int64."""
        return T.Bind(T.cast(v.reduce("add", self._total.value), "int64"))


class _WideSum:
    """Of lanes of 32 bits without sign."""

    def __init__(self, lanes: int) -> None:
        self._even, self._odd = (v.Register(e.constant(0, "uint64", lanes // 2)) for _ in range(2))

    def add(self, squares: Expr) -> None:
        """Lanes of 32 bits, read as uint32."""
        pairs = e.reinterpret(squares, "uint64")
        self._even.set(T.Bind(self._even.value + T.bitwise_and(pairs, v.like(pairs, 0xFFFFFFFF))))
        self._odd.set(T.Bind(self._odd.value + T.shift_right(pairs, v.like(pairs, 32))))

    def result(self) -> Expr:
        """int64."""
        return T.Bind(T.cast(v.reduce("add", T.Bind(self._even.value + self._odd.value)), "int64"))


@dataclasses.dataclass(frozen=True)
class _Rows:
    """A, B (uint32), d and r (int32) of each row of a block."""

    factor: Buffer
    offset: Buffer
    shift: Buffer
    root: Buffer

    def normalization(self, row: Expr, lanes: int, drops: bool) -> Callable[[Expr], Expr]:
        """From elements of a row to y."""
        factor, offset = (v.splat(T.Bind(buffer[row]), lanes) for buffer in (self.factor, self.offset))
        shift = v.splat(T.Bind(T.bitwise_and(self.shift[row], 31)), lanes)
        root = e.even_lanes(v.splat(T.Bind(self.root[row]), lanes))

        def normalized(x: Expr) -> Expr:
            wide = x if v.element(x) == "int32" else e.cast(x, "int32")
            lifted = e.reinterpret(T.Bind(T.Bind(e.reinterpret(wide, "uint32") * factor) + offset), "int32")
            scaled = T.Bind(T.shift_right(lifted, shift)) if drops else lifted
            return e.join_high_halves(*(T.Bind(half * root) for half in (e.even_lanes(scaled), e.odd_lanes(scaled))))

        return normalized


def _reciprocal_root(value: Expr) -> Expr:
    """r of eight uint64."""
    root = T.Bind(v.like(value, ROOT_START) - T.shift_right(v.low_product(value, v.like(value, ROOT_SLOPE)), v.like(value, 16)))
    for _ in range(ROOT_STEPS):
        square = T.Bind(T.shift_right(v.low_product(root, root), v.like(root, 31)))
        correction = T.Bind(T.shift_right(v.low_product(value, square), v.like(root, 31)))
        correction = T.Bind(e.constant(3 << 30, "uint64", _BLOCK) - correction)
        root = T.Bind(T.shift_right(v.low_product(root, correction), v.like(root, 31)))
    return root


def _shifted_left(value: Expr, shift: Expr) -> Expr:
    return value if e.is_zero(shift) else T.Bind(T.shift_left(value, v.like(value, e.amount(shift))))
