"""Depthwise convolutions: lanes are channels.

Per input column, the rows of a dot product are interleaved so that each 32-bit lane holds consecutive taps of one channel: four bytes
for vpdpbusd, two 16-bit numbers for vpmaddwd. A strip of columns is interleaved into memory that stays in the first-level cache, and
used by every output whose kernel covers it: by all kernel columns, and by the output rows of the tile. The interleaving leaves the
channels in the order that the epilogue's packs undo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tvm import tirx
from tvm.tirx.script import builder as T

from qcompiler.backends.tvm.kernels import ConvolutionKernel
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates.depthwise_layout import DepthwiseLayout, depthwise_layout
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.epilogue import Epilogue, Place, position
from qcompiler.backends.tvm.templates.layout import Chunk, kernel_parameters

_VECTORS = 4


def emit(kernel: ConvolutionKernel, target: str) -> tirx.PrimFunc:
    """The kernel's function."""
    layout = depthwise_layout(kernel, target)
    last = layout.chunks[-1]
    parameters = kernel_parameters(kernel, layout.weights, last.offset + last.channels)

    def body(buffers: list[Buffer]) -> None:
        named = {parameter.name: buffer for parameter, buffer in zip(parameters, buffers, strict=True)}
        _DepthwiseKernel(kernel, layout, named).emit()

    return e.function(parameters, body)


