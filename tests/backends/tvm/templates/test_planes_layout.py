"""Which numbers are planes of bits, which layers count them, and what is packed of their weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.backends.tvm import packing
from qcompiler.backends.tvm.kernels import Activation, BitPlanes, ConvolutionKernel
from qcompiler.backends.tvm.packing_matrix import channel_order, panel_chunks
from qcompiler.backends.tvm.templates.choice import weight_storage
from qcompiler.backends.tvm.templates.matrix_layout import panel_vectors
from qcompiler.backends.tvm.templates.planes_layout import WORD, bit_planes, planes_layout, suits_planes

TARGETS = ("x86-64-v3", "x86-64-vnni", "x86-64-amx")
BINARY, TERNARY = BitPlanes(1, -1, 2, 1, 0), BitPlanes(2, -1, 1, 2, 0)


def linear(rows: int, inputs: int, outputs: int, planes: BitPlanes | None = None) -> ConvolutionKernel:
    maps = Activation(1, rows, inputs, "uint8"), Activation(1, rows, outputs, "int32")
    return ConvolutionKernel(*maps, (1, 1), (1, 1), (0, 0), (1, 1), 1, None, bit_planes=planes)


def convolution(kernel: int, size: int, channels: int, groups: int = 1) -> ConvolutionKernel:
    padding = kernel // 2
    maps = Activation(size, size, channels, "uint8", (padding,) * 4), Activation(size, size, channels, "int32")
    return ConvolutionKernel(*maps, (kernel, kernel), (1, 1), (padding, padding), (1, 1), groups, None)


@pytest.mark.parametrize(
    ("weights", "low", "high", "planes"),
    [
        ((-1, 1), 0, 1, BINARY),
        ((-1, 0, 1), 0, 3, TERNARY),
        ((-2, 1), 0, 2, BitPlanes(1, -2, 3, 2, 0)),
        ((0, 1), -2, 1, BitPlanes(1, 0, 1, 2, -2)),
        ((-3, -1, 1, 3), 5, 6, BitPlanes(2, -3, 2, 1, 5)),
        ((7,), 0, 255, BitPlanes(1, 7, 1, 8, 0)),
        ((-7, 7), 0, 1, BitPlanes(1, -7, 14, 1, 0)),
        ((-4, 3), 0, 1, BitPlanes(1, -4, 7, 1, 0)),
        ((-4, 1, 3, 4), 0, 1, None),  # nine numbers
        ((-100, 100), 0, 1, None),
        ((-1, 1), 0, 256, None),
        ((-1, 1), 3, 3, None),
    ],
)
def test_planes_of_what_occurs(weights: tuple[int, ...], low: int, high: int, planes: BitPlanes | None) -> None:
    assert bit_planes(np.array([weights, weights[::-1]], np.int8), low, high) == planes


@given(st.data())
def test_packed_words_give_the_products(data: st.DataObject) -> None:
    """What a kernel does with the words of a linear layer of one row, in numpy: every weight once, in its place, and nothing else."""
    target, weights = data.draw(st.sampled_from(TARGETS)), data.draw(st.integers(1, 3))
    inputs, outputs = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 300))
    planes = BitPlanes(weights, data.draw(st.integers(-3, 1)), data.draw(st.integers(1, 2)), 1, 0)
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    kernel = linear(1, inputs, outputs, planes)
    weight = planes.weight_low + planes.weight_step * random.integers(0, 1 << weights, (outputs, inputs, 1, 1))
    bits = random.integers(0, 2, inputs)
    words, bias = packing.pack(kernel, target, {"weight": weight.astype(np.int8), "bias": np.arange(outputs, dtype=np.int32)})
    layout = planes_layout(kernel, target)
    sums = planes.weight_step * _counted(kernel, target, words.view(np.uint32), bits) + planes.weight_low * bits.sum() + bias
    channels = channel_order(tuple(panel_chunks(layout.matrix, panel_vectors(kernel, layout.matrix))), "accumulator")
    expected = np.arange(outputs) + weight[:, :, 0, 0] @ bits
    assert np.array_equal(sums[channels >= 0], expected[channels[channels >= 0]])


def _counted(kernel: ConvolutionKernel, target: str, words: Any, bits: Any) -> Any:
    """``sum over i of 2^i popcount(v_i & u)`` of each lane."""
    layout = planes_layout(kernel, target)
    matrix, lanes = layout.matrix, layout.matrix.instructions.lanes
    steps = matrix.depth // WORD
    of_inputs = np.packbits(np.pad(bits, (0, matrix.depth - bits.size)).astype(np.uint8), bitorder="little").view("<u4")
    size, at, sums = panel_vectors(kernel, matrix), 0, []
    for first in range(0, matrix.vectors, size):
        vectors = min(size, matrix.vectors - first)
        count = layout.bits.weights * steps * vectors * lanes
        panel = words[at : at + count].reshape(layout.bits.weights, steps, vectors * lanes)
        places = 1 << np.arange(layout.bits.weights)[::-1, None, None]
        sums.append((np.bitwise_count(panel & of_inputs[:, None]).astype(np.int64) * places).sum((0, 1)))
        at += count
    assert at == words.size
    return np.concatenate(sums)


@pytest.mark.parametrize("target", TARGETS)
def test_counted_only_where_it_is_faster(target: str) -> None:
    def is_counted(kernel: ConvolutionKernel, planes: BitPlanes) -> bool:
        return weight_storage(kernel, target, 2, 0, planes).bit_planes == planes

    row, rows, image = linear(1, 4096, 4096), linear(64, 1024, 1024), convolution(3, 14, 256)
    assert is_counted(row, BINARY)  # reads half of what weights of two bits take
    assert is_counted(rows, BINARY) == is_counted(image, BINARY) == (target != "x86-64-amx")  # whose tiles make more products
    assert is_counted(rows, TERNARY) == (target != "x86-64-amx")
    assert not is_counted(rows, replace(BINARY, inputs=8))
    assert not is_counted(convolution(1, 56, 64), TERNARY)  # too few inputs for what is around them
    assert is_counted(row, TERNARY) == (target == "x86-64-v3")  # whose unpacking takes longer than reading
    assert not is_counted(convolution(3, 14, 3), BINARY)  # words of three inputs


@pytest.mark.parametrize("target", TARGETS)
def test_counted_only_what_can_be(target: str) -> None:
    assert suits_planes(replace(convolution(3, 14, 64), bit_planes=BINARY), target)
    assert not suits_planes(replace(convolution(3, 14, 64, groups=2), bit_planes=BINARY), target)
    assert not suits_planes(replace(convolution(3, 224, 64), bit_planes=replace(BINARY, inputs=8)), target)  # more than a stack should hold
    assert not suits_planes(linear(1, 250000, 16, BitPlanes(3, -50, 14, 8, 0)), target)  # sums could leave int32
    grouped = weight_storage(linear(1, 4096, 4096), target, 2, 128, BINARY)
    assert grouped.bit_planes is None and grouped.weight_group == 128
