"""3x3 convolutions by Winograd's minimal filtering F(4x4, 3x3), exact in integers (Lavin and Gray, arXiv:1509.09308, section 4.1).

A tile of 4 x 4 outputs is ``A^T [(G g G^T) * (B^T d B)] A``: 36 products instead of 144. ``G`` has sixths and 24ths; with
``winograd_layout.WINOGRAD_FILTER`` in its place and the last column of A doubled everything is an integer and the result is ``576 y``:

* inputs, centred to [-128, 127], grow at most 100-fold in ``B^T d B``: int16. So do the transformed weights (``winograd_layout``);
* the sum over input channels is vpdpwssd's, modulo 2^32, and so is the output transform;
* 576 is 2^6 * 9, and 9 has an inverse modulo 2^32: ``(576 y) / 9`` is ``64 y`` modulo 2^32, whose arithmetic shift by 6 is y
  if ``|y| < 2^25``. Where there are too many channels for that, parts of them are summed and recovered one by one.

A task is a block of tiles: transform of its inputs, 36 small matrix products, transform of their sums, epilogue. Tiles that pass the
end of the map read its last row and column again: only outputs that are not stored depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm import tirx
from tvm.tirx.script import builder as T

from qcompiler.backends.tvm.kernels import ConvolutionKernel
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.epilogue import Epilogue, Place, position
from qcompiler.backends.tvm.templates.layout import kernel_parameters
from qcompiler.backends.tvm.templates.winograd_layout import WINOGRAD_MULTIPLIED_VECTORS, WINOGRAD_TILE, WinogradLayout, winograd_layout

_INPUT = WINOGRAD_TILE + 2  # rows and columns of the inputs that a tile takes
_POINTS = _INPUT * _INPUT
_LANES = 16
_WORDS = 32
_INVERSE_OF_9 = 954437177  # modulo 2^32
_TWO_POWER = 6  # 576 = 9 * 2^6


def emit(kernel: ConvolutionKernel) -> tirx.PrimFunc:
    """The kernel's function."""
    layout = winograd_layout(kernel)
    parameters = kernel_parameters(kernel, layout.weights, layout.outputs)

    def body(buffers: list[Buffer]) -> None:
        named = {parameter.name: buffer for parameter, buffer in zip(parameters, buffers, strict=True)}
        _WinogradKernel(kernel, layout, named).emit()

    return e.function(parameters, body)


