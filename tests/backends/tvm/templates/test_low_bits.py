"""Weights of 4 and 2 bits that are unpacked in registers: equal to the reference for every shape that the matrix template knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qcompiler.backends.tvm.kernels import Activation, ConvolutionKernel, Requantization
from qcompiler.backends.tvm.templates.choice import weight_storage
from qcompiler.backends.tvm.templates.matrix_layout import LONGEST_SCALED_SUM, matrix_layout

TARGETS = ("x86-64-v3", "x86-64-vnni", "x86-64-amx")
Check = Callable[..., None]


def linear(rows: int, inputs: int, outputs: int, dtype: Any = "uint8", epilogue: Requantization | None = None) -> ConvolutionKernel:
    """int32 accumulators by default."""
    output = Activation(1, rows, outputs, "int8" if epilogue else "int32")
    return ConvolutionKernel(Activation(1, rows, inputs, dtype), output, (1, 1), (1, 1), (0, 0), (1, 1), 1, epilogue)


def convolution(kernel: int, stride: int, groups: int, channels: tuple[int, int]) -> ConvolutionKernel:
    padding = kernel // 2
    extent = (7 + 2 * padding - kernel) // stride + 1
    maps = Activation(7, 7, channels[0], "uint8", (padding,) * 4), Activation(extent, extent, channels[1], "int32")
    return ConvolutionKernel(*maps, (kernel, kernel), (stride, stride), (padding, padding), (1, 1), groups, None)


NARROW = Requantization("narrow", True, -11, -100, 127)
CASES = {
    "one row": linear(1, 64, 128),
    "one row, tails of inputs and channels": linear(1, 131, 1000, "int8", NARROW),
    "fewer inputs than a round": linear(1, 3, 5, "int8"),
    "rows": linear(5, 72, 33, "uint8", Requantization("high", True, 3, -128, 127)),
    "rows past a tile": linear(37, 40, 17, "int8"),
    "3x3": convolution(3, 1, 1, (20, 70)),
    "groups, stride 2": convolution(3, 2, 3, (24, 48)),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("name", CASES)
def test_packed_weights(name: str, bits: int, target: str, check: Check) -> None:
    check(replace(CASES[name], weight_bits=bits), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("bits", "weight"), [(4, -8), (4, 7), (2, -2), (2, 1)])
@pytest.mark.parametrize(("extreme", "dtype"), [(-128, "int8"), (127, "int8"), (255, "uint8"), (0, "uint8")])
def test_largest_sums(extreme: int, dtype: str, bits: int, weight: int, target: str, check: Check) -> None:
    """The ends of both ranges, over as many inputs as a scaled sum may have; with inputs without a sign as well."""
    depth = LONGEST_SCALED_SUM // 16 * 16

    def change(case: Any) -> None:
        case.input[:] = extreme
        case.constants["weight"][:] = weight
        case.constants["bias"][:] = np.where(np.arange(16) % 2, 2**30, -(2**30))

    check(replace(linear(1, depth, 16, dtype), weight_bits=bits), target, change)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [8, 4])
def test_sums_that_leave_int32_on_the_way(bits: int, target: str, check: Check) -> None:
    """The first half of the products alone is more than int32 holds; all of them are what it holds."""
    depth, weight = (140000, 127) if bits == 8 else (LONGEST_SCALED_SUM // 16 * 16, 7)

    def change(case: Any) -> None:
        case.input[:] = 255
        case.constants["weight"][:, : depth // 2], case.constants["weight"][:, depth // 2 :] = weight, -weight
        case.constants["bias"][:] = 2**31 - 1

    check(replace(linear(1, depth, 8), weight_bits=bits), target, change)


@pytest.mark.parametrize("inputs", range(61, 76, 2))
def test_every_tail(inputs: int, check: Check) -> None:
    check(replace(linear(1, inputs, 16, "int8"), weight_bits=2), "x86-64-vnni")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("bits", "group", "inputs"), [(4, 8, 64), (4, 128, 300), (4, 64, 67), (2, 32, 131), (2, 16, 16)])
@pytest.mark.parametrize(("rows", "outputs", "dtype"), [(1, 150, "int8"), (3, 17, "uint8")])
def test_groups_with_factors(rows: int, outputs: int, dtype: str, bits: int, group: int, inputs: int, target: str, check: Check) -> None:
    """The last group is whole, or has fewer inputs, or fewer than a round has."""
    check(replace(linear(rows, inputs, outputs, dtype, NARROW), weight_bits=bits, weight_group=group), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("extreme", "dtype"), [(-128, "int8"), (127, "int8"), (255, "uint8")])
def test_largest_sums_of_groups(extreme: int, dtype: str, target: str, check: Check) -> None:
    """Products of 126 by the ends of the inputs, as many as int32 holds: the sums of groups, with what makes inputs unsigned, leave it."""
    depth = (2**31 - 1) // (126 * max(abs(extreme), 128)) // 16 * 16

    def change(case: Any) -> None:
        case.input[:] = extreme
        case.constants["weight"][:] = np.where(np.arange(32) % 2, 7, -7)[:, None, None, None]
        case.constants["factors"][:] = 18
        case.constants["bias"][:] = 0

    check(replace(linear(1, depth, 32, dtype), weight_bits=4, weight_group=65536), target, change)
    check(replace(linear(1, depth, 32, dtype), weight_bits=4, weight_group=16), target, change)


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-vnni"])
def test_inputs_of_words_where_reading_weights_takes_longest(target: str, check: Check) -> None:
    kernel = linear(1, 1030, 531, "int16", NARROW)
    assert matrix_layout(kernel, target).stored_bits == 8

    def change(case: Any) -> None:
        case.input[:] //= 16  # sums within int32

    check(kernel, target, change)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_bytes_in_the_place_of_words(dtype: str, check: Check) -> None:
    """AVX2 multiplies words; where reading them takes longest, bytes are read and widened."""
    kernel = linear(1, 1030, 531, dtype, NARROW)
    assert matrix_layout(kernel, "x86-64-v3").stored_bits == 8
    check(kernel, "x86-64-v3")


@pytest.mark.parametrize("target", TARGETS)
def test_packed_only_where_it_is_faster(target: str) -> None:
    few_rows, many_rows, small = linear(1, 4096, 4096), linear(128, 768, 768), linear(1, 192, 192)
    assert [weight_storage(few_rows, target, bits).weight_bits for bits in (2, 3, 4, 5, 8)] == [2, 4, 4, 8, 8]
    assert weight_storage(many_rows, target, 4) == many_rows
    if target != "x86-64-v3":  # whose products of small weights take fewer instructions too
        assert weight_storage(small, target, 4) == small


def test_packed_only_where_it_is_exact() -> None:
    long = linear(1, 70000, 64)
    assert weight_storage(long, "x86-64-vnni", 4) == long  # sums of scaled products could leave int32
    assert weight_storage(long, "x86-64-vnni", 4, group=128) == replace(long, weight_bits=4, weight_group=128)
    assert weight_storage(long, "x86-64-vnni", 4, group=100) == long  # no whole number of rounds