class _DepthwiseKernel:
    def __init__(self, kernel: ConvolutionKernel, layout: DepthwiseLayout, buffers: Mapping[str, Buffer]) -> None:
        self._kernel = kernel
        self._layout = layout
        self._buffers = buffers
        self._is_wide = layout.instructions.depthwise_taps == 4
        self._epilogue = Epilogue(kernel, buffers, permutes_bytes=self._is_wide)

    def emit(self) -> None:
        """A parallel loop over rows of tiles and chunks of channels."""
        full_rows, rest_rows = divmod(self._kernel.output.height, self._layout.rows)
        chunk_count = len(self._layout.chunks)
        with e.parallel((full_rows + bool(rest_rows)) * chunk_count) as task:
            number, row = T.Bind(task % chunk_count), T.Bind(task // chunk_count)
            self._choose_chunk(
                self._layout.chunks,
                number,
                lambda chunk, offset: e.branches(
                    row,
                    full_rows,
                    bool(rest_rows),
                    lambda last: self._row(chunk, offset, T.Bind(row * self._layout.rows), rest_rows if last else self._layout.rows),
                ),
            )

    def _choose_chunk(self, chunks: Sequence[Chunk], number: Expr, emit: Callable[[Chunk, Expr], None]) -> None:
        """Chunks of the same width and fullness share their code."""
        alike = [chunk for chunk in chunks if (chunk.lanes, chunk.valid) == (chunks[0].lanes, chunks[0].valid)]

        def emit_one(is_other: bool) -> None:
            if is_other:
                self._choose_chunk(chunks[len(alike) :], T.Bind(number - len(alike)), emit)
            else:
                emit(alike[0], T.Bind(alike[0].offset + number * alike[0].channels))

        e.branches(number, len(alike), len(alike) < len(chunks), emit_one)

    def _row(self, chunk: Chunk, offset: Expr, first_row: Expr, rows: int) -> None:
        """Strips of a row: the interleaved columns of one, then its tiles."""
        layout, width = self._layout, self._kernel.output.width
        columns = e.scratch(layout.strip_inputs * layout.column_taps * chunk.channels, layout.weights.dtype)
        strips = -(-width // layout.strip)
        rest = width % layout.columns
        with T.serial(0, strips) as strip:
            first = T.Bind(strip * layout.strip)
            count = T.Bind(T.min(width - first, layout.strip))
            self._interleave_columns(columns, chunk, offset, first_row, rows, first, count)
            with T.serial(0, count // layout.columns) as tile:
                self._tile(columns, chunk, offset, first_row, rows, first, T.Bind(tile * layout.columns), layout.columns)
            if rest:
                with T.If(strip == strips - 1), T.Then():
                    self._tile(columns, chunk, offset, first_row, rows, first, T.Bind(count - rest), rest)

    def _interleave_columns(
        self, columns: Buffer, chunk: Chunk, offset: Expr, first_row: Expr, rows: int, first: Expr, count: Expr
    ) -> None:
        """All input columns that ``count`` output columns from ``first`` take: [column][dot product][vector]."""
        kernel, layout = self._kernel, self._layout
        (stride_y, stride_x), (top, left) = kernel.stride, kernel.padding
        corner = T.Bind(position(kernel.input, first_row * stride_y - top, first * stride_x - left) + offset)
        size = chunk.lanes * layout.instructions.depthwise_taps
        with T.serial(0, (count - 1) * stride_x + layout.reach) as column:
            for product, input_rows in enumerate(layout.slots):
                start = corner + column * kernel.input.pixel_stride
                taps = self._interleaved([start + self._valid_row(row, rows) * kernel.input.row_stride for row in input_rows], chunk.lanes)
                for index, tap in enumerate(taps):
                    e.store(columns, column * (layout.column_taps * chunk.channels) + (product * _VECTORS + index) * size, tap)

    def _tile(self, columns: Buffer, chunk: Chunk, offset: Expr, first_row: Expr, rows: int, first: Expr, at: Expr, count: int) -> None:
        """``rows`` by ``count`` outputs, ``at`` columns into a strip; a chunk's parameters start where its channels do."""
        bias = [e.load(self._buffers["bias"], offset + index * chunk.lanes, chunk.lanes) for index in range(_VECTORS)]
        sums = e.Sums([bias[index] for _ in range(rows * count) for index in range(_VECTORS)])
        self._multiply(sums, columns, chunk, offset, rows, at, count)
        for pixel in range(rows * count):
            row, column = divmod(pixel, count)
            place = Place(first_row + row, first + at + column, offset, offset)
            self._epilogue.store([sums[pixel * _VECTORS + index] for index in range(_VECTORS)], chunk, place)

    def _multiply(self, sums: e.Sums, columns: Buffer, chunk: Chunk, offset: Expr, rows: int, at: Expr, count: int) -> None:
        """Loops, not unrolled code, over dot products and kernel columns: LLVM would keep all weights in registers that there are not."""
        kernel, layout = self._kernel, self._layout
        depth = layout.instructions.depthwise_taps
        size, column_size = chunk.lanes * depth, layout.column_taps * chunk.channels
        with T.serial(0, len(layout.slots)) as product, T.serial(0, kernel.kernel[1]) as kernel_column:
            start = T.Bind((at * kernel.stride[1] + kernel_column * kernel.dilation[1]) * column_size + product * (_VECTORS * size))
            group = T.Bind((product * kernel.kernel[1] + kernel_column) * (layout.rows * _VECTORS * size))
            weights = T.Bind(offset * (layout.chunk_taps * depth) + group)
            for index in range(_VECTORS):
                taps = [e.load(columns, start + column * (kernel.stride[1] * column_size) + index * size, size) for column in range(count)]
                for row in range(rows):
                    factor = e.load(self._buffers["weights"], weights + (row * _VECTORS + index) * size, size)
                    for column, tap in enumerate(taps):
                        total = (row * count + column) * _VECTORS + index
                        sums[total] = self._dot(sums[total], tap, factor)

    def _valid_row(self, input_row: int, rows: int) -> int:
        """A row that only the missing output rows of the last tile need may lie outside the map: its weights are zero, read another."""
        return input_row if any(self._layout.kernel_row(row, input_row) is not None for row in range(rows)) else 0

    def _interleaved(self, at: Sequence[Expr], lanes: int) -> list[Expr]:
        """Vectors whose 32-bit lanes hold the taps of channels ``4 * t + ...`` (``Chunk.accumulator_order``)."""
        depth = self._layout.instructions.depthwise_taps
        loaded = [self._load(offset, 4 * lanes) for offset in at]
        loaded += [loaded[0]] * (depth - len(loaded))  # their weights are zero
        if not self._is_wide:
            widened = [[self._widen(row, half) for half in (0, 1)] for row in loaded]
            return [e.interleave(widened[0][half], widened[1][half], quarter) for half in (0, 1) for quarter in (0, 1)]
        pairs = [[e.reinterpret(e.interleave(loaded[i], loaded[i + 1], half), "int16") for half in (0, 1)] for i in (0, 2)]
        return [e.reinterpret(e.interleave(pairs[0][half], pairs[1][half], quarter), "int8") for half in (0, 1) for quarter in (0, 1)]

    def _load(self, offset: Expr, count: int) -> Expr:
        """Signed inputs become unsigned ones that are 128 larger where the dot product wants that; the bias makes up for it."""
        row = e.load(self._buffers["input"], offset, count)
        if self._is_wide and self._kernel.input.dtype == "int8":
            return T.Bind(T.bitwise_xor(row, e.constant(-128, "int8", count)))
        return row

    def _widen(self, row: Expr, half: int) -> Expr:
        """Half of each 128-bit lane as int16."""
        count = e.lanes(row)
        if self._kernel.input.dtype == "uint8":
            return e.reinterpret(e.interleave(row, e.constant(0, "int8", count), half), "int16")
        high = e.reinterpret(e.interleave(e.constant(0, "int8", count), row, half), "int16")
        return T.Bind(T.shift_right(high, e.constant(8, "int16", count // 2)))

    def _dot(self, total: Expr, taps: Expr, weights: Expr) -> Expr:
        return (e.dot_bytes if self._is_wide else e.dot_words)(total, taps, weights)
