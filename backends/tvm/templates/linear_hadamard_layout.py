"""When a linear layer and the transform of its rows are one kernel, and how its rows are cut into blocks (no TVM here).

One kernel saves the way of the layer's result to memory and back, its place there, and the start of a parallel loop; it does the same
arithmetic. What it may cost depends on the length of a block. Weights are read once for each block, and threads share blocks, not tiles.
Hence blocks of equal length, a multiple of ``BLOCKS`` of them: one, two, four or eight threads have the same to do. Where that does not
come out even, rows are computed twice. ``docs/rotation.md`` has what was measured.
"""

from __future__ import annotations

from qcompiler.backends.tvm.kernels import ITEM_SIZE, ConvolutionKernel
from qcompiler.backends.tvm.templates.matrix_layout import CACHED_WEIGHTS

BLOCKS = 8
SCRATCH_BYTES = 1 << 17  # of a block of rows on the stack: a part of the second-level cache, which holds its inputs and weights as well
# Rows of a block from which on the one kernel was measured to be no slower than two. AVX2 was slower, AMX could not be measured.
SHORTEST_BLOCK = {"x86-64-vnni": 8}
REPEATED, REPEATED_CACHED = 100, 16  # of so many rows one may be computed twice; the latter where the second-level cache holds the weights


def block_rows(layer: ConvolutionKernel, fewest: int, target: str) -> int | None:
    """Rows of a block, None where two kernels are as fast. ``fewest``: rows of the layer in its shortest call."""
    most = SCRATCH_BYTES // (layer.output.channels * ITEM_SIZE[layer.output.dtype])
    shortest = SHORTEST_BLOCK.get(target)
    if shortest is None or most < shortest:
        return None
    allowed = fewest // (REPEATED if layer.input.channels * layer.output.channels > CACHED_WEIGHTS else REPEATED_CACHED)
    first = BLOCKS * -(-fewest // (BLOCKS * most))
    lengths = ((blocks, -(-fewest // blocks)) for blocks in range(first, fewest + 1, BLOCKS))
    return next((rows for blocks, rows in lengths if rows >= shortest and blocks * rows - fewest <= allowed), None)
