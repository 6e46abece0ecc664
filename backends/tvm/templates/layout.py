"""What every template of convolutions and linear layers shares with ``packing``: instruction sets, parameters, chunks (no TVM here).

Output channels are cut into *chunks* of 1, 2 or 4 accumulator vectors that are stored together. Inside a chunk the channels are
permuted so that the saturating packs, which work in 128-bit lanes, bring them into their natural order for free
(``Chunk.accumulator_order``). How a convolution is cut into register tiles: ``matrix_layout``, ``planes_layout``, ``depthwise_layout``,
``winograd_layout``; which of them a kernel has: ``choice``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.tvm import sharing
from qcompiler.backends.tvm.kernels import ConvolutionKernel, ResidualAdd
from qcompiler.errors import TargetError

PARALLEL_ELEMENTS = 32768  # read by a kernel: with less, waking a thread costs more than it saves
LATENCY = 4  # cycles until an accumulator can be added to again
WORDS_OF_A_STEP = 2


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
    unpacking_cost: float = 1.0  # of an instruction that unpacks weights, in those


INSTRUCTION_SETS = {
    "x86-64-v3": InstructionSet("x86-64-v3", 8, 4, 12, False, 3, 4, 3, 2, 8, 16, 2, 3.6),
    "x86-64-vnni": InstructionSet("x86-64-vnni", 16, 4, 31, True, 1, 1, 0, 4, 24, 8, 1, unpacking_cost=0.5),
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
SMALL_BYTES = InstructionSet("x86-64-v3", 8, 4, 9, False, 2, 3, 0, 0, 0, 8, 1, 2.5)
PACKED_INSTRUCTION_SETS = {
    "x86-64-v3": SMALL_BYTES,
    "x86-64-vnni": INSTRUCTION_SETS["x86-64-vnni"],
    "x86-64-amx": INSTRUCTION_SETS["x86-64-vnni"],
}
# For planes of bits, 32 inputs to a word. AVX2 counts bytes, whose sums take its registers.
_PLANES = InstructionSet("x86-64-vnni", 16, 32, 30, True, 1, 1.5, 0, 0, 0, 1, 1)
PLANE_INSTRUCTION_SETS = {
    "x86-64-v3": InstructionSet("x86-64-v3", 8, 32, 8, False, 2, 6, 1, 0, 0, 1, 1, 3.5),
    "x86-64-vnni": _PLANES,
    "x86-64-amx": _PLANES,
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
