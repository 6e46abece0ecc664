"""Convolutions and linear layers with vector instructions: AVX512-VNNI and AVX2.

A task is one register tile: some output pixels by some vectors of output channels, its sums kept in registers over the whole inner
dimension. A step takes four consecutive bytes of each pixel's run straight from the feature map (no im2col), brings them into all
lanes and multiplies them with the weights of four inputs by 16 (AVX2: 8) channels. Weights lie in the order in which they are read.
Of inputs of 16 bits it takes two.

Weights of 4 or 2 bits lie together in the bits of a vector, one plane for each of the dot products that follow each other: AVX512-VNNI
shifts a plane to the upper bits of its bytes and clears the rest, which multiplies weight and sum by 2^(8 - bits); the sum is shifted
down once at the end, before the bias. AVX2 takes weights that have ``2^(bits-1)`` added as unsigned bytes, multiplies them with signed
inputs by vpmaddubsw, whose sums of pairs stay far from 16 bits, and takes that number times the inputs off again. Of weights of 8 bits
that it reads as bytes it makes words. Where a group of inputs has a factor, its partial sum is multiplied and added to the sum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

from tvm import tirx
from tvm.tirx.script import builder as T

from qcompiler.backends.tvm.kernels import ConvolutionKernel
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.epilogue import Epilogue, position
from qcompiler.backends.tvm.templates.layout import WORDS_OF_A_STEP, kernel_parameters, reads_words
from qcompiler.backends.tvm.templates.matrix_layout import MatrixLayout, choose_tile, matrix_layout, output_map
from qcompiler.backends.tvm.templates.tiles import OutputTile, column_count, each_tile, store_tile, window_offsets

_STEP_BYTES = 4
_TOP_BITS = -0x7F7F7F80  # 0x80808080: turns four int8 into uint8 that are 128 larger, and back

_Columns = Callable[[int, int], Expr]  # weights by vector of channels and dot product of a step


def emit(kernel: ConvolutionKernel, target: str) -> tirx.PrimFunc:
    """The kernel's function."""
    layout = matrix_layout(kernel, target)
    parameters = kernel_parameters(kernel, layout.weights, layout.channels, layout.factors)

    def body(buffers: list[Buffer]) -> None:
        named = {parameter.name: buffer for parameter, buffer in zip(parameters, buffers, strict=True)}
        MatrixKernel(kernel, layout, named).emit()

    return e.function(parameters, body)


