"""Products of bit planes: equal to the reference for every shape, number of planes and epilogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qcompiler.backends.tvm.kernels import Activation, BitPlanes, ConvolutionKernel, Requantization, ResidualAdd
from qcompiler.backends.tvm.templates.planes_layout import planes_layout

Check = Callable[..., None]
NARROW = Requantization("narrow", True, -11, -100, 127)
HIGH = Requantization("high", True, 3, 0, 255)
EXACT = Requantization("exact64", False, 5, -(2**20), 2**20)

BINARY = BitPlanes(1, -1, 2, 1, 0)
TERNARY = BitPlanes(2, -1, 1, 2, 0)
ZERO_ONE = BitPlanes(1, 0, 1, 8, -128)


def linear(rows: int, inputs: int, outputs: int, planes: BitPlanes, epilogue: Any = None, output: Any = "int32") -> ConvolutionKernel:
    maps = Activation(1, rows, inputs, _dtype(planes)), Activation(1, rows, outputs, output)
    return ConvolutionKernel(*maps, (1, 1), (1, 1), (0, 0), (1, 1), 1, epilogue, bit_planes=planes)


def convolution(
    kernel: int,
    channels: tuple[int, int],
    planes: BitPlanes,
    size: tuple[int, int] = (7, 9),
    stride: int = 1,
    dilation: int = 1,
    epilogue: Any = None,
    output: Any = "int32",
    extra_halo: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> ConvolutionKernel:
    padding = kernel // 2 * dilation
    height, width = ((extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for extent in size)
    top, bottom, left, right = (padding + extra for extra in extra_halo)
    maps = Activation(*size, channels[0], _dtype(planes), (top, bottom, left, right)), Activation(height, width, channels[1], output)
    geometry = (kernel, kernel), (stride, stride), (padding, padding), (dilation, dilation)
    return ConvolutionKernel(*maps, *geometry, 1, epilogue, bit_planes=planes)


def with_pitch(kernel: ConvolutionKernel) -> ConvolutionKernel:
    return replace(kernel, input=replace(kernel.input, pitch=kernel.input.channels + 13), output=replace(kernel.output, pitch=24))


def _dtype(planes: BitPlanes) -> Any:
    return "int8" if planes.input_low < 0 else "uint8"


CASES = {
    "1 by 1, a row, tails of inputs and channels": linear(1, 131, 150, BINARY, NARROW, "int8"),
    "2 by 2, fewer inputs than a word": linear(1, 3, 5, TERNARY),
    "2 by 1, rows past a tile": linear(37, 72, 33, BitPlanes(2, -2, 1, 1, 0), HIGH, "uint8"),
    "1 by 2, long rows": linear(2, 1125, 17, BitPlanes(1, -1, 2, 2, 5)),
    "1 by 8, all of int8": linear(3, 64, 40, ZERO_ONE, HIGH, "uint8"),
    "3 by 2, steps of two": linear(2, 96, 8, BitPlanes(3, -7, 2, 2, 0)),
    "2 by 2, 3x3, inputs with a sign": convolution(3, (20, 70), BitPlanes(2, -1, 1, 2, -2)),
    "2 by 2, 3x3, some channels of wider maps": with_pitch(convolution(3, (20, 18), BitPlanes(2, -1, 1, 2, 0), (3, 4))),
    "1 by 1, 3x3, many words": convolution(3, (130, 16), BINARY, (3, 4), stride=2, extra_halo=(1, 0, 2, 1)),
    "1 by 1, dilated, runs of many words": convolution(3, (340, 8), BINARY, (3, 3), dilation=2),
    "1 by 2, pointwise, every second pixel": convolution(1, (40, 48), BitPlanes(1, -1, 2, 2, 0), (8, 9), stride=2),
    "1 by 1, residual add": convolution(
        1,
        (64, 50),
        BINARY,
        (4, 5),
        epilogue=ResidualAdd(Activation(4, 5, 50, "uint8", (1, 0, 2, 1)), True, 3, 18, 100, 3, 250),
        output="uint8",
    ),
    "2 by 2, wide residual add": linear(
        5, 64, 35, TERNARY, ResidualAdd(Activation(1, 5, 35, "int16"), True, 0, 8, 0, -(2**15), 2**15 - 1), "int16"
    ),
    "1 by 1, table": replace(linear(2, 40, 33, BINARY, NARROW, "int8"), table=True),
    "1 by 1, wide output": linear(2, 40, 20, BINARY, EXACT),
}


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-vnni"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str, target: str, check: Check) -> None:
    check(CASES[name], target)


def test_amx_counts_as_avx512_does(check: Check, emulated_amx: Callable[[], int]) -> None:
    before = emulated_amx()
    check(CASES["2 by 1, rows past a tile"], "x86-64-amx")
    assert emulated_amx() == before


def test_every_place_where_bytes_are_added_up() -> None:
    layouts = [planes_layout(kernel, "x86-64-v3") for kernel in CASES.values()]
    assert {layout.flush_depth for layout in layouts} == {0, 1, 2, 3}


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-vnni"])
def test_largest_counts(target: str, check: Check) -> None:
    """Every bit of every byte counts, for as long as bytes are added to."""
    kernel = linear(1, 64 * 31, 8, BitPlanes(1, 0, 1, 1, 0))

    def change(case: Any) -> None:
        case.input[:], case.constants["weight"][:] = 1, 1

    check(kernel, target, change)
