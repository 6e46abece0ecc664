"""Weights of a convolution as a matrix product: runs of inputs, panels of output channels. Runs at load time too: numpy only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.tvm.kernels import ConvolutionKernel
from qcompiler.backends.tvm.templates.layout import Chunk
from qcompiler.backends.tvm.templates.matrix_layout import MatrixLayout, matrix_layout, panel_vectors

Array = NDArray[np.generic]
Integers = NDArray[np.int64]


def panel_chunks(layout: MatrixLayout, vectors: int) -> Iterator[Chunk]:
    """The chunks of all panels of all groups, with absolute channels and offsets."""
    for group, first, channels in panels(layout, vectors):
        for chunk in layout.panel(channels):
            channel, offset = group * layout.outputs + first, group * layout.vectors * layout.instructions.lanes + first
            yield replace(chunk, first=channel + chunk.first, offset=offset + chunk.offset)


def panels(layout: MatrixLayout, vectors: int) -> Iterator[tuple[int, int, int]]:
    """Group, first channel in it and number of channels of each panel."""
    size = vectors * layout.instructions.lanes
    for group in range(layout.groups):
        for first in range(0, layout.outputs, size):
            yield group, first, min(size, layout.outputs - first)


def channel_order(chunks: tuple[Chunk, ...], order: str) -> Integers:
    """Channel of each entry of a packed array; -1 where there is none."""
    parts = []
    for chunk in chunks:
        relative = chunk.word_order if order == "word" else chunk.accumulator_order
        parts.append(np.where(relative < chunk.valid, chunk.first + relative, -1))
    return np.concatenate(parts)


def matrix_weights(layout: MatrixLayout, vectors: int, weight: NDArray[np.int8], channels: Integers) -> Array:
    """[panel][kernel row][run][step][vector][lane][4]; AVX2 splits the four into even and odd, AMX gathers steps to tiles of 16 rows.

    Where inputs have 16 bits, 2 of them in place of 4. Weights of fewer bits: [steps whose weights share memory] in place of step, and
    the vectors of their dot products, the first one lowest, in one.
    """
    dense = in_runs(layout, weight)
    rows = np.concatenate([dense, np.zeros((1, dense.shape[1]), np.int8)])[channels]
    lanes, together = layout.instructions.lanes, min(layout.instructions.granule, 4)
    by_vector = rows.reshape(-1, lanes, layout.depth // together, together)
    parts = []
    for group, first, count in panels(layout, vectors):
        start = group * layout.vectors + first // lanes
        ordered = _instruction_order(layout, by_vector[start : start + -(-count // lanes)])
        parts.append((ordered if layout.planes == 1 else _joined_planes(layout, ordered)).reshape(-1))
    return np.ascontiguousarray(np.concatenate(parts).astype(layout.weights.dtype))


def _instruction_order(layout: MatrixLayout, panel: NDArray[np.int8]) -> NDArray[np.int8]:
    vectors, lanes, steps, together = panel.shape
    if layout.instructions.products == 2:
        return panel.reshape(vectors, lanes, steps, 2, 2).transpose(2, 0, 4, 1, 3)
    if layout.instructions.name == "x86-64-amx":
        return panel.reshape(vectors, lanes, steps // 16, 16, 4).transpose(2, 0, 3, 1, 4)
    return panel.transpose(2, 0, 1, 3)


def _joined_planes(layout: MatrixLayout, ordered: NDArray[np.int8]) -> Array:
    """[step][vector][...] to [steps together][vector][...]: dot product p of a round in bits ``p * stored_bits`` and up.

    The offset of a weight is its highest bit: adding it turns that over.
    """
    vectors, products, planes = ordered.shape[1], layout.instructions.products, layout.planes
    rounds = ordered.reshape(-1, layout.steps_together, vectors, products, ordered[0, 0].size // products)
    by_plane = rounds.transpose(0, 2, 1, 3, 4).reshape(len(rounds), vectors, planes, -1)
    unsigned = (by_plane.astype(np.uint16) & ((1 << layout.stored_bits) - 1)) ^ layout.weight_offset
    places = np.arange(planes, dtype=np.uint16)[:, None] * layout.stored_bits
    joined: Array = np.bitwise_or.reduce(unsigned << places, axis=2).astype(f"uint{layout.instructions.weight_bits}")
    return joined.view(layout.weights.dtype)


def group_factors(kernel: ConvolutionKernel, target: str, chunks: tuple[Chunk, ...], factors: Array) -> Array:
    """[panel][group of inputs][vector][lane]; those of channels that do not exist are 0."""
    layout = matrix_layout(kernel, target)
    padded = np.concatenate([np.asarray(factors, np.int8), np.zeros((1, layout.weight_groups), np.int8)])
    by_lane = padded[channel_order(chunks, "accumulator")].reshape(-1, layout.instructions.lanes, layout.weight_groups)
    vectors = panel_vectors(kernel, layout)
    parts = [by_lane[first : first + vectors].transpose(2, 0, 1).reshape(-1) for first in range(0, len(by_lane), vectors)]
    return np.ascontiguousarray(np.concatenate(parts))


def in_runs(layout: MatrixLayout, weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """[output channel, inner dimension with padding], groups merged."""
    outputs, inputs, height, width = weight.shape
    merged = layout.inputs // inputs
    dense = np.zeros((layout.groups, merged, layout.outputs // merged, height, width, merged, inputs), np.int8)
    by_group = weight.reshape(layout.groups, merged, -1, inputs, height, width).transpose(0, 1, 2, 4, 5, 3)
    for member in range(merged):
        dense[:, member, :, :, :, member] = by_group[:, member]
    runs = dense.reshape(outputs, height * layout.runs, layout.run_length)
    padding = layout.steps * layout.granule - layout.run_length
    return np.pad(runs, ((0, 0), (0, 0), (0, padding))).reshape(outputs, layout.depth)
