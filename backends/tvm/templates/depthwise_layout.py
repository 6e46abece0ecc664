"""How a depthwise convolution is cut into tiles; shared by ``depthwise`` and ``packing`` (no TVM here)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcompiler.backends.tvm.kernels import ConvolutionKernel
from qcompiler.backends.tvm.templates.layout import Chunk, InstructionSet, Parameter, instruction_set

STRIP_BYTES = 8192  # of interleaved inputs


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
