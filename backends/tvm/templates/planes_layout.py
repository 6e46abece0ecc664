"""How a layer becomes products of bit planes; shared by ``planes`` and ``packing_planes`` (no TVM here).

With ``w = weight_low + weight_step * v`` and ``x = input_low + u``, v and u unsigned numbers whose bits are v_i and u_j, a sum is::

    sum w x = weight_step * sum over i, j of 2^(i + j) popcount(v_i & u_j) + weight_low * sum u + input_low * sum w

Its last term is a constant, which goes into the bias; ``sum u`` of a window is a number for each pixel, 0 times it where weight_low is 0.
Binary weights in {-1, 1} are one plane (``2 v - 1``), ternary ones two. A plane has one bit of 32 input channels of a pixel in a word, so
that channels are padded to a multiple of 32, with weights of 0 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.tvm.kernels import Activation, BitPlanes, ConvolutionKernel
from qcompiler.backends.tvm.templates.layout import PLANE_INSTRUCTION_SETS, Parameter, instruction_set, reads_words
from qcompiler.backends.tvm.templates.matrix_layout import (
    MatrixLayout,
    arithmetic_cycles,
    choose_tile,
    layout_with,
    output_map,
    reading_cycles,
)

WORD = 32  # inputs
LONGEST_COUNT = 31  # steps: sums of 8 bits at most stay in a byte
MOST_WEIGHT_PLANES = 3
MOST_INPUT_PLANES = 8
_SCRATCH_BYTES = 1 << 19  # of stack that the planes of a map may take
_LARGEST_SUM = 2**31 - 1
# Cycles, measured.
_CHANNEL = 0.25  # that an output takes besides its products and its epilogue
_LOOP = 8.0  # of a run of a plane of weights
_FLUSH = 1.6  # to add up a vector of bytes
_WORD = 2.0  # to read 32 inputs
_PLANE_WORD = 3.0  # to make a word of a plane of them
_READING = 1.2  # times what others need: words are used up faster than memory gives them, and the processor prefetches no further


@dataclass(frozen=True)
class PlanesLayout:
    """``matrix`` is the layout of the same layer with channels padded to whole words, ``words`` how one plane of its input lies."""

    matrix: MatrixLayout
    bits: BitPlanes
    words: Activation

    @property
    def weights(self) -> Parameter:
        """[panel][plane][kernel row][run][step][vector][lane], words of 32 inputs."""
        return Parameter("weights", "int32", self.bits.weights * self.matrix.channels * self.matrix.depth // WORD)

    @property
    def counts_bytes(self) -> bool:
        """AVX2 looks up the bits of half a byte, and adds up bytes."""
        return self.matrix.instructions.lanes == 8

    @property
    def parts(self) -> int:
        """Words in the place of one: AVX2 takes the lower and the upper halves of its bytes apart."""
        return 2 if self.counts_bytes else 1

    @property
    def flush_depth(self) -> int:
        """The loop around which bytes are added up: 0 over kernel rows, 1 over runs, 2 over steps, 3 over parts of these."""
        matrix = self.matrix
        lengths = (matrix.kernel_rows * matrix.runs * matrix.steps, matrix.runs * matrix.steps, matrix.steps)
        return next((depth for depth, length in enumerate(lengths) if length <= LONGEST_COUNT), len(lengths))

    @property
    def flushes(self) -> int:
        """How often bytes are added up for a plane of weights."""
        matrix = self.matrix
        rounds = (1, matrix.kernel_rows, matrix.kernel_rows * matrix.runs)
        depth = self.flush_depth
        return (rounds[depth] if depth < len(rounds) else rounds[-1] * -(-matrix.steps // LONGEST_COUNT)) if self.counts_bytes else 0


def planes_layout(kernel: ConvolutionKernel, target: str) -> PlanesLayout:
    """The layout of a kernel that has ``bit_planes``."""
    assert kernel.bit_planes is not None  # the callers' choice
    instructions = PLANE_INSTRUCTION_SETS[instruction_set(target).name]
    words = -(-kernel.input.channels // WORD)
    padded = replace(kernel, input=replace(kernel.input, channels=words * WORD, pitch=None))
    planes = kernel.bit_planes.inputs
    for_all = replace(instructions, product_cost=planes * instructions.product_cost)
    layout = PlanesLayout(replace(layout_with(padded, for_all), sums=planes), kernel.bit_planes, kernel.input)
    return replace(layout, words=replace(padded.input, channels=words * layout.parts, dtype="int32"))


def bit_planes(weight: NDArray[np.int8], low: int, high: int) -> BitPlanes | None:
    """The planes of a weight and of inputs in [low, high]; None where they are too many to gain from."""
    inputs = (high - low).bit_length()
    least, most = int(weight.min(initial=0)), int(weight.max(initial=0))
    if not 1 <= inputs <= MOST_INPUT_PLANES or (most - least).bit_length() > MOST_WEIGHT_PLANES + 1:
        return None
    occurring = [number for number in range(least, most + 1) if (weight == number).any()]
    first = occurring[0] if occurring else 0
    step = max(1, int(np.gcd.reduce([number - first for number in occurring])))
    planes = max(1, ((max(occurring, default=0) - first) // step).bit_length())
    return BitPlanes(planes, first, step, inputs, low) if planes <= MOST_WEIGHT_PLANES else None


def suits_planes(kernel: ConvolutionKernel, target: str) -> bool:
    """Whether ``templates.planes`` can compute a kernel that has ``bit_planes``."""
    if kernel.bit_planes is None or kernel.groups != 1 or reads_words(kernel) or kernel.weight_group:
        return False
    layout = planes_layout(kernel, target)
    bits, words = layout.bits, layout.words
    scratch = 4 * (bits.inputs * words.elements + words.elements // words.channels)
    largest_weight = max(abs(bits.weight_low), bits.weight_step * ((1 << bits.weights) - 1))
    return scratch <= _SCRATCH_BYTES and layout.matrix.depth * largest_weight * ((1 << bits.inputs) - 1) <= _LARGEST_SUM


def planes_cycles(kernel: ConvolutionKernel, target: str) -> float:
    """Predicted time of one core, as ``matrix_layout.cycles``: products of all pairs of planes, what is around them, making planes."""
    layout = planes_layout(kernel, target)
    matrix, bits, words = layout.matrix, layout.bits, layout.words
    height, width = output_map(kernel)
    tile = choose_tile(matrix, height, width)
    tiles = -(-height // tile.rows) * -(-width // tile.columns) * -(-matrix.vectors // tile.vectors)
    loops = tiles * bits.weights * matrix.kernel_rows * matrix.runs * _LOOP
    flushes = height * width * matrix.vectors * bits.weights * bits.inputs * layout.flushes * _FLUSH
    outputs = height * width * matrix.vectors * matrix.instructions.lanes * _CHANNEL
    making = words.elements // layout.parts * (_WORD + _PLANE_WORD * bits.inputs)
    products = bits.weights * arithmetic_cycles(matrix, height, width)
    size = layout.weights.size * np.dtype(layout.weights.dtype).itemsize
    return max(products + loops + flushes + outputs + making, _READING * reading_cycles(matrix, size))
