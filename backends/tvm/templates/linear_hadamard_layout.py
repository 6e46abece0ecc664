"""When a linear layer and the transform of its rows are one kernel, and how its rows are cut into blocks (no TVM here).

One kernel saves the way of the layer's result to memory and back, and its place there; it does the same arithmetic. What it may cost is
decided by the length of a block: weights are read again for each block, and threads share blocks, not tiles. Hence blocks of equal length
whose number is a multiple of ``BLOCKS``: one, two, four or eight threads have the same to do. What was measured on each target is in
``docs/rotation.md``.
"""

from __future__ import annotations

from qcompiler.backends.tvm.kernels import ITEM_SIZE, Activation

BLOCKS = 8
SCRATCH_BYTES = 1 << 18  # of a block of rows on the stack: half of a second-level cache, whose rest is the panel of weights and the input
# Rows of a block from which on the one kernel was measured to be no slower than two. Of AMX there is no measurement.
SHORTEST_BLOCK = {"x86-64-v3": 16, "x86-64-vnni": 8}


def block_rows(between: Activation, fewest: int, target: str) -> int | None:
    """Rows of a block, None where two kernels are faster. ``between``: what the layer gives; ``fewest``: rows that a call may have."""
    most = SCRATCH_BYTES // (between.channels * ITEM_SIZE[between.dtype])
    if target not in SHORTEST_BLOCK or most < SHORTEST_BLOCK[target]:
        return None
    blocks = BLOCKS * -(-fewest // (BLOCKS * most))
    rows = -(-fewest // blocks)
    return rows if rows >= SHORTEST_BLOCK[target] else None
