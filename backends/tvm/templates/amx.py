"""Convolutions and linear layers with AMX: tiles of 16 pixels by 64 bytes of a run, times 64 bytes by 16 channels.

One tile of inputs meets up to four of weights, so a row of sums is the chunk of 64 channels that the epilogue stores at once. A tile
load takes rows at one fixed distance. With stride 1 that makes the whole map one long row, halo included: pixels that lie in the halo
are computed and not stored. Otherwise rows of the map are cut one by one. Where the last tile would pass the end it starts earlier,
and its rows that were stored before are not stored again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from qcompiler.backends.tvm.kernels import ConvolutionKernel
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.epilogue import Epilogue, Place, position
from qcompiler.backends.tvm.templates.layout import kernel_parameters
from qcompiler.backends.tvm.templates.matrix_layout import MatrixLayout, matrix_layout, output_map, panel_vectors

_TILE_ROWS = 16
_TILE_BYTES = 64
_LANES = 16
_WEIGHT_TILE = _TILE_ROWS * _TILE_BYTES
_INPUT_TILE = 4  # tiles 0 to 3 hold sums
_WEIGHT_TILES = (5, 6, 7)
_TASKS = 16  # at least, where there are so many tiles: enough to divide among threads
_CONFIGURATION_BYTES, _PALETTE, _COLUMN_BYTES, _ROWS = 64, 0, 16, 48  # Intel SDM volume 1, 18.2


def emit(kernel: ConvolutionKernel, target: str) -> tirx.PrimFunc:
    """The kernel's function."""
    layout = matrix_layout(kernel, target)
    parameters = kernel_parameters(kernel, layout.weights, layout.channels)

    def body(buffers: list[Buffer]) -> None:
        named = {parameter.name: buffer for parameter, buffer in zip(parameters, buffers, strict=True)}
        AmxKernel(kernel, layout, named).emit()

    return e.function(parameters, body)


@dataclass(frozen=True)
class _Pixels:
    """``rows`` rows of ``columns`` pixels at a fixed distance in the input. ``pitch``: pixels from one row of the map to the next where
    all of them are one long row, of which only the first ``width`` are outputs."""

    rows: int
    columns: int
    pitch: int
    width: int


def _pixels(kernel: ConvolutionKernel) -> _Pixels:
    height, width = output_map(kernel)
    if kernel.stride != (1, 1) or height == 1:
        return _Pixels(height, width, width, width)
    pitch = kernel.input.row_stride // kernel.input.pixel_stride
    return _Pixels(1, (height - 1) * pitch + width, pitch, width)


