"""Elementwise kernels that LLVM's own vectors serve badly on AVX-512: tables of 256 entries by vpermi2b (20 times as fast), dyadic scaling
by vpmuldq on even and odd lanes (twice as fast). On AVX2 both gain nothing.

All operands are contiguous or constant along the innermost loop. ``serves`` says which kernels these are; ``generic`` has the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx.script import builder as T

from qcompiler.backends.tvm.kernels import ITEM_SIZE, Add, ElementwiseKernel, Lookup, Operand, Requantize, maximum
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates import rescaling
from qcompiler.backends.tvm.templates import vectors as v
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.layout import Parameter

if TYPE_CHECKING:
    from qcompiler.backends.tvm.target import KernelTarget

_TABLE_VECTOR = 64  # bytes of vpermi2b
_TABLE_ENTRIES = 256
_BLOCK = 4096  # elements of a task where the kernel is one long loop
_SHORTEST = 16  # elements of the innermost loop for which vectors of it pay


def serves(kernel: ElementwiseKernel, target: KernelTarget) -> bool:
    """Whether ``emit`` has this kernel."""
    if not kernel.shape or maximum(kernel.shape[-1]) < _SHORTEST or kernel.output.strides[-1] != 1:
        return False
    if any(operand.strides[-1] not in (0, 1) for operand in kernel.operands):
        return False
    if isinstance(kernel.operation, Lookup):
        x, table = kernel.operands
        small = ITEM_SIZE[table.dtype] <= ITEM_SIZE["int16"] and table.dtype == kernel.output.dtype
        return target.vector_bytes == _TABLE_VECTOR and small and x.strides[-1] == 1 and table.strides[-1] == 0
    scales = isinstance(kernel.operation, Add) or (isinstance(kernel.operation, Requantize) and kernel.operation.form == "high")
    return scales and target.vector_bytes == _TABLE_VECTOR


def emit(kernel: ElementwiseKernel, target: KernelTarget) -> tirx.PrimFunc:
    """The kernel's function; see ``serves``."""
    sizes = v.Sizes(kernel)
    extra = _TABLE_ENTRIES if isinstance(kernel.operation, Lookup) else 0
    parameters = [
        *(_parameter(f"operand_{i}", operand, kernel, extra) for i, operand in enumerate(kernel.operands)),
        _parameter("output", kernel.output, kernel, 0),
        *sizes.parameters,
    ]

    def body(buffers: list[Buffer]) -> None:
        sizes.bind(buffers)
        operation = e.resolved(kernel.operation, {parameter.name: buffer for parameter, buffer in zip(parameters, buffers, strict=True)})
        *outer, length = (sizes(size) for size in kernel.shape)
        inputs, output = buffers[: len(kernel.operands)], buffers[len(kernel.operands)]
        blocks = 1 if outer else e.ceiling(length, _BLOCK)
        with v.over_shape(outer or [blocks]) as index:
            first: Expr = T.int32(0) if outer else T.Bind(index[0] * _BLOCK)
            count = length if outer or (isinstance(length, int) and length <= _BLOCK) else T.Bind(T.min(length - first, _BLOCK))
            starts = [T.Bind(v.position(each, index if outer else []) + first * each.strides[-1]) for each in kernel.operands]
            end = T.Bind(v.position(kernel.output, index if outer else []) + first)
            step, lanes = _step(dataclasses.replace(kernel, operation=operation), target, inputs, starts)

            def store(at: Expr, rest: Expr | None) -> None:
                v.store(output, end + at, step(at), rest)

            v.over_row(count, lanes, store)

    return e.function(parameters, body)


def _parameter(name: str, operand: Operand, kernel: ElementwiseKernel, extra: int) -> Parameter:
    parameter = v.parameter(name, operand, kernel.shape)
    return Parameter(parameter.name, parameter.dtype, parameter.size + extra)


def _step(kernel: ElementwiseKernel, target: KernelTarget, buffers: list[Buffer], starts: list[Expr]) -> tuple[Callable[[Expr], Expr], int]:
    """What gives the vector at a place, and its number of elements."""
    operation, lanes = kernel.operation, target.vector_bytes // 4
    if isinstance(operation, Lookup):
        return _look_up(kernel, buffers, starts), _TABLE_VECTOR
    hoisted = [None if operand.strides[-1] else T.Bind(buffers[i][starts[i]]) for i, operand in enumerate(kernel.operands)]

    def load(number: int, at: Expr) -> Expr:
        """Elements of an operand as int32; one for all is read once."""
        scalar = hoisted[number]
        if scalar is not None:
            return v.splat(T.Bind(T.cast(scalar, "int32")), lanes)
        loaded = e.load(buffers[number], starts[number] + at, lanes)
        return loaded if v.element(loaded) == "int32" else e.cast(loaded, "int32")

    def scaled(number: int, pre_shift: int, zero_point: Expr, at: Expr) -> Expr:
        value = rescaling.centred(load(number, at), zero_point)
        return v.multiply_halves(T.Bind(T.shift_left(value, load(pre_shift, at))), load(pre_shift + 1, at))

    def narrowed(value: Expr) -> Expr:
        return value if kernel.output.dtype == "int32" else e.cast(value, kernel.output.dtype)

    def add(at: Expr) -> Expr:
        assert isinstance(operation, Add)  # chosen below
        both = T.Bind(scaled(0, 2, operation.zero_point_a, at) + scaled(1, 4, operation.zero_point_b, at))
        rounding, shift = v.like(both, e.half(operation.shift)), v.like(both, e.amount(operation.shift))
        rounded = T.Bind(T.shift_right(T.Bind(both + rounding), shift))
        return narrowed(rescaling.saturated(rounded, operation.zero_point, operation.low, operation.high))

    def requantize(at: Expr) -> Expr:
        assert isinstance(operation, Requantize)  # chosen below
        return narrowed(rescaling.requantized(load(0, at), operation, tuple(load(number, at) for number in (1, 2, 3))))

    return (add if isinstance(operation, Add) else requantize), lanes


def _look_up(kernel: ElementwiseKernel, buffers: list[Buffer], starts: list[Expr]) -> Callable[[Expr], Expr]:
    """Entries of 16 bits come from two tables of bytes. The table of int8 codes starts at -128, which as a byte is 128."""
    table, dtype = kernel.operands[1], kernel.output.dtype
    wide = ITEM_SIZE[table.dtype] > 1
    quarters = [e.load(buffers[1], starts[1] + start, _TABLE_VECTOR) for start in range(0, _TABLE_ENTRIES, _TABLE_VECTOR)]
    if kernel.operands[0].dtype == "int8":
        quarters = [*quarters[2:], *quarters[:2]]
    shifts = (0, 8) if wide else (0,)
    planes = [[e.cast(_shifted(quarter, shift), "int8") for quarter in quarters] for shift in shifts]

    def step(at: Expr) -> Expr:
        loaded = e.load(buffers[0], starts[0] + at, _TABLE_VECTOR)
        codes = loaded if v.element(loaded) == "int8" else e.reinterpret(loaded, "int8")
        found = [v.look_up_bytes(plane, codes) for plane in planes]
        if not wide:
            return found[0] if dtype == "int8" else e.reinterpret(found[0], dtype)
        low, high = (e.cast(e.reinterpret(half, "uint8"), "int16") for half in found)
        return T.Bind(T.bitwise_or(low, T.shift_left(high, v.like(high, 8))))

    return step


def _shifted(quarter: Expr, shift: int) -> Expr:
    return T.Bind(T.shift_right(quarter, v.like(quarter, shift))) if shift else quarter
