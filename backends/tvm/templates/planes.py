"""Convolutions and linear layers of numbers of one or a few bits: products of bits are counted, 32 inputs to a word (``planes_layout``).

First the whole input map, halo included, is cut into planes: vpmovmskb takes one bit of 32 bytes. Planes lie in memory that all threads
read, [plane][row][column][word], so that a kernel row is a run of words. Then a task is a register tile as in ``matrix``, whose products
``bit_products`` counts.

A step takes a word of one plane of weights and the words of all planes of inputs, each of which has a sum of its own: weights are read
once. Their planes come one after the other, highest first, and before each lower one all sums are doubled (Horner's rule).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tvm import tirx
from tvm.tirx.script import builder as T

from qcompiler.backends.tvm.kernels import Activation, ConvolutionKernel
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates.bit_products import ByteCounter, Counter, WordCounter, Words
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.epilogue import Epilogue, position
from qcompiler.backends.tvm.templates.layout import kernel_parameters
from qcompiler.backends.tvm.templates.matrix_layout import choose_tile, output_map
from qcompiler.backends.tvm.templates.planes_layout import WORD, PlanesLayout, planes_layout
from qcompiler.backends.tvm.templates.tiles import OutputTile, column_count, each_tile, store_tile, window_offsets

_TASK_WORDS = 1024  # that a task cuts into planes
_HALVES = 0x0F0F0F0F


def emit(kernel: ConvolutionKernel, target: str) -> tirx.PrimFunc:
    """The kernel's function."""
    layout = planes_layout(kernel, target)
    parameters = kernel_parameters(kernel, layout.weights, layout.matrix.channels)

    def body(buffers: list[Buffer]) -> None:
        named = {parameter.name: buffer for parameter, buffer in zip(parameters, buffers, strict=True)}
        _PlanesKernel(kernel, layout, named).emit()

    return e.function(parameters, body)


