"""Fused normalization of rows: residual add, LayerNorm or RMSNorm, affine part, narrower copy; all exact, 32 bits an element.

Formulas: ``arithmetic.normalize`` (c, h, d, V, k, r, y below are its names), ``arithmetic.residual_add``, ``arithmetic.requantize``.

A task is a block of eight rows. What is one number a row (the sum, h, V, the Newton steps) is computed for all eight at once in the
lanes of a vector, so that no row waits for the latency of another one's:

1. sum, largest and smallest element of each row (vpmaddwd by ones, vpmaxsw, vpminsw);
2. ``N x - sum`` is monotone in x, so its largest magnitude, and with it h, follows from the largest and smallest x;
3. d of each row, kept on the stack, and V. |d| <= 2^11, so vpmaddwd squares it;
4. r for eight rows in 64-bit lanes: every factor is below 2^32, hence vpmuludq;
5. y = d F with F = (r << k) >> 4, the affine part, the narrower copy. Channels are the outer loop: a channel's parameters are read once
   for eight rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx.script import builder as T

from qcompiler.arithmetic.normalize import LARGEST_EPSILON, ROOT_START, ROOT_STEPS, magnitude_bits
from qcompiler.backends.tvm import packing_rows
from qcompiler.backends.tvm.kernels import Add, NormalizationKernel, Operand, Requantize, RowAffine
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates import vectors as v
from qcompiler.backends.tvm.templates.emission import Buffer, Expr

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
        blocks = (count + _BLOCK - 1) // _BLOCK
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

        padded = -(-self._length // self._words) * self._words
        reduced = e.scratch(_BLOCK * padded, "int32")
        sums, magnitudes, powers = (e.scratch(_BLOCK, "int32") for _ in range(3))
        for buffer in (sums, magnitudes, powers):
            e.store(buffer, 0, e.constant(0, "int32", _BLOCK))
        source: Callable[[Expr], tuple[Buffer, Expr]] = lambda row: (self._buffers["operand"], start(kernel.operand, row))  # noqa: E731
        if kernel.addition is not None:
            source = self._add_rows(kernel.addition, rows, start)
        with T.serial(0, rows) as row:
            self._measure(*source(row), row, sums, magnitudes)
        shifts = e.scratch(_BLOCK, "int32")
        bits = T.Bind(e.constant(32, "int32", _BLOCK) - v.leading_zeros(e.load(magnitudes, 0, _BLOCK)))
        e.store(shifts, 0, v.maximum(bits - v.like(bits, magnitude_bits(self._length)), v.like(bits, 0)))
        with T.serial(0, rows) as row:
            self._reduce(*source(row), row, sums, shifts, reduced, powers)
        factors = e.scratch(_BLOCK, "int32")
        factor = self._factors(e.load(powers, 0, _BLOCK), e.load(shifts, 0, _BLOCK))
        if kernel.affine is not None and kernel.affine.pre_shift is not None:
            factor = _shifted_left(factor, kernel.affine.pre_shift)
        e.store(factors, 0, factor)
        self._scale(rows, reduced, factors, start)

    def _measure(self, buffer: Buffer, start: Expr, row: Expr, sums: Buffer, magnitudes: Buffer) -> None:
        """The row's sum and the largest magnitude of c; in 16-bit lanes but for an int32 operand, which then has unsigned 16 bits."""
        kind, lanes = ("int32", self._lanes) if self._kernel.operand.dtype == "int32" else ("int16", self._words)
        limits = (-(2**31), 2**31 - 1) if kind == "int32" else (-(2**15), 2**15 - 1)
        total, ones = v.Register(e.constant(0, "int32", self._lanes)), e.constant(1, "int16", lanes)
        largest, smallest = (v.Register(e.constant(limit, kind, lanes)) for limit in limits)

        def step(at: Expr, rest: Expr | None) -> None:
            loaded = e.load(buffer, start + at, lanes)
            x = loaded if v.element(loaded) == kind else e.cast(loaded, kind)
            largest.set(v.maximum(largest.value, v.only_first(x, rest, limits[0])))
            smallest.set(v.minimum(smallest.value, v.only_first(x, rest, limits[1])))
            if self._kernel.operation.centre:
                terms = v.only_first(x, rest, 0)
                total.set(T.Bind(total.value + terms) if kind == "int32" else e.dot_words(total.value, terms, ones))

        v.over_row(self._length, lanes, step)
        high, low = (T.Bind(T.cast(v.reduce(*each), "int32")) for each in (("smax", largest.value), ("smin", smallest.value)))
        if self._kernel.operation.centre:
            average = v.reduce("add", total.value)
            above, below = T.Bind(high * self._length - average), T.Bind(average - low * self._length)
        else:
            average = T.Bind(e.number(self._kernel.operation.zero_point, "int32"))
            above, below = T.Bind(high - average), T.Bind(average - low)
        T.buffer_store(sums, average, [row])
        T.buffer_store(magnitudes, v.maximum(above, below), [row])

    def _reduce(self, buffer: Buffer, start: Expr, row: Expr, sums: Buffer, shifts: Buffer, reduced: Buffer, powers: Buffer) -> None:
        """d of the row, and the sum of its squares."""
        shift = T.Bind(T.bitwise_and(shifts[row], 31))
        rounding = T.Bind(T.shift_right(T.shift_left(T.int32(1), shift), 1))
        offset, shift = v.splat(T.Bind(rounding - sums[row]), self._lanes), v.splat(shift, self._lanes)
        length = e.constant(self._length if self._kernel.operation.centre else 1, "int32", self._lanes)
        total = v.Register(e.constant(0, "int32", self._lanes))
        row_start = T.Bind(row * (-(-self._length // self._words) * self._words))

        def step(at: Expr, rest: Expr | None) -> None:
            loaded = e.load(buffer, start + at, self._lanes)
            value = loaded if v.element(loaded) == "int32" else e.cast(loaded, "int32")
            d = T.Bind(T.shift_right(T.Bind(value * length) + offset, shift))
            e.store(reduced, row_start + at, d)
            magnitude = e.reinterpret(T.Bind(T.abs(v.only_first(d, rest, 0))), "int16")
            total.set(e.dot_words(total.value, magnitude, magnitude))

        v.over_row(self._length, self._lanes, step)
        T.buffer_store(powers, v.reduce("add", total.value), [row])

    def _factors(self, squares: Expr, shifts: Expr) -> Expr:
        """F of eight rows."""
        # Without a sign, and by an amount of which TVM sees the range (see ``shifts``).
        twice = e.cast(T.Bind(T.bitwise_and(shifts + shifts, v.like(shifts, 63))), "uint64")
        epsilon = T.Bind(T.shift_right(e.constant(self._kernel.operation.epsilon, "uint64", _BLOCK), twice))
        epsilon = e.cast(v.minimum(epsilon, v.like(epsilon, LARGEST_EPSILON)), "int32")
        power = v.maximum(squares + epsilon, v.like(squares, 1))
        spare = v.maximum(v.leading_zeros(power) - v.like(power, 2), v.like(power, 0))
        even = T.Bind(T.shift_right(spare, v.like(spare, 1)))
        value = e.cast(T.Bind(T.shift_left(power, T.Bind(even + even))), "uint64")
        root = T.Bind(v.like(value, ROOT_START) - T.shift_right(value * v.like(value, 5), v.like(value, 15)))
        for _ in range(ROOT_STEPS):
            square = T.Bind(T.shift_right(v.low_product(root, root), v.like(root, 8)))
            correction = T.Bind(T.shift_right(v.low_product(value, square), v.like(root, 28)))
            correction = T.Bind(e.constant(3 << 30, "uint64", _BLOCK) - correction)
            root = T.Bind(T.shift_right(v.low_product(root, correction), v.like(root, 31)))
        return e.cast(T.Bind(T.shift_right(T.shift_left(root, e.cast(even, "uint64")), v.like(root, 4))), "int32")

    # Outputs

    def _scale(self, rows: Expr, reduced: Buffer, factors: Buffer, start: Callable[[Operand, Expr], Expr]) -> None:
        kernel, padded = self._kernel, -(-self._length // self._words) * self._words
        outputs = [(name, getattr(kernel, name)) for name in ("output", "narrow_output")]
        shared = self._narrowing_parameters(None)

        def step(at: Expr, rest: Expr | None) -> None:
            channel = self._affine_parameters("", at)
            narrow = shared or self._narrowing_parameters(at)
            narrow_channel = self._affine_parameters("narrow_", at) if isinstance(kernel.narrowing, RowAffine) else {}
            with T.serial(0, rows) as row:
                y = T.Bind(e.load(reduced, T.Bind(row * padded) + at, self._lanes) * v.splat(T.Bind(factors[row]), self._lanes))
                # Where all channels share the pre-shift, y has it already.
                value = y if kernel.affine is None else self._affine(dataclasses.replace(kernel.affine, pre_shift=0), y, channel)
                values = {"output": value, "narrow_output": value}
                if isinstance(kernel.narrowing, RowAffine):
                    values["narrow_output"] = self._affine(kernel.narrowing, value, narrow_channel)
                elif kernel.narrowing is not None:
                    values["narrow_output"] = self._narrow(value, narrow)
                for name, operand in outputs:
                    if operand is not None:
                        same = v.element(values[name]) == operand.dtype
                        vector = values[name] if same else e.cast(values[name], operand.dtype)
                        v.store(self._buffers[name], start(operand, row) + at, vector, rest)

        v.over_row(self._length, self._lanes, step)

    def _affine_parameters(self, prefix: str, at: Expr) -> dict[str, Expr]:
        named = {name: self._buffers.get(prefix + name) for name in ("multiplier", "offset", "pre_shift", "shift")}
        return {name: e.load(buffer, at, self._lanes) for name, buffer in named.items() if buffer is not None}

    def _affine(self, affine: RowAffine, y: Expr, channel: Mapping[str, Expr]) -> Expr:
        y = _centred(y, affine.input_zero_point)
        y = T.Bind(T.shift_left(y, channel["pre_shift"])) if "pre_shift" in channel else _shifted_left(y, affine.pre_shift)
        shift = channel["shift"] if affine.shift is None else v.like(y, e.amount(affine.shift))
        value = T.Bind(T.shift_right(v.multiply_halves(y, channel["multiplier"]) + channel["offset"], shift))
        return _saturated(value, 0 if affine.offset_has_zero_point else affine.zero_point, affine.low, affine.high)

    def _narrowing_parameters(self, at: Expr | None) -> tuple[Expr, ...]:
        """Pre-shift, multiplier and shift of these channels; with None those of all channels, if they share them."""
        kernel = self._kernel
        if not isinstance(kernel.narrowing, Requantize) or kernel.narrowing_per_channel != (at is not None):
            return ()
        buffers = [self._buffers[f"narrow_{name}"] for name in ("pre_shift", "multiplier", "shift")]
        if at is None:
            return tuple(v.splat(T.Bind(buffer[0]), self._lanes) for buffer in buffers)
        return tuple(e.load(buffer, at, self._lanes) for buffer in buffers)

    def _narrow(self, value: Expr, parameters: tuple[Expr, ...]) -> Expr:
        narrowing = self._kernel.narrowing
        assert isinstance(narrowing, Requantize)  # the caller's guard
        pre_shift, multiplier, shift = parameters
        centred = _centred(value, narrowing.input_zero_point)
        if narrowing.form == "high":
            scaled = v.multiply_halves(T.Bind(T.shift_left(centred, pre_shift)), multiplier)
        else:
            word = v.clamp(_rounding_shift(centred, pre_shift), -(2**15), 2**15 - 1)
            scaled = T.Bind(T.shift_right(T.Bind(word * multiplier + v.like(word, 1 << 14)), v.like(word, 15)))
        return _saturated(_rounding_shift(scaled, shift), narrowing.zero_point, narrowing.low, narrowing.high)

    # The sum before

    def _add_rows(self, addition: Add, rows: Expr, start: Callable[[Operand, Expr], Expr]) -> Callable[[Expr], tuple[Buffer, Expr]]:
        """Compute the sums of the block; gives where each row of them starts."""
        kernel, padded = self._kernel, -(-self._length // self._words) * self._words
        assert kernel.addend is not None  # comes with the addition
        addend, total = kernel.addend, kernel.total
        sums = e.scratch(_BLOCK * padded, "int16") if total is None else self._buffers["total"]
        parameters = [v.splat(T.Bind(self._buffers[name][0]), self._lanes) for name in _ADDITION_PARAMETERS]

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
                value = _saturated(rounded, addition.zero_point, addition.low, addition.high)
                v.store(sums, result + at, e.cast(value, "int16" if total is None else total.dtype), rest)

            v.over_row(self._length, self._lanes, step)
        return lambda row: (sums, place(row))


_ADDITION_PARAMETERS = ("sum_pre_shift_a", "sum_multiplier_a", "sum_pre_shift_b", "sum_multiplier_b")


def _saturated(value: Expr, zero_point: Expr, low: Expr, high: Expr) -> Expr:
    """``clamp(value + zero_point)`` without leaving int32: the bounds move instead of the value."""
    bounded = v.clamp(value, *e.centred_bounds(low, high, zero_point))
    return bounded if e.is_zero(zero_point) else T.Bind(bounded + v.like(bounded, zero_point))


def _centred(value: Expr, zero_point: Expr) -> Expr:
    return value if e.is_zero(zero_point) else T.Bind(value - v.like(value, zero_point))


def _shifted_left(value: Expr, shift: Expr) -> Expr:
    return value if e.is_zero(shift) else T.Bind(T.shift_left(value, v.like(value, e.amount(shift))))


def _rounding_shift(value: Expr, shift: Expr) -> Expr:
    """``(value + 2^(shift - 1)) >> shift``; a shift of 0 has no rounding term."""
    one = v.like(value, 1)
    return T.Bind(T.shift_right(T.Bind(value + T.shift_right(T.shift_left(one, shift), one)), shift))
