"""How a 3x3 convolution is cut into Winograd's tiles, and whether it should be; shared by ``winograd`` and ``packing`` (no TVM here)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcompiler.backends.tvm.kernels import ConvolutionKernel
from qcompiler.backends.tvm.templates.layout import INSTRUCTION_SETS, Chunk, Parameter

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
    """Per input channel and 16 outputs, the direct kernel takes 9 / 4 cycles a pixel."""
    layout = winograd_layout(kernel)
    direct = 9 * layout.inputs * kernel.output.height * kernel.output.width // 4 * _vectors(layout)
    return layout.block >= _WINOGRAD_SMALLEST_BLOCK and winograd_cycles(kernel) < direct


def winograd_cycles(kernel: ConvolutionKernel) -> float:
    """Predicted time of one core: per input channel and 16 outputs 36 / 2 cycles a tile, and the transforms."""
    layout = winograd_layout(kernel)
    tile = 18 * layout.inputs + layout.parts * _WINOGRAD_OUTPUT_COST + _WINOGRAD_INPUT_COST * layout.inputs // _vectors(layout)
    return tile * layout.rows * layout.columns * _vectors(layout)


def _vectors(layout: WinogradLayout) -> int:
    return layout.outputs // layout.chunk.lanes
