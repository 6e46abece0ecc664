"""How products of two activations are cut into register tiles, and what stack their kernels take (no TVM here)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qcompiler.backends.tvm.kernels import AttentionKernel, MatrixProductKernel, Size, maximum
from qcompiler.backends.tvm.templates.layout import LATENCY, instruction_set

SCRATCH_BYTES = 1 << 19  # of stack that one kernel may use
TILE_ROWS = 16
BLOCK_ROWS = 64  # queries of a block of attention, at most ...
BLOCK_BYTES = 64 << 10  # ... and their scores and exponentials: small beside the second-level cache
STEP_ROWS = 8  # of softmax: several groups of rows, whose reductions do not wait for each other
LONGEST_ROW = 1 << 14  # keys: twice their exponentials sum to less than 2^31


@dataclass(frozen=True)
class Scheme:
    """Which instructions multiply: vpdpbusd (``bytes``), vpmaddwd or vpdpwssd (``words``), AMX (``tiles``)."""

    kind: Literal["bytes", "words", "tiles"]
    lanes: int  # int32 lanes of a vector
    widest: int  # vectors of a chunk of columns
    sums: int  # registers

    @property
    def element(self) -> str:
        """Of packed operands."""
        return "int16" if self.kind == "words" else "int8"

    @property
    def item_size(self) -> int:
        """Bytes of one."""
        return 2 if self.kind == "words" else 1

    @property
    def group(self) -> int:
        """Elements of k that one lane takes at a time."""
        return 2 if self.kind == "words" else 4

    @property
    def cells(self) -> int:
        """Packed elements of a vector."""
        return self.lanes * self.group

    def padded(self, length: Size) -> int:
        """Elements of k with the padding of a packed operand: whole tiles, and whole blocks of the transposition."""
        block = self.cells
        return -(-maximum(length) // block) * block


def scheme(target: str, left: str) -> Scheme:
    """How to multiply a left operand of this type by 8-bit numbers. Raises TargetError for a target without templates."""
    lanes = instruction_set(target).lanes
    if target == "x86-64-v3":
        return Scheme("words", lanes, 2, 12)
    if left == "int16":
        return Scheme("words", lanes, 4, 24)
    return Scheme("tiles" if target == "x86-64-amx" else "bytes", lanes, 4, 24)


def row_tile(how: Scheme, rows: Size, vectors: int) -> int:
    """Rows of a register tile over chunks of so many vectors: the least cycles for all rows, the last tile counted whole."""
    if how.kind == "tiles":
        return TILE_ROWS

    def cycles(count: int) -> int:
        return -(-maximum(rows) // count) * (max(count * vectors, count + vectors, LATENCY) + 1)

    return min(range(1, how.sums // vectors + 1), key=lambda count: (cycles(count), -count))


def left_slots(how: Scheme) -> int:
    """Register tiles for which rows of the left operand are kept at once: AMX multiplies one while the sums of another are rounded."""
    return 2 if how.kind == "tiles" else 1


def block_rows(how: Scheme, keys: Size, tile: int = 1) -> int:
    """Queries of a block of attention: many, so that their tiles and steps overlap, in whole tiles, and in steps that these fill well."""
    most = min(BLOCK_ROWS, BLOCK_BYTES // (2 * how.item_size * how.padded(keys)))

    def used(count: int) -> float:
        return count * tile / (-(-count * tile // STEP_ROWS) * STEP_ROWS)

    return tile * max(range(1, max(1, most // tile) + 1), key=lambda count: (used(count), count))


def fits_stack(kernel: MatrixProductKernel | AttentionKernel, target: str) -> bool:
    """Whether the scratch memory of a kernel stays within what a thread's stack is asked for."""
    size = _product_bytes(kernel, target) if isinstance(kernel, MatrixProductKernel) else _attention_bytes(kernel, target)
    return size <= SCRATCH_BYTES


def _product_bytes(kernel: MatrixProductKernel, target: str) -> int:
    how = scheme(target, kernel.a.dtype)
    return how.padded(kernel.length) * how.item_size * (how.widest * how.lanes + max(left_slots(how) * TILE_ROWS, how.sums))


def _attention_bytes(kernel: AttentionKernel, target: str) -> int:
    how = scheme(target, kernel.q.dtype)
    keys, depth = how.padded(kernel.keys), how.padded(kernel.depth)
    packed = keys * depth + keys * _whole_vectors(kernel.value_depth, how)
    rows = 2 * block_rows(how, kernel.keys)
    return how.item_size * (packed + rows * (depth + keys)) + rows * keys + 2 * keys


def _whole_vectors(columns: int, how: Scheme) -> int:
    return -(-columns // how.lanes) * how.lanes
