"""The planes of an image as the bytes of its pixels: a program's input, quantized on the way.

A vector of each plane is quantized to int32 lanes, in whose bytes the channels of a pixel meet; one permutation drops the byte that no
channel has. The last vector of a row starts where it ends with the row, so that nothing past the caller's memory is read.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx.script import builder as T

from qcompiler.backends.tvm.float_border import quantized
from qcompiler.backends.tvm.kernels import ITEM_SIZE, Copy, ElementwiseKernel, Quantize, is_dynamic, maxima
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates import vectors as v
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.layout import PARALLEL_ELEMENTS

if TYPE_CHECKING:
    from qcompiler.backends.tvm.target import KernelTarget

_CHANNELS = range(2, ITEM_SIZE["int32"] + 1)
_FEWEST = 16  # pixels of a row: the longest vector
_TASK = 2048  # pixels


def serves(kernel: ElementwiseKernel) -> bool:
    """Whether ``emit`` has this kernel: two to four channels to bytes, each plane contiguous along the pixels."""
    if not isinstance(kernel.operation, Quantize | Copy) or is_dynamic(kernel) or len(kernel.shape) < 2:
        return False
    *_, width, channels = maxima(kernel.shape)
    if channels not in _CHANNELS or width < _FEWEST:
        return False
    x, *parameters = kernel.operands
    is_pixels = kernel.output.dtype in ("int8", "uint8") and kernel.output.strides[-2:] == (channels, 1)
    return is_pixels and x.strides[-2] == 1 and all(operand.strides[-2] == 0 for operand in parameters)


def emit(kernel: ElementwiseKernel, target: KernelTarget) -> tirx.PrimFunc:
    """The kernel's function; see ``serves``."""
    sizes = v.Sizes(kernel)
    operands = {f"operand_{i}": operand for i, operand in enumerate(kernel.operands)} | {"output": kernel.output}
    # The caller's own memory is among the operands: nothing past it may be read.
    parameters = [*(v.parameter(name, operand, kernel.shape, slack=0) for name, operand in operands.items()), *sizes.parameters]

    def body(buffers: list[Buffer]) -> None:
        named = {parameter.name: buffer for parameter, buffer in zip(parameters, buffers, strict=True)}
        _Pixels(e.resolved(kernel, named), target.vector_bytes // ITEM_SIZE["int32"], buffers).emit()

    return e.function(parameters, body)


class _Pixels:
    def __init__(self, kernel: ElementwiseKernel, lanes: int, buffers: list[Buffer]) -> None:
        self._kernel = kernel
        self._lanes = lanes
        self._buffers = buffers

    def emit(self) -> None:
        """Tasks of some rows of pixels, or a part of a long one."""
        *outer, width, channels = shape = maxima(self._kernel.shape)
        vectors = -(-width // self._lanes)
        parts = -(-width // _TASK)
        length = -(-vectors // parts)
        loop = e.parallel if math.prod(shape) >= PARALLEL_ELEMENTS else e.serial
        with v.over_shape([*outer, parts], loop) as index:
            row, part = index[:-1], index[-1]
            first = T.Bind(part * length)
            with T.serial(0, T.Bind(T.min(vectors - first, length))) as number:
                pixel = T.Bind(T.min((first + number) * self._lanes, width - self._lanes))
                cells = [T.Bind(self._bytes([*row, pixel, channel])) for channel in range(channels)]
                self._store(v.position(self._kernel.output, [*row, pixel]), cells)

    def _bytes(self, index: list[Expr]) -> Expr:
        """One channel of the pixels from ``index`` on, as int32 lanes from 0 to 255."""
        operation, operands = self._kernel.operation, self._kernel.operands
        at = [v.position(operand, index) for operand in operands]
        x = e.load(self._buffers[0], at[0], self._lanes)
        if isinstance(operation, Quantize):
            reciprocal, zero_point = (T.Bind(buffer[place]) for buffer, place in zip(self._buffers[1:3], at[1:], strict=True))
            zero_points = v.splat(T.Bind(T.Cast("float32", zero_point)), self._lanes)
            x = T.Bind(quantized(x, v.splat(reciprocal, self._lanes), zero_points, operation.low, operation.high))
        return T.bitwise_and(e.cast(x, "int32"), e.constant(255, "int32", self._lanes))

    def _store(self, at: Expr, cells: list[Expr]) -> None:
        together = cells[0]
        for channel, cell in enumerate(cells[1:], 1):
            together = T.Bind(T.bitwise_or(together, T.shift_left(cell, v.like(cell, 8 * channel))))
        pixel = ITEM_SIZE["int32"]
        chosen = [pixel * lane + channel for lane in range(self._lanes) for channel in range(len(cells))]
        result = e.pick(e.reinterpret(together, "int8"), chosen)
        e.store_first(self._buffers[len(self._kernel.operands)], at, e.reinterpret(result, self._kernel.output.dtype), len(chosen))
