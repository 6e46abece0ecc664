"""The loop over the register tiles of a matrix product, and the store of a tile's sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from qcompiler.backends.tvm.kernels import Activation, ConvolutionKernel
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.epilogue import Epilogue, Place
from qcompiler.backends.tvm.templates.matrix_layout import MatrixLayout, choose_tile, output_map


@dataclass(frozen=True)
class Panel:
    """Consecutive output channels of a group."""

    group: Expr
    first_vector: Expr  # in the group
    channels: int


@dataclass(frozen=True)
class OutputTile:
    """``rows`` by ``columns`` pixels by the channels of a panel; ``offset``: its first entry in the packed parameters."""

    panel: Panel
    rows: int
    columns: int
    first_row: Expr
    first_column: Expr
    vectors: int
    offset: Expr

    @property
    def pixels(self) -> int:
        return self.rows * self.columns


def column_count(kernel: ConvolutionKernel, layout: MatrixLayout, buffers: Mapping[str, Buffer]) -> Expr | int:
    """Tiles from the left to the right of the output, or for as many rows of a matrix as there are."""
    width = output_map(kernel)[1]
    columns = choose_tile(layout, *output_map(kernel)).columns
    return e.pieces(-(-width // columns), columns, kernel.rows, buffers.get("extents"))


def each_tile(
    kernel: ConvolutionKernel, layout: MatrixLayout, columns: Expr | int, emit: Callable[[OutputTile], None], loop: e.Loop = e.parallel
) -> None:
    """One loop over all tiles, ``columns`` of them side by side, panel by panel, so that a thread's weights stay in its cache."""
    height, width = output_map(kernel)
    tile = choose_tile(layout, height, width)
    lanes = layout.instructions.lanes
    panels, rest_channels = layout.panels(tile.vectors)
    full_rows, rest_rows = divmod(height, tile.rows)
    full_columns, rest_columns = divmod(width, tile.columns)
    panel_count, row_count = panels + bool(rest_channels), full_rows + bool(rest_rows)
    with loop(layout.groups * panel_count * row_count * columns) as task:
        column = e.digit(task, 1, columns)
        row = e.digit(task, columns, row_count)
        panel = e.digit(task, columns * row_count, panel_count)
        group = e.digit(task, columns * row_count * panel_count, layout.groups)

        def emit_panel(is_rest: bool) -> None:
            part = Panel(group, T.Bind(panel * tile.vectors), rest_channels if is_rest else tile.vectors * lanes)
            e.branches(row, full_rows, bool(rest_rows), lambda last: emit_row(part, rest_rows if last else tile.rows))

        def emit_row(part: Panel, rows: int) -> None:
            e.branches(column, full_columns, bool(rest_columns), lambda last: emit_tile(part, rows, rest_columns if last else tile.columns))

        def emit_tile(part: Panel, rows: int, across: int) -> None:
            first = T.Bind(row * tile.rows), T.Bind(column * tile.columns)
            offset = T.Bind((part.group * layout.vectors + part.first_vector) * lanes)
            emit(OutputTile(part, rows, across, *first, -(-part.channels // lanes), offset))

        e.branches(panel, panels, bool(rest_channels), emit_panel)


def window_offsets(kernel: ConvolutionKernel, tile: OutputTile, source: Activation) -> list[int]:
    """Where the windows of a tile's outputs start in a map, from where that of the first one does."""
    stride_y, stride_x = kernel.stride
    return [r * stride_y * source.row_stride + c * stride_x * source.pixel_stride for r in range(tile.rows) for c in range(tile.columns)]


def store_tile(epilogue: Epilogue, layout: MatrixLayout, tile: OutputTile, sums: e.Sums) -> None:
    """The outputs of a tile; ``sums``: pixel by pixel, the vectors of the panel."""
    lanes = layout.instructions.lanes
    channel = T.Bind(tile.panel.group * layout.outputs + tile.panel.first_vector * lanes)
    for pixel in range(tile.pixels):
        r, c = divmod(pixel, tile.columns)
        for chunk in layout.panel(tile.panel.channels):
            first = pixel * tile.vectors + chunk.first // lanes
            place = Place(tile.first_row + r, tile.first_column + c, channel + chunk.first, tile.offset + chunk.offset)
            epilogue.store([sums[first + index] for index in range(chunk.vectors)], chunk, place)
