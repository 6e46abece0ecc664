"""Planes to pixels, alone: machine code against ``arithmetic.quantize``, with tails, rows that lie apart and numbers that are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qcompiler import arithmetic
from qcompiler.backends.tvm import target as targets
from qcompiler.backends.tvm.kernels import Copy, ElementwiseKernel, Operand, Quantize
from qcompiler.backends.tvm.templates import pixels
from qcompiler.ir.types import QuantizedType

Array = NDArray[Any]
TARGETS = ("x86-64-v3", "x86-64-vnni")  # that of AMX is AVX512-VNNI's
GUARD = 0x5A  # what the output is full of before
SHAPES = {"row": (37, 3), "rows": (5, 16, 2), "four": (3, 17, 4), "parallel": (11000, 3)}


def _kernel(shape: tuple[int, ...], dtype: str, per_channel: bool, gap: int = 0) -> ElementwiseKernel:
    """Rows of the output lie ``gap`` pixels further apart than they are long."""
    *rows, width, channels = shape
    plane = width * (rows[0] if rows else 1)
    x = Operand("float32", (*([width] if rows else []), 1, plane))
    zeros = (0,) * (len(shape) - 1)
    reciprocal, zero_point = (Operand(kind, (*zeros, int(per_channel))) for kind in ("float32", "int32"))
    output = Operand(dtype, (*([(width + gap) * channels] if rows else []), channels, 1))
    limits = np.iinfo(dtype)
    return ElementwiseKernel(Quantize(int(limits.min), int(limits.max)), shape, (x, reciprocal, zero_point), output)


def _planes(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    x = random.normal(0, 40, (shape[-1], *shape[:-1])).astype(np.float32)
    x.reshape(-1)[:7] = [np.nan, np.inf, -np.inf, 1e30, -1e30, 0.5, -0.0]
    return x


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_quantizes(run_function: Callable[..., Array], shape: tuple[int, ...], per_channel: bool, dtype: str, target: str) -> None:
    random, count = np.random.default_rng(0), shape[-1] if per_channel else 1
    kernel = _kernel(shape, dtype, per_channel)
    scales, zero_points = random.uniform(0.3, 2, count).astype(np.float32), random.integers(-5, 9, count).astype(np.int32)
    kind = QuantizedType.from_arguments(scales.tolist(), zero_points.tolist(), 0 if per_channel else -1, 8, dtype == "int8")
    x = _planes(random, shape)
    want = np.moveaxis(arithmetic.quantize(torch.from_numpy(x), kind).numpy(), 0, -1)
    assert pixels.serves(kernel)
    found = run_function(_emit, kernel, target, [x, 1 / scales, zero_points], want.size, dtype)
    assert np.array_equal(found.reshape(want.shape), want)


@pytest.mark.parametrize("target", TARGETS)
def test_copies_into_rows_that_lie_apart(run_function: Callable[..., Array], target: str) -> None:
    kernel = replace(_kernel((4, 29, 3), "int8", False, gap=3), operation=Copy())
    x = np.random.default_rng(1).integers(-128, 128, (3, 4, 29)).astype(np.int8)
    kernel = replace(kernel, operands=(replace(kernel.operands[0], dtype="int8"),))
    found = run_function(_emit, kernel, target, [x], 4 * 32 * 3, "int8").reshape(4, 32, 3)
    assert np.array_equal(found[:, :29], np.moveaxis(x, 0, -1))
    assert (found[:, 29:] == np.int8(GUARD)).all()


@pytest.mark.parametrize("target", TARGETS)
def test_copies_channels_from_the_last_to_the_first(run_function: Callable[..., Array], target: str) -> None:
    kernel = _kernel((50, 3), "uint8", False)
    kernel = replace(kernel, operation=Copy(), operands=(Operand("uint8", (1, -50), offset=100),))
    x = np.random.default_rng(2).integers(0, 256, (3, 50)).astype(np.uint8)
    assert np.array_equal(run_function(_emit, kernel, target, [x], 150, "uint8").reshape(50, 3), x[::-1].T)


def test_serves_no_short_rows_and_no_wide_pixels() -> None:
    assert not pixels.serves(_kernel((40, 15, 3), "uint8", False))
    assert not pixels.serves(_kernel((40, 40, 5), "uint8", False))
    assert not pixels.serves(_kernel((40, 40, 3), "int16", False))


def _emit(kernel: ElementwiseKernel, target: str) -> object:
    return pixels.emit(kernel, targets.TARGETS[target])