class MatrixKernel:
    """The code of a kernel over its buffers by name: ``layout.kernel_parameters``."""

    def __init__(self, kernel: ConvolutionKernel, layout: MatrixLayout, buffers: Mapping[str, Buffer]) -> None:
        self._kernel = kernel
        self._layout = layout
        self._buffers = buffers
        wide = layout.instructions.name == "x86-64-vnni"
        self._epilogue = Epilogue(kernel, buffers, permutes_bytes=wide)
        bytes_step = self._step_bytes if wide else self._step_words
        self._step: Callable[[e.Sums, list[Expr], _Columns, int], None] = self._step_pairs if reads_words(kernel) else bytes_step

    def emit(self) -> None:
        """All tiles, by threads."""
        each_tile(self._kernel, self._layout, column_count(self._kernel, self._layout, self._buffers), self._tile)

    def emit_first(self, count: Expr) -> None:
        """Of a layer the tiles with the first ``count`` rows, one after the other, as a part of another kernel's task."""
        columns = choose_tile(self._layout, *output_map(self._kernel)).columns
        each_tile(self._kernel, self._layout, T.Bind(T.truncdiv(count + (columns - 1), columns)), self._tile, e.serial)

    def _tile(self, tile: OutputTile) -> None:
        sums = self._start(tile.offset, tile.pixels, tile.vectors)
        self._multiply(sums, tile)
        self._finish(sums, tile.offset, tile.pixels, tile.vectors)
        store_tile(self._epilogue, self._layout, tile, sums)

    def _start(self, offset: Expr, pixels: int, vectors: int) -> e.Sums:
        """The bias, or 0 where sums are scaled."""
        if self._layout.scale_shift and not self._layout.weight_group:
            return self._zeros(pixels * vectors)
        bias = self._bias(offset, vectors)
        return e.Sums([bias[index] for _ in range(pixels) for index in range(vectors)])

    def _finish(self, sums: e.Sums, offset: Expr, pixels: int, vectors: int) -> None:
        """Scaled sums back to their value, and their bias."""
        if not self._layout.scale_shift or self._layout.weight_group:
            return
        bias = self._bias(offset, vectors)
        for index in range(pixels * vectors):
            sums[index] = e.add_modulo(self._unscaled(sums[index]), bias[index % vectors])

    def _zeros(self, count: int) -> e.Sums:
        return e.Sums([e.constant(0, "int32", self._layout.instructions.lanes)] * count)

    def _unscaled(self, total: Expr) -> Expr:
        shift = self._layout.scale_shift
        return T.Bind(T.shift_right(total, e.constant(shift, "int32", e.lanes(total)))) if shift else total

    def _bias(self, offset: Expr, vectors: int) -> list[Expr]:
        lanes = self._layout.instructions.lanes
        return [e.load(self._buffers["bias"], offset + index * lanes, lanes) for index in range(vectors)]

    def _multiply(self, sums: e.Sums, tile: OutputTile) -> None:
        """The sums of products: kernel rows, runs, steps."""
        kernel, layout, panel, vectors = self._kernel, self._layout, tile.panel, tile.vectors
        (stride_y, stride_x), (top, left) = kernel.stride, kernel.padding
        corner = position(kernel.input, tile.first_row * stride_y - top, tile.first_column * stride_x - left)
        pixels = window_offsets(kernel, tile, kernel.input)
        start = T.Bind(corner + panel.group * layout.inputs)
        weights = T.Bind((panel.group * layout.vectors + panel.first_vector) * (layout.instructions.lanes * layout.depth // layout.planes))
        step_size = vectors * layout.instructions.lanes * layout.granule // layout.planes
        with T.serial(0, layout.kernel_rows) as kernel_row, T.serial(0, layout.runs) as run:
            run_start = T.Bind(start + kernel_row * (kernel.dilation[0] * kernel.input.row_stride) + run * layout.run_stride)
            run_weights = T.Bind(weights + (kernel_row * layout.runs + run) * (layout.steps * step_size))

            def rounds(target: e.Sums, first: Expr, count: Expr) -> None:
                with T.serial(0, count) as index:
                    step = T.Bind(first + index)
                    inputs = [run_start + step * layout.granule + pixel for pixel in pixels]
                    self._round(target, inputs, T.Bind(run_weights + step * step_size), vectors)

            if not layout.weight_group:
                rounds(sums, 0, layout.steps)
                return
            first_factor = T.Bind(panel.first_vector * (layout.instructions.lanes * layout.weight_groups))
            self._sum_groups(sums, rounds, first_factor, tile.pixels, vectors)

    def _sum_groups(
        self, sums: e.Sums, rounds: Callable[[e.Sums, Expr, Expr], None], first_factor: Expr, pixels: int, vectors: int
    ) -> None:
        """Add the partial sum of each group of inputs times its factor."""
        layout, lanes = self._layout, self._layout.instructions.lanes
        with T.serial(0, layout.weight_groups) as group:
            partial = self._zeros(pixels * vectors)
            first = T.Bind(group * layout.group_steps)
            rounds(partial, first, T.min(layout.group_steps, layout.steps - first))
            at = T.Bind(first_factor + group * (vectors * lanes))
            factors = [e.cast(e.load(self._buffers["factors"], at + index * lanes, lanes), "int32") for index in range(vectors)]
            for index in range(pixels * vectors):
                product = e.multiply_modulo(self._unscaled(partial[index]), factors[index % vectors])
                sums[index] = e.add_modulo(sums[index], product)

    def _round(self, sums: e.Sums, inputs: list[Expr], weights: Expr, vectors: int) -> None:
        """One step, or those whose weights share their memory."""
        instructions = self._layout.instructions
        products, size = instructions.products, 4 * instructions.lanes * 8 // instructions.weight_bits
        if self._layout.planes == 1:
            self._step(sums, inputs, lambda index, half: self._weights(weights, index * products + half, size), vectors)
            return
        stored = [self._weights(weights, index, size) for index in range(vectors)]
        if self._layout.weight_offset:
            self._round_small_bytes(sums, inputs, stored)
            return
        for step in range(self._layout.steps_together):
            planes = {(i, half): self._plane(stored[i], step * products + half) for i in range(vectors) for half in range(products)}
            at = [place + step * instructions.granule for place in inputs]
            self._step(sums, at, _chosen_from(planes), vectors)

    def _round_small_bytes(self, sums: e.Sums, inputs: list[Expr], stored: list[Expr]) -> None:
        """Of weights with an offset: ``sum (w + offset) x - sum offset x`` in 16 bits: four products of 15 by 128, or eight of 3."""
        lanes, steps = self._layout.instructions.lanes, range(self._layout.steps_together)
        offset, ones = e.constant(self._layout.weight_offset, "int8", 4 * lanes), e.constant(1, "int16", 2 * lanes)
        everywhere = [
            [e.reinterpret(T.Broadcast(self._four(at + 4 * step, signed=True), lanes), "int8") for step in steps] for at in inputs
        ]
        offsets = [_total(e.multiply_add_bytes(offset, each) for each in steps_of_pixel) for steps_of_pixel in everywhere]
        for index, vector in enumerate(stored):
            planes = [self._low_bits(vector, step) for step in steps]
            for pixel, four in enumerate(everywhere):
                words = _total(e.multiply_add_bytes(plane, each) for plane, each in zip(planes, four, strict=True))
                place = pixel * len(stored) + index
                sums[place] = e.dot_words(sums[place], T.Bind(words - offsets[pixel]), ones)

    def _low_bits(self, stored: Expr, plane: int) -> Expr:
        """A plane as unsigned bytes."""
        bits, words = self._layout.stored_bits, e.reinterpret(stored, "int32")
        count, mask = e.lanes(words), ((1 << self._layout.stored_bits) - 1) * 0x01010101
        down = T.Bind(T.shift_right(words, e.constant(plane * bits, "int32", count))) if plane else words
        return e.reinterpret(T.Bind(T.bitwise_and(down, e.constant(mask, "int32", count))), "int8")

    def _four(self, at: Expr, signed: bool) -> Expr:
        """Four inputs as one int32; each moved by 128 where they are not as they should be.

        On the scalar: LLVM 22 does not come back from the same operation on the vector. The bias makes up for it.
        """
        four = T.Bind(T.reinterpret(self._buffers["input"][T.Ramp(at, 1, _STEP_BYTES)], dtype="int32"))
        is_signed = self._kernel.input.dtype == "int8"
        return four if is_signed == signed else T.Bind(T.bitwise_xor(four, T.IntImm("int32", _TOP_BITS)))

    def _weights(self, start: Expr, vector: int, size: int) -> Expr:
        return e.load(self._buffers["weights"], start + vector * size, size)

    def _plane(self, stored: Expr, plane: int) -> Expr:
        """Weights of one dot product: in the upper bits of their bytes, or as words."""
        layout = self._layout
        bits, up = layout.stored_bits, (layout.planes - 1 - plane) * layout.stored_bits
        if layout.instructions.weight_bits == 16:
            down = e.constant(16 - bits, "int16", e.lanes(stored))
            return T.Bind(T.shift_right(_shifted_left(stored, up), down))
        mask = (0xFF << (8 - bits) & 0xFF) * 0x01010101
        words = _shifted_left(e.reinterpret(stored, "int32"), up)
        return e.reinterpret(T.Bind(T.bitwise_and(words, e.constant(mask - 2**32, "int32", e.lanes(words)))), "int8")

    def _step_bytes(self, sums: e.Sums, inputs: list[Expr], weights: _Columns, vectors: int) -> None:
        columns = [weights(index, 0) for index in range(vectors)]
        for pixel, at in enumerate(inputs):
            everywhere = e.reinterpret(T.Broadcast(self._four(at, signed=False), 16), "int8")
            for index, column in enumerate(columns):
                sums[pixel * vectors + index] = e.dot_bytes(sums[pixel * vectors + index], everywhere, column)

    def _step_words(self, sums: e.Sums, inputs: list[Expr], weights: _Columns, vectors: int) -> None:
        for pixel, at in enumerate(inputs):
            four = T.Bind(T.reinterpret(self._buffers["input"][T.Ramp(at, 1, _STEP_BYTES)], dtype="int32"))
            pairs = _even_and_odd_bytes(T.Bind(T.Broadcast(four, 8)), signed=self._kernel.input.dtype == "int8")
            for index in range(vectors):
                for half, pair in enumerate(pairs):
                    sums[pixel * vectors + index] = e.dot_words(sums[pixel * vectors + index], pair, weights(index, half))

    def _step_pairs(self, sums: e.Sums, inputs: list[Expr], weights: _Columns, vectors: int) -> None:
        """Inputs of 16 bits, two of them."""
        lanes = self._layout.instructions.lanes
        dot = e.dot_word_pairs if self._layout.instructions.name == "x86-64-vnni" else e.dot_words
        columns = [weights(index, 0) for index in range(vectors)]
        for pixel, at in enumerate(inputs):
            two = T.Bind(T.reinterpret(self._buffers["input"][T.Ramp(at, 1, WORDS_OF_A_STEP)], dtype="int32"))
            everywhere = e.reinterpret(T.Broadcast(two, lanes), "int16")
            for index, column in enumerate(columns):
                sums[pixel * vectors + index] = dot(sums[pixel * vectors + index], everywhere, column)


def _total(words: Iterable[Expr]) -> Expr:
    return functools.reduce(lambda total, each: T.Bind(total + each), words)


def _chosen_from(planes: Mapping[tuple[int, int], Expr]) -> _Columns:
    return lambda index, half: planes[index, half]


def _shifted_left(vector: Expr, amount: int) -> Expr:
    element = str(vector.ty.dtype).split("x")[0]
    return T.Bind(T.shift_left(vector, e.constant(amount, element, e.lanes(vector)))) if amount else vector


def _even_and_odd_bytes(vector: Expr, signed: bool) -> tuple[Expr, Expr]:
    """Bytes 0, 2, ... and bytes 1, 3, ... of a vector, each widened to 16 bits."""
    words = e.reinterpret(vector, "int16" if signed else "uint16")
    eight = e.constant(8, "int16" if signed else "uint16", e.lanes(words))
    even = T.Bind(T.shift_right(T.shift_left(words, eight), eight))
    odd = T.Bind(T.shift_right(words, eight))
    return e.reinterpret(even, "int16"), e.reinterpret(odd, "int16")