class AmxKernel:
    """The code of a kernel over its buffers by name: ``layout.kernel_parameters``."""

    def __init__(self, kernel: ConvolutionKernel, layout: MatrixLayout, buffers: Mapping[str, Buffer]) -> None:
        self._kernel = kernel
        self._layout = layout
        self._buffers = buffers
        self._pixels = _pixels(kernel)
        self._tile_rows = min(_TILE_ROWS, self._pixels.columns)
        self._panel_vectors = panel_vectors(kernel, layout)
        self._epilogue = Epilogue(kernel, buffers, permutes_bytes=True)

    def emit(self) -> None:
        """One parallel loop over panels and rows or, where all is one row, parts of it; a thread configures its tiles once."""
        fixed = -(-self._pixels.columns // self._tile_rows)
        tiles = e.pieces(fixed, self._tile_rows, self._kernel.rows, self._buffers.get("extents"))
        sharing = self._layout.groups * self._panel_count * self._pixels.rows
        length = e.ceiling(tiles, min(fixed, -(-_TASKS // sharing)))
        if sharing == fixed == 1:
            self._emit_tiles(T.serial, tiles, length)
            return
        with e.per_thread():
            self._emit_tiles(T.parallel, tiles, length)

    def emit_first(self, count: Expr) -> None:
        """Of a layer the tiles with the first ``count`` rows, one after the other, as a part of another kernel's task."""
        tiles = e.ceiling(count, self._tile_rows)
        self._emit_tiles(T.serial, tiles, tiles)

    @property
    def _panel_count(self) -> int:
        panels, rest = self._layout.panels(self._panel_vectors)
        return panels + bool(rest)

    def _emit_tiles(self, loop: Callable[..., AbstractContextManager[Expr]], tiles: Expr | int, length: Expr | int) -> None:
        """``tiles``: of a row of pixels; up to ``length`` of them are a task."""
        panels, rest = self._layout.panels(self._panel_vectors)
        rows, parts = self._pixels.rows, e.ceiling(tiles, length)
        self._configure()
        sums = e.scratch(_TILE_ROWS * self._panel_vectors * _LANES, "int32")
        with loop(0, self._layout.groups * self._panel_count * rows * parts) as task:
            part = e.digit(task, 1, parts)
            row = e.digit(task, parts, rows)
            panel = e.digit(task, parts * rows, self._panel_count)
            group = e.digit(task, parts * rows * self._panel_count, self._layout.groups)
            first = T.Bind(part * length)
            end = T.Bind(T.min(first + length, tiles))

            def emit_panel(is_rest: bool) -> None:
                channels = rest if is_rest else self._panel_vectors * _LANES
                self._blocks(sums, group, T.Bind(panel * self._panel_vectors), channels, row, first, end)

            e.branches(panel, panels, bool(rest), emit_panel)
        e.tile("tilerelease")

    def _configure(self) -> None:
        """Palette 1: tiles of 64-byte rows; those of inputs and sums have one row a pixel."""
        configuration = T.alloc_buffer((_CONFIGURATION_BYTES,), "uint8", scope="local")
        for start in range(0, _CONFIGURATION_BYTES, 16):
            e.store(configuration, start, e.constant(0, "uint8", 16))
        T.buffer_store(configuration, T.uint8(1), [_PALETTE])
        for tile in range(8):
            T.buffer_store(configuration, T.uint8(_TILE_BYTES), [_COLUMN_BYTES + 2 * tile])
            rows = _TILE_ROWS if tile in _WEIGHT_TILES else self._tile_rows
            T.buffer_store(configuration, T.uint8(rows), [_ROWS + tile])
        e.tile("ldtilecfg", T.address_of(configuration[0]))

    def _blocks(self, sums: Buffer, group: Expr, first_vector: Expr, channels: int, row: Expr, first: Expr, end: Expr) -> None:
        """Tiles of pixels by a panel of channels. While the sums of one are rounded and stored, the next one is multiplied: its tile
        instructions come first, as they wait for each other and the vector instructions need not wait for them."""
        vectors = -(-channels // _LANES)

        def multiply(tile: Expr) -> None:
            self._multiply(group, first_vector, vectors, row, self._first_pixel(tile))

        multiply(first)
        with T.serial(0, end - first) as count:
            tile = T.Bind(first + count)
            for index in range(vectors):
                e.tile("tilestored64", T.uint8(index), T.address_of(sums[index * _LANES]), T.int64(vectors * _LANES * 4))
            with T.If(tile + 1 < end), T.Then():
                multiply(T.Bind(tile + 1))
            pixel = self._first_pixel(tile)
            stored = T.Bind(tile * self._tile_rows - pixel)
            with T.serial(0, self._tile_rows - stored) as unstored:
                r = T.Bind(unstored + stored)
                self._store_pixel(sums, r, group, first_vector, channels, row, T.Bind(pixel + r))

    def _first_pixel(self, tile: Expr) -> Expr:
        """The last tile starts where it ends with the pixels."""
        return T.Bind(T.min(tile * self._tile_rows, self._pixels.columns - self._tile_rows))

    def _multiply(self, group: Expr, first_vector: Expr, vectors: int, row: Expr, first: Expr) -> None:
        kernel, layout = self._kernel, self._layout
        (stride_y, stride_x), (top, left) = kernel.stride, kernel.padding
        start = T.Bind(position(kernel.input, row * stride_y - top, first * stride_x - left) + group * layout.inputs)
        weights = T.Bind((group * layout.vectors + first_vector) * (_LANES * layout.depth))
        step_size = vectors * _WEIGHT_TILE
        for index in range(vectors):
            e.tile("tilezero", T.uint8(index))
        with T.serial(0, layout.kernel_rows) as kernel_row, T.serial(0, layout.runs) as run:
            run_start = T.Bind(start + kernel_row * (kernel.dilation[0] * kernel.input.row_stride) + run * layout.run_stride)
            run_weights = T.Bind(weights + (kernel_row * layout.runs + run) * (layout.steps * step_size))
            with T.serial(0, layout.steps) as step:
                at = self._buffers["input"][run_start + step * _TILE_BYTES]
                e.tile("tileloadd64", T.uint8(_INPUT_TILE), T.address_of(at), T.int64(stride_x * kernel.input.pixel_stride))
                for index in range(vectors):
                    weight_tile = _WEIGHT_TILES[index % len(_WEIGHT_TILES)]
                    column = self._buffers["weights"][run_weights + step * step_size + index * _WEIGHT_TILE]
                    e.tile("tileloadd64", T.uint8(weight_tile), T.address_of(column), T.int64(_TILE_BYTES))
                    e.tile(self._product, T.uint8(index), T.uint8(_INPUT_TILE), T.uint8(weight_tile))

    @property
    def _product(self) -> str:
        return "tdpbssd" if self._kernel.input.dtype == "int8" else "tdpbusd"

    def _store_pixel(self, sums: Buffer, r: Expr, group: Expr, first_vector: Expr, channels: int, row: Expr, pixel: Expr) -> None:
        y, x = T.Bind(row + pixel // self._pixels.pitch), T.Bind(pixel % self._pixels.pitch)
        if self._pixels.pitch == self._pixels.width:
            self._store_channels(sums, r, group, first_vector, channels, y, x)
            return
        with T.If(x < self._pixels.width), T.Then():
            self._store_channels(sums, r, group, first_vector, channels, y, x)

    def _store_channels(self, sums: Buffer, r: Expr, group: Expr, first_vector: Expr, channels: int, y: Expr, x: Expr) -> None:
        layout = self._layout
        offset = T.Bind((group * layout.vectors + first_vector) * _LANES)
        channel = T.Bind(group * layout.outputs + first_vector * _LANES)
        row_size = -(-channels // _LANES) * _LANES
        for chunk in layout.panel(channels):
            vectors = []
            for index in range(chunk.vectors):
                lane = chunk.first + index * _LANES
                bias = e.load(self._buffers["bias"], offset + lane, _LANES)
                vectors.append(e.add_modulo(e.load(sums, r * row_size + lane, _LANES), bias))
            self._epilogue.store(vectors, chunk, Place(y, x, channel + chunk.first, offset + chunk.offset))
