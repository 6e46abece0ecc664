"""Weights as planes of bits, in the layout of ``templates.planes_layout``. Runs at load time too: numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.tvm.packing_matrix import Integers, in_runs, panels
from qcompiler.backends.tvm.templates.planes_layout import WORD, PlanesLayout


def plane_weights(layout: PlanesLayout, vectors: int, weight: NDArray[np.int8], channels: Integers) -> NDArray[np.int32]:
    """[panel][plane][kernel row][run][step][vector][lane]: words of the bits of ``(w - weight_low) / weight_step`` of 32 inputs each.

    The highest plane comes first, in the order of reading; the first input is the lowest bit. Inputs that only fill a word, and channels
    that only fill a vector, have no bits.
    """
    matrix, lanes = layout.matrix, layout.matrix.instructions.lanes
    numbers = ((weight.astype(np.int16) - layout.bits.weight_low) // layout.bits.weight_step).astype(np.int8)
    filling = matrix.inputs - weight.shape[1]
    dense = in_runs(matrix, np.pad(numbers, ((0, 0), (0, filling), (0, 0), (0, 0))))
    rows = np.concatenate([dense, np.zeros((1, dense.shape[1]), np.int8)])[channels]
    planes = [_words(rows >> plane & 1).reshape(-1, lanes, matrix.depth // WORD) for plane in reversed(range(layout.bits.weights))]
    parts = []
    for _, first, count in panels(matrix, vectors):
        start = first // lanes
        parts += [plane[start : start + -(-count // lanes)].transpose(2, 0, 1).reshape(-1) for plane in planes]
    return np.ascontiguousarray(np.concatenate(parts))


def _words(bits: NDArray[np.int8]) -> NDArray[np.int32]:
    """Of each row, 32 bits at a time."""
    return np.packbits(bits.astype(np.uint8), axis=1, bitorder="little").view("<i4").astype(np.int32, copy=False)