class _PlanesKernel:
    def __init__(self, kernel: ConvolutionKernel, layout: PlanesLayout, buffers: Mapping[str, Buffer]) -> None:
        self._kernel = kernel
        self._layout = layout
        self._matrix = layout.matrix
        self._bits = layout.bits
        self._lanes = layout.matrix.instructions.lanes
        self._buffers = buffers
        self._epilogue = Epilogue(kernel, buffers, permutes_bytes=not layout.counts_bytes)
        self._words = layout.bits.inputs * layout.words.elements
        self._planes = e.scratch(self._words + 1, "int32")  # and the number of planes of weights
        counter = ByteCounter if layout.counts_bytes else WordCounter
        self._counter: Counter = counter(kernel, layout, buffers["weights"], self._planes)
        self._pixels = replace(layout.words, channels=1)
        self._pixel_sums = e.scratch(self._pixels.elements, "int32") if layout.bits.weight_low else None

    def emit(self) -> None:
        """Planes of the whole map, then all tiles.

        These read from memory how many planes weights have: where LLVM knows it and steps are few, it unrolls both loops into one block,
        and spills sums (layers of 64 to 128 inputs took up to two and a half times as long).
        """
        T.buffer_store(self._planes, T.int32(self._bits.weights), [self._words])
        self._cut_map()
        each_tile(self._kernel, self._matrix, column_count(self._kernel, self._matrix, self._buffers), self._tile)

    # Planes of the inputs

    def _cut_map(self) -> None:
        """Pixels in the order of memory; of a dynamic number of rows those that the tiles take."""
        tile = choose_tile(self._matrix, *output_map(self._kernel))
        at_once = max(1, _TASK_WORDS // (self._layout.words.channels * tile.columns)) * tile.columns
        tasks = e.pieces(-(-self._pixels.elements // at_once), at_once, self._kernel.rows, self._buffers.get("extents"))
        # One task is a launch too: where LLVM 22 sees a word's bits made and spread to a vector in one function, it mixes words up.
        with T.parallel(0, tasks) as task:
            first = T.Bind(task * at_once)
            with T.serial(0, T.min(at_once, self._pixels.elements - first)) as index:
                self._cut_pixel(T.Bind(first + index))

    def _cut_pixel(self, pixel: Expr) -> None:
        words, rest = divmod(self._kernel.input.channels, WORD)
        start, target = T.Bind(pixel * self._kernel.input.pixel_stride), T.Bind(pixel * self._layout.words.channels)
        total = T.alloc_buffer((1,), "int32", scope="local") if self._pixel_sums is not None else None
        if total is not None:
            T.buffer_store(total, T.int32(0), [0])
        if words:
            with T.serial(0, words) as word:
                self._cut_word(T.Bind(start + word * WORD), T.Bind(target + word * self._layout.parts), WORD, total)
        if rest:
            self._cut_word(start + words * WORD, target + words * self._layout.parts, rest, total)
        if total is not None:
            T.buffer_store(self._pixel_sums, total[0], [pixel])

    def _cut_word(self, source: Expr, target: Expr, valid: int, total: Buffer | None) -> None:
        """One word of every plane. Bits past the channels meet weights of 0 bits, but no sum of inputs may have them."""
        inputs = e.load(self._buffers["input"], source, WORD)
        if self._bits.input_low % (1 << self._bits.inputs):
            inputs = T.Bind(inputs - e.constant(_as_int8(self._bits.input_low), "int8", WORD))
        pairs = e.reinterpret(inputs, "int16")
        for plane in range(self._bits.inputs):
            up = 7 - plane
            moved = T.Bind(T.shift_left(pairs, e.constant(up, "int16", WORD // 2))) if up else pairs
            bits = e.top_bits(e.reinterpret(moved, "int8"))
            if valid < WORD:
                bits = T.Bind(T.bitwise_and(bits, T.int32((1 << valid) - 1)))
            self._store_word(T.Bind(target + plane * self._layout.words.elements), bits)
            if total is not None:
                T.buffer_store(total, total[0] + T.shift_left(e.count_bits(bits), T.int32(plane)), [0])

    def _store_word(self, at: Expr, bits: Expr) -> None:
        halves = [bits]
        if self._layout.counts_bytes:
            halves = [T.bitwise_and(each, T.int32(_HALVES)) for each in (bits, T.shift_right(bits, T.int32(4)))]
        for index, half in enumerate(halves):
            T.buffer_store(self._planes, half, [at + index])

    # Tiles

    def _tile(self, tile: OutputTile) -> None:
        sums = e.Sums([e.constant(0, "int32", self._lanes)] * (tile.pixels * tile.vectors * self._bits.inputs))
        self._multiply(sums, tile)
        store_tile(self._epilogue, self._matrix, tile, self._finished(sums, tile))

    def _multiply(self, sums: e.Sums, tile: OutputTile) -> None:
        """Sums over all planes of weights."""
        bits, matrix = self._bits, self._matrix
        start = T.Bind(tile.panel.first_vector * (self._lanes * bits.weights * matrix.depth // WORD))
        plane_size = tile.vectors * self._lanes * matrix.depth // WORD
        inputs = T.Bind(self._corner(tile, self._layout.words))
        with T.serial(0, T.Bind(self._planes[self._words]) if bits.weights > 1 else 1) as lower:
            if bits.weights > 1:
                for index in range(len(sums)):
                    sums[index] = _shifted(sums[index], 1)
            self._counter.add(sums, tile, Words(T.Bind(start + lower * plane_size), inputs))

    def _corner(self, tile: OutputTile, source: Activation) -> Expr:
        """Where the window of a tile's first output starts: in a plane, or in the sums of pixels."""
        (stride_y, stride_x), (top, left) = self._kernel.stride, self._kernel.padding
        return position(source, tile.first_row * stride_y - top, tile.first_column * stride_x - left)

    def _finished(self, sums: e.Sums, tile: OutputTile) -> e.Sums:
        """All planes of inputs, the weights' step, the bias, and the weights' least number times the sum of a pixel's window."""
        bias = [e.load(self._buffers["bias"], tile.offset + index * self._lanes, self._lanes) for index in range(tile.vectors)]
        windows = self._window_sums(tile, self._pixel_sums) if self._pixel_sums is not None else None
        totals, planes, step = [], self._bits.inputs, self._bits.weight_step
        for pixel in range(tile.pixels):
            of_window = None
            if windows is not None:
                of_window = T.Bind(T.Broadcast(windows[pixel] * self._bits.weight_low, self._lanes))
            for vector in range(tile.vectors):
                first = (pixel * tile.vectors + vector) * planes
                total = sums[first]
                for plane in range(1, planes):
                    total = e.add_modulo(total, _shifted(sums[first + plane], plane))
                scaled = total if step == 1 else T.Bind(total * e.constant(step, "int32", self._lanes))
                start = bias[vector] if of_window is None else e.add_modulo(bias[vector], of_window)
                totals.append(e.add_modulo(scaled, start))
        return e.Sums(totals)

    def _window_sums(self, tile: OutputTile, pixel_sums: Buffer) -> Buffer:
        """``sum u`` over the window of each pixel of a tile."""
        totals = T.alloc_buffer((tile.pixels,), "int32", scope="local")
        for pixel in range(tile.pixels):
            T.buffer_store(totals, T.int32(0), [pixel])
        corner = T.Bind(self._corner(tile, self._pixels))
        height, width = self._kernel.kernel
        down, right = self._kernel.dilation
        with T.serial(0, height) as row, T.serial(0, width) as column:
            at = T.Bind(corner + row * (down * self._pixels.row_stride) + column * right)
            for pixel, offset in enumerate(window_offsets(self._kernel, tile, self._pixels)):
                T.buffer_store(totals, totals[pixel] + pixel_sums[at + offset], [pixel])
        return totals


def _shifted(total: Expr, places: int) -> Expr:
    return T.Bind(T.shift_left(total, e.constant(places, "int32", e.lanes(total))))


def _as_int8(number: int) -> int:
    return (number + 128) % 256 - 128
