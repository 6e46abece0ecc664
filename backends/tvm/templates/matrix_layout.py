"""How a convolution is a matrix product, in register tiles (no TVM here); shared by ``matrix``, ``amx``, ``planes`` and its packing.

A convolution is a product of a pixel matrix and a weight matrix whose inner dimension is a list of *runs*: inputs that lie side by
side in the NHWC map. Without dilation and groups, in a map without a pitch, the taps of one kernel row and their channels are one run of
``kw * channels`` bytes; otherwise each tap is a run of the group's channels. A run is padded to the instruction's granule with zero
weights, so the bytes that are read past its end do not matter. Chunks of output channels are cut into *panels* that one register
tile covers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from qcompiler.backends.tvm.kernels import Activation, ConvolutionKernel, ResidualAdd
from qcompiler.backends.tvm.templates.layout import (
    LATENCY,
    PACKED_INSTRUCTION_SETS,
    SMALL_BYTES,
    WORD_INSTRUCTION_SETS,
    Chunk,
    InstructionSet,
    Parameter,
    chunks,
    instruction_set,
    reads_words,
)

LONGEST_PANEL = 8  # vectors
AMX_PANEL = 4  # vectors: one tile of inputs meets four of weights
SHORT_ROW = 16  # rows of the map up to this width may share a register tile
_BYTES_A_CYCLE = 8  # that memory gives one core
CACHED_WEIGHTS = 1 << 19  # bytes that stay in the second-level cache
_AMX_WEIGHTS_A_CYCLE = 64  # multiplied with up to 16 rows
# Inputs below 256 times weights in the upper bits of a byte: no sum of so many leaves int32.
LONGEST_SCALED_SUM = (2**31 - 1) // (255 * 128)


@dataclass(frozen=True)
class Tile:
    """A register tile: output rows × output columns of a map × vectors of channels."""

    rows: int
    columns: int
    vectors: int


@dataclass(frozen=True)
class MatrixLayout:
    """A convolution as a matrix product, ``groups`` times. Groups too narrow to fill a vector are merged, with zeros between them.

    ``planes`` vectors of weights, those of consecutive dot products, share the bits of one vector of memory.
    """

    instructions: InstructionSet
    groups: int
    inputs: int  # channels of a (merged) group
    outputs: int
    kernel_rows: int
    runs: int  # in a kernel row
    run_length: int  # inputs
    run_stride: int  # from one run to the next
    widest_chunk: int
    planes: int = 1
    weight_group: int = 0  # inputs whose partial sum has a factor; 0: none
    sums: int = 1  # registers that an output takes while products are added

    @property
    def group_steps(self) -> int:
        """Rounds of the inner loop whose sum has one factor."""
        return self.weight_group // self.granule if self.weight_group else self.steps

    @property
    def weight_groups(self) -> int:
        """Of inputs; the last one may have fewer."""
        return -(-self.steps // self.group_steps)

    @property
    def factors(self) -> Parameter | None:
        """[panel][group of inputs][vector][lane]."""
        return Parameter("factors", "int8", self.channels * self.weight_groups) if self.weight_group else None

    @property
    def steps_together(self) -> int:
        """Steps whose weights come from the same memory."""
        return max(1, self.planes // self.instructions.products)

    @property
    def granule(self) -> int:
        """Inputs of a run that one round of the inner loop takes."""
        return self.instructions.granule * self.steps_together

    @property
    def steps(self) -> int:
        """Rounds of the inner loop for one run."""
        return -(-self.run_length // self.granule)

    @property
    def depth(self) -> int:
        """Inner dimension with its padding."""
        return self.kernel_rows * self.runs * self.steps * self.granule

    @property
    def stored_bits(self) -> int:
        """Of a weight in memory."""
        return self.instructions.weight_bits // self.planes

    @property
    def scale_shift(self) -> int:
        """With AVX512-VNNI sums are ``2^scale_shift`` times what they should be: a weight is the upper bits of its byte, the rest is 0."""
        return 8 - self.stored_bits if self.planes > 1 and self.instructions.name == "x86-64-vnni" else 0

    @property
    def weight_offset(self) -> int:
        """What AVX2 adds to weights of few bits, so that they are the unsigned operand of vpmaddubsw."""
        return 1 << (self.stored_bits - 1) if self.planes > 1 and self.instructions is SMALL_BYTES else 0

    @property
    def vectors(self) -> int:
        """Accumulator vectors of one group's outputs."""
        return -(-self.outputs // self.instructions.lanes)

    @property
    def weights(self) -> Parameter:
        """The packed weights; AVX2 multiplies 16-bit numbers, and inputs of 16 bits want such weights."""
        return Parameter("weights", f"int{self.instructions.weight_bits}", self.channels * self.depth // self.planes)

    @property
    def channels(self) -> int:
        """Of all groups, with the padding."""
        return self.groups * self.vectors * self.instructions.lanes

    def panel(self, channels: int) -> tuple[Chunk, ...]:
        """The chunks of a panel of so many channels."""
        return chunks(channels, self.instructions.lanes, self.widest_chunk)

    def panels(self, vectors: int) -> tuple[int, int]:
        """Number of panels of ``vectors`` full vectors in a group, and the channels of the smaller one after them (or 0)."""
        return divmod(self.outputs, vectors * self.instructions.lanes)


def matrix_layout(kernel: ConvolutionKernel, target: str) -> MatrixLayout:
    """The layout that ``kernel`` has on ``target``."""
    if is_packed(kernel):
        instructions = PACKED_INSTRUCTION_SETS[instruction_set(target).name]
        packed = layout_with(kernel, instructions, instructions.weight_bits // kernel.weight_bits)
        # The sum of a group and that of all.
        return replace(packed, weight_group=kernel.weight_group, sums=2) if kernel.weight_group else packed
    plain = layout_with(kernel, WORD_INSTRUCTION_SETS[target] if reads_words(kernel) else instruction_set(target))
    halved = replace(plain, planes=2)
    # Bytes in the place of words, where that is faster.
    return halved if halved.stored_bits == 8 and cycles(halved, kernel) < cycles(plain, kernel) else plain


def is_packed(kernel: ConvolutionKernel) -> bool:
    """Whether several weights share a byte in memory: AMX then uses the form of AVX512-VNNI."""
    return kernel.weight_bits < 8


def can_unpack(layout: MatrixLayout) -> bool:
    """Scaled sums fit int32, and factors belong to whole rounds of one run of inputs."""
    if layout.weight_group and (layout.weight_group % layout.granule or layout.groups * layout.kernel_rows * layout.runs > 1):
        return False
    summed = layout.group_steps * layout.granule if layout.weight_group else layout.depth
    return layout.scale_shift == 0 or summed <= LONGEST_SCALED_SUM


def cycles(layout: MatrixLayout, kernel: ConvolutionKernel) -> float:
    """Predicted time of one core: the longer one of arithmetic and reading weights."""
    height, width = output_map(kernel)
    reading = reading_cycles(layout, layout.weights.size * np.dtype(layout.weights.dtype).itemsize)
    if layout.instructions.name == "x86-64-amx":
        return max(layout.channels * layout.depth * height * -(-width // 16) / _AMX_WEIGHTS_A_CYCLE, reading)
    return max(arithmetic_cycles(layout, height, width), reading)


def reading_cycles(layout: MatrixLayout, size: int) -> float:
    """To read so many bytes of weights; 0 where caches keep those of 8 bits from one run to the next."""
    return size / _BYTES_A_CYCLE if layout.channels * layout.depth > CACHED_WEIGHTS else 0


def arithmetic_cycles(layout: MatrixLayout, height: int, width: int) -> float:
    """To multiply and add."""
    steps = layout.groups * layout.depth / layout.instructions.granule
    return steps * _cost(layout, choose_tile(layout, height, width), height, width) / layout.instructions.instructions_a_cycle


def layout_with(kernel: ConvolutionKernel, instructions: InstructionSet, planes: int = 1) -> MatrixLayout:
    """The layout for these instructions."""
    merged = _merged_groups(kernel, instructions.lanes)
    groups = kernel.groups // merged
    inputs = kernel.input.channels // groups
    width = kernel.kernel[1]
    contiguous = groups == 1 and (width == 1 or (kernel.dilation[1] == 1 and kernel.input.pitch is None))
    return MatrixLayout(
        instructions=instructions,
        groups=groups,
        inputs=inputs,
        outputs=kernel.output.channels // groups,
        kernel_rows=kernel.kernel[0],
        runs=1 if contiguous else width,
        run_length=width * inputs if contiguous else inputs,
        run_stride=kernel.dilation[1] * kernel.input.pixel_stride,
        widest_chunk={"int32": 1, "int16": 2}.get(kernel.output.dtype, 4),
        planes=planes,
    )


def _merged_groups(kernel: ConvolutionKernel, lanes: int) -> int:
    """Groups to merge into one: the fewest that fill a vector. Up to there the products with zeros ride in lanes that were empty."""
    outputs = kernel.output.channels // kernel.groups
    divisors = (count for count in range(1, kernel.groups + 1) if kernel.groups % count == 0)
    return next((count for count in divisors if count * outputs >= lanes), kernel.groups)


def output_map(kernel: ConvolutionKernel) -> tuple[int, int]:
    """Rows and columns that tiles are cut from: a pointwise convolution between maps without side halos is one long row."""
    maps = [kernel.input, kernel.output]
    if isinstance(kernel.epilogue, ResidualAdd):
        maps.append(kernel.epilogue.operand)
    flat = prod(kernel.kernel) == prod(kernel.stride) == 1 and all(_is_flat(each) for each in maps)
    height, width = kernel.output.height, kernel.output.width
    return (1, height * width) if flat else (height, width)


def _is_flat(activation: Activation) -> bool:
    return activation.halo[2:] == (0, 0)


def choose_tile(layout: MatrixLayout, height: int, width: int) -> Tile:
    """The register tile with the least predicted time; of equals the one with the most reuse."""
    return min(
        _tiles(layout, height, width), key=lambda tile: (_cost(layout, tile, height, width), -tile.rows * tile.columns * tile.vectors)
    )


def panel_vectors(kernel: ConvolutionKernel, layout: MatrixLayout) -> int:
    """Accumulator vectors of a panel: the packed weights are cut by it."""
    if layout.instructions.name == "x86-64-amx":
        return min(AMX_PANEL, layout.vectors)
    return choose_tile(layout, *output_map(kernel)).vectors


def _tiles(layout: MatrixLayout, height: int, width: int) -> Iterator[Tile]:
    instructions = layout.instructions
    for vectors in range(1, min(LONGEST_PANEL, layout.vectors) + 1):
        pixels = (instructions.registers - vectors * instructions.weights_in_registers) // (vectors * layout.sums)
        for rows in range(1, min(height, pixels) + 1 if width <= SHORT_ROW else 2):
            for columns in range(1, min(width, pixels // rows) + 1):
                yield Tile(rows, columns, vectors)


def _cost(layout: MatrixLayout, tile: Tile, height: int, width: int) -> float:
    """Cycles of one step summed over all tiles of a map, those at its ends counted with their own sizes.

    A step of p pixels and v vectors issues ``p * v`` products, loads p broadcasts and v vectors of weights (one load a cycle), and
    cannot start before its accumulators are ready; a cycle goes to the loop. Weights that share a vector of memory take two instructions
    each, but one of them only one.
    """
    instructions = layout.instructions
    unpacking = instructions.unpacking_cost * instructions.products * (2 - 1 / layout.planes) if layout.planes > 1 else 0
    total = 0.0
    for rows, row_count in _pieces(height, tile.rows):
        for columns, column_count in _pieces(width, tile.columns):
            for vectors, panel_count in _pieces(layout.vectors, tile.vectors):
                pixels = rows * columns
                arithmetic: float = pixels * vectors * instructions.product_cost + pixels * (instructions.broadcast_cost - 1)
                arithmetic += vectors * (unpacking or instructions.weight_cost)
                cycles = max(arithmetic, pixels + vectors, LATENCY) + 1
                total += row_count * column_count * panel_count * cycles
    return total


def _pieces(extent: int, size: int) -> list[tuple[int, int]]:
    """(size, count) of the full pieces and of the rest."""
    full, rest = divmod(extent, size)
    return [piece for piece in ((size, full), (rest, min(rest, 1))) if piece[1]]
