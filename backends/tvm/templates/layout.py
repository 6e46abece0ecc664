"""How a convolution is cut into register tiles and packed parameters; shared by the templates and by ``packing`` (no TVM here).

A convolution is a product of a pixel matrix and a weight matrix whose inner dimension is a list of *runs*: inputs that lie side by
side in the NHWC map. Without dilation and groups the taps of one kernel row and their channels are one run of ``kw * channels``
bytes; otherwise each tap is a run of the group's channels. A run is padded to the instruction's granule with zero weights, so the
bytes that are read past its end do not matter.

Output channels are cut into *chunks* of 1, 2 or 4 accumulator vectors that are stored together, and chunks into *panels* that one
register tile covers. Inside a chunk the channels are permuted so that the saturating packs, which work in 128-bit lanes, bring them
into their natural order for free (``Chunk.accumulator_order``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.tvm import sharing
from qcompiler.backends.tvm.kernels import Activation, ConvolutionKernel, ResidualAdd
from qcompiler.errors import TargetError

LATENCY = 4  # cycles until an accumulator can be added to again
LONGEST_PANEL = 8  # vectors
AMX_PANEL = 4  # vectors: one tile of inputs meets four of weights
WORDS_OF_A_STEP = 2
STRIP_BYTES = 8192  # of interleaved inputs of a depthwise kernel
SHORT_ROW = 16  # rows of the map up to this width may share a register tile
PACKED_BITS = (2, 4)  # that weights may have in memory, besides 8
_BYTES_A_CYCLE = 8  # that memory gives one core
_CACHED_WEIGHTS = 1 << 19  # bytes that stay in the second-level cache
_AMX_WEIGHTS_A_CYCLE = 64  # multiplied with up to 16 rows
# Inputs below 256 times weights in the upper bits of a byte: no sum of so many leaves int32.
LONGEST_SCALED_SUM = (2**31 - 1) // (255 * 128)


@dataclass(frozen=True)
class InstructionSet:
    """What the templates must know of a target: the width of its vectors and the cost of its dot product."""

    name: str
    lanes: int  # int32 lanes of a full vector
    granule: int  # inputs of a run that one step of the inner loop takes
    registers: int  # vector registers for the sums and for the weights of a step
    weights_in_registers: bool  # else they are memory operands
    broadcast_cost: int  # instructions that bring the inputs of a step from one pixel into all lanes
    product_cost: float  # instructions that multiply them with one vector of weights and accumulate
    weight_cost: int  # instructions to fetch a vector of weights that do not overlap with the others
    depthwise_taps: int  # that one dot product takes
    depthwise_sums: int  # registers for a depthwise tile
    weight_bits: int  # of a weight as a dot product takes it
    products: int  # dot products of one step with one vector of channels
    instructions_a_cycle: float = 1.0  # what was measured of those that the costs count


INSTRUCTION_SETS = {
    "x86-64-v3": InstructionSet("x86-64-v3", 8, 4, 12, False, 3, 4, 3, 2, 8, 16, 2, 3.6),
    "x86-64-vnni": InstructionSet("x86-64-vnni", 16, 4, 31, True, 1, 1, 0, 4, 24, 8, 1),
    "x86-64-amx": InstructionSet("x86-64-amx", 16, 64, 31, True, 1, 1, 0, 4, 24, 8, 1),
}
# For inputs of 16 bits: pairs of words. AMX multiplies bytes only.
_WORDS = InstructionSet("x86-64-vnni", 16, WORDS_OF_A_STEP, 31, True, 1, 1, 0, 0, 0, 16, 1)
WORD_INSTRUCTION_SETS = {
    "x86-64-v3": InstructionSet("x86-64-v3", 8, WORDS_OF_A_STEP, 12, False, 1, 2, 0, 0, 0, 16, 1, 3.6),
    "x86-64-vnni": _WORDS,
    "x86-64-amx": _WORDS,
}
# For weights of few bits. AVX2 multiplies bytes, whose products with so small weights no sum of pairs saturates.
_SMALL_BYTES = InstructionSet("x86-64-v3", 8, 4, 9, False, 2, 3, 0, 0, 0, 8, 1, 2.5)
PACKED_INSTRUCTION_SETS = {
    "x86-64-v3": _SMALL_BYTES,
    "x86-64-vnni": INSTRUCTION_SETS["x86-64-vnni"],
    "x86-64-amx": INSTRUCTION_SETS["x86-64-vnni"],
}


def instruction_set(target: str) -> InstructionSet:
    """Raises TargetError for a target without templates."""
    if target not in INSTRUCTION_SETS:
        raise TargetError(f"no kernel templates for target '{target}'; there are: {', '.join(INSTRUCTION_SETS)}")
    return INSTRUCTION_SETS[target]


def is_depthwise(kernel: ConvolutionKernel) -> bool:
    """One input and one output channel a group: lanes are channels, and no channel is ever broadcast."""
    return 1 < kernel.groups == kernel.input.channels == kernel.output.channels


def reads_words(kernel: ConvolutionKernel) -> bool:
    """Whether the inputs have 16 bits."""
    return kernel.input.dtype == "int16"


def is_wide(kernel: ConvolutionKernel) -> bool:
    """Whether the output has more than 8 bits, so that the epilogue stays in 32-bit lanes."""
    return kernel.output.dtype in ("int16", "int32")


@dataclass(frozen=True)
class Parameter:
    """A pointer argument: ``size`` elements of type ``dtype`` lie behind it."""

    name: str
    dtype: str
    size: int


_HIGH = (("pre_shift", "int32"), ("multiplier", "int64"))
_EPILOGUES = {
    "high": (*_HIGH, ("rounding", "int32"), ("shift", "int32")),
    "exact64": (("multiplier", "int64"), ("rounding", "int64"), ("shift", "int64")),
    "narrow": (("pre_shift", "int32"), ("multiplier", "int16"), ("rescale", "int16")),
    "narrow, wide output": (("pre_shift", "int32"), ("multiplier", "int32"), ("rounding", "int32"), ("shift", "int32")),
}
OPERAND_LANES = 16  # copies of the residual operand's pre_shift


def epilogue_parameters(kernel: ConvolutionKernel, channels: int) -> tuple[Parameter, ...]:
    """What the epilogue reads, in the order of the kernel's arguments; ``channels`` with padding."""
    parameters: list[Parameter] = [Parameter("bias", "int32", channels)]
    epilogue = kernel.epilogue
    if isinstance(epilogue, ResidualAdd):
        parameters += [Parameter(name, dtype, channels) for name, dtype in _HIGH]
        parameters += [Parameter("operand_pre_shift", "int32", OPERAND_LANES), Parameter("operand_multiplier", "int64", OPERAND_LANES // 2)]
    elif epilogue is not None:
        form = "narrow, wide output" if epilogue.form == "narrow" and is_wide(kernel) else epilogue.form
        parameters += [Parameter(name, dtype, channels) for name, dtype in _EPILOGUES[form]]
    if kernel.table:
        parameters.append(Parameter("table", "int8", 256))
    return tuple(parameters)


def kernel_parameters(
    kernel: ConvolutionKernel, weights: Parameter, channels: int, factors: Parameter | None = None
) -> tuple[Parameter, ...]:
    """All arguments of a kernel. 8-bit maps are declared as int8: the templates read and write bytes."""
    operand = kernel.epilogue.operand if isinstance(kernel.epilogue, ResidualAdd) else None
    numbers = sharing.count(kernel)
    return (
        Parameter("input", "int16" if reads_words(kernel) else "int8", kernel.input.elements),
        *([Parameter("operand", operand.dtype, operand.elements)] if operand else []),
        weights,
        *([factors] if factors else []),
        *epilogue_parameters(kernel, channels),
        Parameter("output", kernel.output.dtype.removeprefix("u"), kernel.output.elements),
        *([Parameter("numbers", "int64", numbers)] if numbers else []),
        *([Parameter("extents", "int32", 1)] if kernel.rows is not None else []),
    )


@dataclass(frozen=True)
class Chunk:
    """``vectors`` accumulators of ``lanes`` channels each that are stored together."""

    first: int  # of its channels
    valid: int  # channels that exist; the rest of its lanes are padding
    vectors: int
    lanes: int
    offset: int  # of its first lane in the packed parameters

    @property
    def channels(self) -> int:
        return self.vectors * self.lanes

    @cached_property
    def accumulator_order(self) -> NDArray[np.intp]:
        """Channel (from ``first``) of each accumulator lane, vector by vector.

        packssdw of two vectors makes word 8L+4t+e from lane 4L+e of vector t (L counts 128-bit lanes); packuswb of two such pairs
        makes byte 16L+4t+e. A vector alone keeps its order.
        """
        return np.arange(self.channels).reshape(-1, self.vectors, min(self.lanes, 4)).transpose(1, 0, 2).reshape(-1)

    @cached_property
    def word_order(self) -> NDArray[np.intp]:
        """Channel of each 16-bit lane after packssdw has joined vectors 0, 1 and vectors 2, 3."""
        pairs = max(1, self.vectors // 2)
        return np.arange(self.channels).reshape(-1, pairs, self.channels if pairs == 1 else 8).transpose(1, 0, 2).reshape(-1)


def chunks(channels: int, lanes: int, most: int) -> tuple[Chunk, ...]:
    """Cut into chunks of at most ``most`` (1, 2 or 4) vectors, wide ones first."""
    result: list[Chunk] = []
    first = 0
    while first < channels:
        missing = -(-(channels - first) // lanes)
        vectors = next(size for size in (4, 2, 1) if size <= min(most, missing))
        result.append(Chunk(first, min(vectors * lanes, channels - first), vectors, lanes, first))
        first += vectors * lanes
    return tuple(result)


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
        return 1 << (self.stored_bits - 1) if self.planes > 1 and self.instructions is _SMALL_BYTES else 0

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
        packed = _matrix_layout(kernel, instructions, instructions.weight_bits // kernel.weight_bits)
        return replace(packed, weight_group=kernel.weight_group)
    plain = _matrix_layout(kernel, WORD_INSTRUCTION_SETS[target] if reads_words(kernel) else instruction_set(target))
    halved = replace(plain, planes=2)
    # Bytes in the place of words, where that is faster.
    return halved if halved.stored_bits == 8 and _cycles(halved, kernel) < _cycles(plain, kernel) else plain


def is_packed(kernel: ConvolutionKernel) -> bool:
    """Whether several weights share a byte in memory: AMX then uses the form of AVX512-VNNI."""
    return kernel.weight_bits < 8


def weight_storage(kernel: ConvolutionKernel, target: str, bits: int, group: int = 0) -> ConvolutionKernel:
    """The kernel for weights of ``bits`` bits, with a factor for each ``group`` inputs unless that is 0.

    It unpacks them in registers where it is predicted to be faster for it, mostly because reading weights is what takes the time. Else it
    is the kernel of 8 bits: the weights are expanded to bytes when the program is loaded.
    """
    packed = next((stored for stored in PACKED_BITS if bits <= stored), 8)
    if packed == 8 or is_depthwise(kernel) or reads_words(kernel) or uses_winograd(kernel, target):
        return kernel
    candidate = replace(kernel, weight_bits=packed, weight_group=group)
    small, plain = matrix_layout(candidate, target), matrix_layout(kernel, target)
    return candidate if _can_unpack(small) and _cycles(small, kernel) < _cycles(plain, kernel) else kernel


def _can_unpack(layout: MatrixLayout) -> bool:
    """Scaled sums fit int32, and factors belong to whole rounds of one run of inputs."""
    if layout.weight_group and (layout.weight_group % layout.granule or layout.groups * layout.kernel_rows * layout.runs > 1):
        return False
    summed = layout.group_steps * layout.granule if layout.weight_group else layout.depth
    return layout.scale_shift == 0 or summed <= LONGEST_SCALED_SUM


def _cycles(layout: MatrixLayout, kernel: ConvolutionKernel) -> float:
    """Predicted time of one core: the longer one of arithmetic and reading weights that no cache keeps from one run to the next."""
    height, width = output_map(kernel)
    size = layout.weights.size * np.dtype(layout.weights.dtype).itemsize
    reading = size / _BYTES_A_CYCLE if layout.channels * layout.depth > _CACHED_WEIGHTS else 0
    if layout.instructions.name == "x86-64-amx":
        return max(layout.channels * layout.depth * height * -(-width // 16) / _AMX_WEIGHTS_A_CYCLE, reading)
    tile = choose_tile(layout, height, width)
    steps = layout.groups * layout.depth / layout.instructions.granule
    return max(steps * _cost(layout, tile, height, width) / layout.instructions.instructions_a_cycle, reading)


def _matrix_layout(kernel: ConvolutionKernel, instructions: InstructionSet, planes: int = 1) -> MatrixLayout:
    merged = _merged_groups(kernel, instructions.lanes)
    groups = kernel.groups // merged
    inputs = kernel.input.channels // groups
    contiguous = groups == 1 and kernel.dilation[1] == 1
    width = kernel.kernel[1]
    return MatrixLayout(
        instructions=instructions,
        groups=groups,
        inputs=inputs,
        outputs=kernel.output.channels // groups,
        kernel_rows=kernel.kernel[0],
        runs=1 if contiguous else width,
        run_length=width * inputs if contiguous else inputs,
        run_stride=kernel.dilation[1] * kernel.input.channels,
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
    sums = 2 if layout.weight_group else 1  # those of a group and those of all
    for vectors in range(1, min(LONGEST_PANEL, layout.vectors) + 1):
        pixels = (instructions.registers - vectors * instructions.weights_in_registers) // (vectors * sums)
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
    unpacking = instructions.products * (2 - 1 / layout.planes) if layout.planes > 1 else 0
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


@dataclass(frozen=True)
class DepthwiseLayout:
    """A depthwise convolution: lanes are channels, and a dot product sums taps of one kernel column.

    ``slots`` lists, dot product by dot product, the input rows that it takes (offsets from a tile's first one). A tile of several
    output rows shares them: rows that an output row does not need have zero weights.
    """

    instructions: InstructionSet
    chunks: tuple[Chunk, ...]
    rows: int  # output rows of a tile
    columns: int  # output columns of a tile
    slots: tuple[tuple[int, ...], ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]

    def kernel_row(self, output_row: int, input_row: int) -> int | None:
        """The row of the kernel that joins two rows of a tile, if there is one."""
        row, rest = divmod(input_row - output_row * self.stride[0], self.dilation[0])
        return row if rest == 0 and 0 <= row < self.kernel[0] else None

    @property
    def weights(self) -> Parameter:
        """The packed weights; AVX2 multiplies 16-bit numbers."""
        channels = self.chunks[-1].offset + self.chunks[-1].channels
        size = channels * self.chunk_taps * self.instructions.depthwise_taps
        return Parameter("weights", "int16" if self.instructions.name == "x86-64-v3" else "int8", size)

    @property
    def reach(self) -> int:
        """Input columns that one output column takes, first to last."""
        return (self.kernel[1] - 1) * self.dilation[1] + 1

    @property
    def column_taps(self) -> int:
        """Taps of an interleaved input column, for each channel."""
        return len(self.slots) * self.instructions.depthwise_taps

    @property
    def strip(self) -> int:
        """Output columns, whole tiles, whose interleaved inputs fill STRIP_BYTES."""
        bytes_per_column = self.stride[1] * self.column_taps * 4 * self.instructions.lanes * np.dtype(self.weights.dtype).itemsize
        return max(1, STRIP_BYTES // (bytes_per_column * self.columns)) * self.columns

    @property
    def strip_inputs(self) -> int:
        """Input columns of a strip."""
        return (self.strip - 1) * self.stride[1] + self.reach

    @property
    def chunk_taps(self) -> int:
        """Weight vectors of a chunk, in units of its channels and the instruction's taps."""
        return len(self.slots) * self.kernel[1] * self.rows


def depthwise_layout(kernel: ConvolutionKernel, target: str) -> DepthwiseLayout:
    """Two output rows a tile where they overlap without gaps: an odd kernel then wastes no slot of a dot product of four."""
    instructions = instruction_set(target)
    rows = 2 if kernel.stride[0] == kernel.dilation[0] == 1 and kernel.output.height > 1 else 1
    taken = sorted({row * kernel.stride[0] + tap * kernel.dilation[0] for row in range(rows) for tap in range(kernel.kernel[0])})
    depth = instructions.depthwise_taps
    return DepthwiseLayout(
        instructions=instructions,
        chunks=depthwise_chunks(kernel.output.channels, instructions.lanes),
        rows=rows,
        columns=min(kernel.output.width, max(1, instructions.depthwise_sums // (4 * rows))),
        slots=tuple(tuple(taken[i : i + depth]) for i in range(0, len(taken), depth)),
        kernel=kernel.kernel,
        stride=kernel.stride,
        dilation=kernel.dilation,
    )


# 24 G, its last row halved (and the last column of A doubled for it): with rows of absolute sum 12 at most, a weight grows at most
# 144-fold, to 18432, which int16 holds.
WINOGRAD_FILTER = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 12]])
WINOGRAD_TILE = 4  # rows and columns of outputs
_WINOGRAD_RANGE = 2**25  # of the sums that are recovered exactly
_WINOGRAD_VECTORS = 4
_WINOGRAD_REGISTER_BLOCK = 8  # tiles: 16 sums by two vectors leave registers for what the compiler keeps of the epilogue
_WINOGRAD_BLOCK = 8  # tiles: their transformed inputs and sums stay in the second-level cache
_WINOGRAD_SMALLEST_BLOCK = 4  # tiles: below, each weight is used too few times
_WINOGRAD_WEIGHT_BYTES = 3 << 19  # of transformed weights; more do not stay in the second-level cache, and the direct kernel is faster
WINOGRAD_MULTIPLIED_VECTORS = 2  # of output channels at a time; their weights lie together
_WINOGRAD_OUTPUT_COST = 250  # cycles for the output transform of a tile and 16 channels
_WINOGRAD_INPUT_COST = 12  # cycles for the input transform of a tile and one channel


@dataclass(frozen=True)
class WinogradLayout:
    """A 3x3 convolution by F(4x4, 3x3): blocks of tiles by panels of one chunk."""

    inputs: int
    outputs: int
    parts: int  # of the input channels, whose sums are recovered one by one
    rows: int  # of tiles
    columns: int
    block: int  # tiles that a task transforms and multiplies
    register_block: int  # tiles whose sums are in registers together

    @property
    def chunk(self) -> Chunk:
        """The chunk of the first panel; a panel's parameters start where its channels do."""
        lanes = INSTRUCTION_SETS["x86-64-vnni"].lanes
        return Chunk(0, _WINOGRAD_VECTORS * lanes, _WINOGRAD_VECTORS, lanes, 0)

    @property
    def weights(self) -> Parameter:
        """[panel][part][point][pair of inputs][vector][lane][2]."""
        return Parameter("weights", "int16", 36 * self.inputs * self.outputs)


def winograd_layout(kernel: ConvolutionKernel) -> WinogradLayout:
    """The layout of a 3x3 kernel; ``uses_winograd`` says whether it is one to use."""
    rows, columns = -(-kernel.output.height // WINOGRAD_TILE), -(-kernel.output.width // WINOGRAD_TILE)
    block = _largest_divisor(rows * columns, _WINOGRAD_BLOCK)
    return WinogradLayout(
        inputs=kernel.input.channels,
        outputs=kernel.output.channels,
        parts=_winograd_parts(kernel.input.channels),
        rows=rows,
        columns=columns,
        block=block,
        register_block=_largest_divisor(block, _WINOGRAD_REGISTER_BLOCK),
    )


def _largest_divisor(number: int, most: int) -> int:
    return next(size for size in range(most, 0, -1) if number % size == 0)


def _winograd_parts(inputs: int) -> int:
    """Centred inputs and weights are at most 128 in magnitude, so up to 227 channels sum up to less than 2^25."""
    needed = 9 * inputs * 128 * 128 // _WINOGRAD_RANGE + 1
    return next(parts for parts in range(needed, inputs + 1) if inputs % (2 * parts) == 0)


def uses_winograd(kernel: ConvolutionKernel, target: str) -> bool:
    """Whether ``templates.winograd`` can compute the kernel and is predicted to be faster than ``templates.matrix``."""
    return target == "x86-64-vnni" and _suits_winograd(kernel) and _is_faster_by_winograd(kernel)


def _suits_winograd(kernel: ConvolutionKernel) -> bool:
    inputs, outputs = kernel.input.channels, kernel.output.channels
    is_3x3 = kernel.kernel == (3, 3) and kernel.stride == kernel.dilation == (1, 1) and kernel.groups == 1
    weight_bytes = 2 * (WINOGRAD_TILE + 2) ** 2 * inputs * outputs
    return is_3x3 and inputs % 32 == outputs % 64 == 0 and weight_bytes <= _WINOGRAD_WEIGHT_BYTES


def _is_faster_by_winograd(kernel: ConvolutionKernel) -> bool:
    """Per input channel and 16 outputs, the direct kernel takes 9 / 4 cycles a pixel, Winograd 36 / 2 a tile, and its transforms."""
    layout = winograd_layout(kernel)
    vectors = layout.outputs // layout.chunk.lanes
    direct = 9 * layout.inputs * kernel.output.height * kernel.output.width // 4
    tile = 18 * layout.inputs + layout.parts * _WINOGRAD_OUTPUT_COST + _WINOGRAD_INPUT_COST * layout.inputs // vectors
    return layout.block >= _WINOGRAD_SMALLEST_BLOCK and tile * layout.rows * layout.columns < direct


def depthwise_chunks(channels: int, lanes: int) -> tuple[Chunk, ...]:
    """Chunks of four vectors: full ones, then halves and quarters of a vector for the channels that are left."""
    result: list[Chunk] = []
    first = 0
    while first < channels:
        left = channels - first
        width = next((size for size in (lanes, lanes // 2, 4) if size * 4 <= left and size >= 4), 4)
        result.append(Chunk(first, min(left, 4 * width), 4, width, first))
        first += 4 * width
    return tuple(result)