class _WinogradKernel:
    def __init__(self, kernel: ConvolutionKernel, layout: WinogradLayout, buffers: Mapping[str, Buffer]) -> None:
        self._kernel = kernel
        self._layout = layout
        self._buffers = buffers
        self._epilogue = Epilogue(kernel, buffers, permutes_bytes=True)

    def emit(self) -> None:
        """A parallel loop over blocks of tiles."""
        layout, panel = self._layout, self._layout.chunk.channels
        with e.parallel(layout.rows * layout.columns // layout.block) as task:
            inputs = e.scratch(_POINTS * layout.block * layout.inputs, "int16")
            sums = e.scratch(layout.parts * _POINTS * layout.block * panel, "int32")
            pixels = e.scratch(WINOGRAD_TILE * WINOGRAD_TILE * panel, "int32")
            first = T.Bind(task * layout.block)
            with T.serial(0, layout.block) as tile, T.serial(0, layout.inputs // _WORDS) as group:
                row, column = self._tile_position(first + tile)
                self._transform_inputs(inputs, row, column, tile, T.Bind(group * _WORDS))
            with T.serial(0, layout.outputs // panel) as number:
                register_blocks = layout.block // layout.register_block
                vector_groups = layout.chunk.vectors // WINOGRAD_MULTIPLIED_VECTORS
                with (
                    T.serial(0, layout.parts) as part,
                    T.serial(0, _POINTS) as point,
                    T.serial(0, register_blocks) as block,
                    T.serial(0, vector_groups) as group,
                ):
                    first_vector = T.Bind(group * WINOGRAD_MULTIPLIED_VECTORS)
                    self._multiply(inputs, sums, number, part, point, T.Bind(block * layout.register_block), first_vector)
                e.keep_loads_here()
                with T.serial(0, layout.block) as tile:
                    row, column = self._tile_position(first + tile)
                    with T.serial(0, panel // _LANES) as vector:
                        self._transform_sums(sums, pixels, tile, T.Bind(vector * _LANES))
                    self._store(pixels, row, column, T.Bind(number * panel))

    def _tile_position(self, tile: Expr) -> tuple[Expr, Expr]:
        """First output row and column."""
        return T.Bind(tile // self._layout.columns * WINOGRAD_TILE), T.Bind(tile % self._layout.columns * WINOGRAD_TILE)

    def _transform_inputs(self, inputs: Buffer, row: Expr, column: Expr, tile: Expr, channel: Expr) -> None:
        """``B^T d B`` of 32 channels of a tile; the result lies as [point][tile][channel]."""
        source, (top, left) = self._kernel.input, self._kernel.padding
        rows = [_at_most(row - top + y, source.height + source.halo[1] - 1) for y in range(_INPUT)]
        columns = [_at_most(column - left + x, source.width + source.halo[3] - 1) for x in range(_INPUT)]
        by_rows = [_transform_input([self._centred(position(source, y, x) + channel) for x in columns]) for y in rows]
        for x, vectors in enumerate(zip(*by_rows, strict=True)):
            for y, vector in enumerate(_transform_input(vectors)):
                point = y * _INPUT + x
                e.store(inputs, (point * self._layout.block + tile) * self._layout.inputs + channel, vector)

    def _centred(self, offset: Expr) -> Expr:
        """32 inputs as int16 in [-128, 127]; the bias makes up for the difference."""
        words = e.cast(e.load(self._buffers["input"], offset, _WORDS), "int16")
        if self._kernel.input.dtype == "int8":
            return words
        unsigned = T.Bind(T.bitwise_and(words, e.constant(255, "int16", _WORDS)))
        return T.Bind(unsigned - e.constant(128, "int16", _WORDS))

    def _multiply(self, inputs: Buffer, sums: Buffer, number: Expr, part: Expr, point: Expr, first: Expr, vector: Expr) -> None:
        """Of one of the 36 matrix products: some tiles by some vectors of a panel, over a part of the input channels in pairs."""
        layout = self._layout
        vectors, pairs, tiles = layout.chunk.vectors, layout.inputs // (2 * layout.parts), layout.register_block
        total = e.Sums([e.constant(0, "int32", _LANES)] * (tiles * WINOGRAD_MULTIPLIED_VECTORS))
        slice_number = T.Bind((number * layout.parts + part) * _POINTS + point)
        weights = T.Bind(slice_number * (pairs * vectors * _WORDS))
        start = T.Bind((point * layout.block + first) * layout.inputs + part * (2 * pairs))
        with T.serial(0, pairs) as pair:
            of_pair = T.Bind(weights + (vector * pairs + pair * WINOGRAD_MULTIPLIED_VECTORS) * _WORDS)
            factors = [e.load(self._buffers["weights"], of_pair + index * _WORDS, _WORDS) for index in range(WINOGRAD_MULTIPLIED_VECTORS)]
            for tile in range(tiles):
                two = T.Bind(T.reinterpret(inputs[T.Ramp(start + tile * layout.inputs + pair * 2, 1, 2)], dtype="int32"))
                everywhere = e.reinterpret(T.Broadcast(two, _LANES), "int16")
                for index, factor in enumerate(factors):
                    number_of_sum = tile * WINOGRAD_MULTIPLIED_VECTORS + index
                    total[number_of_sum] = e.dot_word_pairs(total[number_of_sum], everywhere, factor)
        at = T.Bind(((part * _POINTS + point) * layout.block + first) * (vectors * _LANES) + vector * _LANES)
        for tile in range(tiles):
            for index in range(WINOGRAD_MULTIPLIED_VECTORS):
                e.store(sums, at + (tile * vectors + index) * _LANES, total[tile * WINOGRAD_MULTIPLIED_VECTORS + index])

    def _transform_sums(self, sums: Buffer, pixels: Buffer, tile: Expr, lane: Expr) -> None:
        """``A^T m A`` of 16 channels of a tile, divided by 576, summed over the parts: [row][column][channel]."""
        parts = [self._transform_part(sums, part, tile, lane) for part in range(self._layout.parts)]
        for pixel, values in enumerate(zip(*parts, strict=True)):
            total = values[0]
            for value in values[1:]:
                total = e.add_modulo(total, value)
            e.store(pixels, pixel * self._layout.chunk.channels + lane, total)

    def _transform_part(self, sums: Buffer, part: int, tile: Expr, lane: Expr) -> list[Expr]:
        layout = self._layout

        def load(point: int) -> Expr:
            return e.load(sums, ((part * _POINTS + point) * layout.block + tile) * layout.chunk.channels + lane, _LANES)

        by_columns = [_transform_output([load(y * _INPUT + x) for y in range(_INPUT)]) for x in range(_INPUT)]
        scaled = [value for vectors in zip(*by_columns, strict=True) for value in _transform_output(vectors)]
        times_64 = [e.multiply_modulo(value, e.constant(_INVERSE_OF_9, "int32", _LANES)) for value in scaled]
        return [T.Bind(T.shift_right(value, e.constant(_TWO_POWER, "int32", _LANES))) for value in times_64]

    def _store(self, pixels: Buffer, row: Expr, column: Expr, channel: Expr) -> None:
        """The outputs of a tile that lie in the map."""
        chunk, output = self._layout.chunk, self._kernel.output
        rows, columns = T.Bind(T.min(output.height - row, WINOGRAD_TILE)), T.Bind(T.min(output.width - column, WINOGRAD_TILE))
        with T.serial(0, rows) as y, T.serial(0, columns) as x:
            start = T.Bind((y * WINOGRAD_TILE + x) * chunk.channels)
            offsets = [index * _LANES for index in range(chunk.vectors)]
            sums = [e.add_modulo(e.load(pixels, start + at, _LANES), e.load(self._buffers["bias"], channel + at, _LANES)) for at in offsets]
            self._epilogue.store(sums, chunk, Place(row + y, column + x, channel, channel))


def _at_most(index: Expr, last: int) -> Expr:
    return T.Bind(T.min(index, last))


def _transform_input(d: Sequence[Expr]) -> list[Expr]:
    """``B^T d``: rows (4 0 -5 0 1 0), (0 -4 -4 1 1 0), (0 4 -4 -1 1 0), (0 -2 -1 2 1 0), (0 2 -1 -2 1 0), (0 4 0 -5 0 1)."""
    d4_d2, d5_d3, d3_d1_twice = T.Bind(d[4] - d[2]), T.Bind(d[5] - d[3]), _times(T.Bind(d[3] - d[1]), 1)
    even, odd = T.Bind(d[4] - _times(d[2], 2)), T.Bind(d[3] - _times(d[1], 2))
    first = T.Bind(_times(T.Bind(d[0] - d[2]), 2) + d4_d2)
    last = T.Bind(d5_d3 - _times(d3_d1_twice, 1))
    return [first, T.Bind(even + odd), T.Bind(even - odd), T.Bind(d4_d2 + d3_d1_twice), T.Bind(d4_d2 - d3_d1_twice), last]


def _transform_output(m: Sequence[Expr]) -> list[Expr]:
    """``A^T m`` modulo 2^32: rows (1 1 1 1 1 0), (0 1 -1 2 -2 0), (0 1 1 4 4 0), (0 1 -1 8 -8 2)."""
    add, subtract = e.add_modulo, e.subtract_modulo
    a, b, c, d = add(m[1], m[2]), subtract(m[1], m[2]), add(m[3], m[4]), subtract(m[3], m[4])
    return [add(add(m[0], a), c), add(b, _times(d, 1)), add(a, _times(c, 2)), add(add(b, _times(d, 3)), _times(m[5], 1))]


def _times(vector: Expr, power: int) -> Expr:
    """``vector * 2^power``."""
    element = str(vector.ty.dtype).split("x")[0]
    return T.Bind(T.shift_left(vector, e.constant(power, element, e.lanes(vector))))
