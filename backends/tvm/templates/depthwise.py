"""Depthwise convolutions: lanes are channels.

Per input column, the rows of a dot product are interleaved so that each 32-bit lane holds consecutive taps of one channel: four bytes
for vpdpbusd, two 16-bit numbers for vpmaddwd. That is done once a column and used by every output whose kernel covers it: by all
kernel columns, and by the output rows of the tile. The interleaving leaves the channels in the order that the epilogue's packs undo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm import tirx
from tvm.tirx.script import builder as T

from qcompiler.backends.tvm.kernels import ConvolutionKernel
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.epilogue import Epilogue, Place, position
from qcompiler.backends.tvm.templates.layout import Chunk, DepthwiseLayout, depthwise_layout, kernel_parameters

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
        """A parallel loop over rows of tiles; within one, columns, then chunks of channels."""
        full_rows, rest_rows = divmod(self._kernel.output.height, self._layout.rows)
        with e.parallel(full_rows + bool(rest_rows)) as row:
            e.branches(row, full_rows, bool(rest_rows), lambda last: self._row(row, rest_rows if last else self._layout.rows))

    def _row(self, row: Expr, rows: int) -> None:
        full, rest = divmod(self._kernel.output.width, self._layout.columns)
        first_row = T.Bind(row * self._layout.rows)
        with T.serial(0, full) as column:
            self._columns(first_row, rows, T.Bind(column * self._layout.columns), self._layout.columns)
        if rest:
            self._columns(first_row, rows, T.IntImm("int32", full * self._layout.columns), rest)

    def _columns(self, first_row: Expr, rows: int, first_column: Expr, columns: int) -> None:
        """Chunks of the same width and fullness share their code."""
        chunks = self._layout.chunks
        start = 0
        while start < len(chunks):
            same = [chunk for chunk in chunks[start:] if (chunk.lanes, chunk.valid) == (chunks[start].lanes, chunks[start].valid)]
            with T.serial(0, len(same)) as index:
                offset = T.Bind(chunks[start].offset + index * chunks[start].channels)
                self._tile(chunks[start], offset, first_row, rows, first_column, columns)
            start += len(same)

    def _tile(self, chunk: Chunk, offset: Expr, first_row: Expr, rows: int, first_column: Expr, columns: int) -> None:
        """Sums of a tile; a chunk's parameters start where its channels do."""
        bias = [e.load(self._buffers["bias"], offset + index * chunk.lanes, chunk.lanes) for index in range(_VECTORS)]
        sums = e.Sums([bias[index] for _ in range(rows * columns) for index in range(_VECTORS)])
        self._multiply(sums, chunk, offset, first_row, rows, first_column, columns)
        for pixel in range(rows * columns):
            row, column = divmod(pixel, columns)
            place = Place(first_row + row, first_column + column, offset, offset)
            self._epilogue.store([sums[pixel * _VECTORS + index] for index in range(_VECTORS)], chunk, place)

    def _multiply(self, sums: e.Sums, chunk: Chunk, offset: Expr, first_row: Expr, rows: int, first_column: Expr, columns: int) -> None:
        kernel, layout = self._kernel, self._layout
        (stride_y, stride_x), (top, left) = kernel.stride, kernel.padding
        corner = T.Bind(position(kernel.input, first_row * stride_y - top, first_column * stride_x - left) + offset)
        vector = chunk.lanes * layout.instructions.depthwise_taps
        weights = T.Bind(offset * (layout.chunk_taps * layout.instructions.depthwise_taps))
        for product, input_rows in enumerate(layout.slots):
            for input_column, uses in self._columns_in_use(columns):
                at = [
                    corner + self._valid_row(input_row, rows) * kernel.input.row_stride + input_column * kernel.input.channels
                    for input_row in input_rows
                ]
                taps = self._interleaved(at, chunk.lanes)
                for output_column, kernel_column in uses:
                    for row in range(rows):
                        group = ((product * kernel.kernel[1] + kernel_column) * layout.rows + row) * _VECTORS
                        for index, tap in enumerate(taps):
                            column = e.load(self._buffers["weights"], weights + (group + index) * vector, vector)
                            total = (row * columns + output_column) * _VECTORS + index
                            sums[total] = self._dot(sums[total], tap, column)

    def _columns_in_use(self, columns: int) -> list[tuple[int, list[tuple[int, int]]]]:
        """Input columns of a tile, each with the (output column, kernel column) pairs that take it."""
        uses: dict[int, list[tuple[int, int]]] = {}
        for output_column in range(columns):
            for kernel_column in range(self._kernel.kernel[1]):
                at = output_column * self._kernel.stride[1] + kernel_column * self._kernel.dilation[1]
                uses.setdefault(at, []).append((output_column, kernel_column))
        return sorted(uses.items())

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
        pairs = [[e.reinterpret(e.interleave(*loaded[i : i + 2], half), "int16") for half in (0, 1)] for i in (0, 2)]
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
        if self._is_wide:
            return e.dot_bytes(total, taps, weights)
        return e.dot_words(total, e.reinterpret(taps, "int16"), weights)
