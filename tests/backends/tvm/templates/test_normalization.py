"""Normalization kernels, alone, at the ends of what is proven: rows of extremes, of every length, with the largest and no epsilon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qcompiler import arithmetic
from qcompiler.arithmetic.normalize import LARGEST_EPSILON, MAXIMUM_ROW, drops_bits
from qcompiler.backends.tvm.kernels import NormalizationKernel, Normalize, Operand
from qcompiler.backends.tvm.target import TARGETS
from qcompiler.backends.tvm.templates import normalization

# Length and epsilon: sums lose bits from 2048 on, and wherever epsilon is as large as it may be.
ROWS = ((1, 0), (2, 0), (33, 1), (33, LARGEST_EPSILON), (2048, 0), (MAXIMUM_ROW, 0))


def extreme_rows(dtype: str, length: int, low: int, high: int) -> np.ndarray[Any, Any]:
    """[11, length]: constant rows, one element apart from all others, halves at either end, steps of one, random ones."""
    random = np.random.default_rng(length)
    rows = np.full((11, length), high, np.int64)
    rows[1], rows[2] = low, 0
    rows[3, 1:] = low
    rows[4, 0] = low
    rows[5, : length // 2] = low
    rows[6, ::2] = low
    rows[7] = low + np.arange(length) % 2
    rows[8, 0] = high - 1
    rows[9:] = random.integers(low, high + 1, (2, length))
    return rows.astype(dtype)


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-vnni"])
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize(
    ("dtype", "low", "high", "zero_point", "rows"),
    [("int16", -(2**15), 2**15 - 1, 2**15 - 1, ROWS), ("int32", 0, 2**16 - 1, 2**15, ROWS), ("uint8", 0, 255, 255, ROWS[2:4])],
)
def test_extremes(
    dtype: str,
    low: int,
    high: int,
    zero_point: int,
    rows: tuple[tuple[int, int], ...],
    centre: bool,
    target: str,
    run_function: Callable[..., Any],
) -> None:
    for length, epsilon in rows:
        x = extreme_rows(dtype, length, low, high)
        operation = Normalize(zero_point, epsilon, centre, drops=drops_bits(length, high - low, epsilon, centre))
        kernel = NormalizationKernel(operation, (len(x),), length, Operand(dtype, (length, 1)), output=Operand("int32", (length, 1)))
        want = arithmetic.normalize(torch.from_numpy(x), zero_point, epsilon, centre, "newton").numpy()
        got = run_function(lambda kernel, name: normalization.emit(kernel, TARGETS[name]), kernel, target, [x], x.size, "int32")
        np.testing.assert_array_equal(got.reshape(x.shape), want, err_msg=f"rows of {length}, epsilon {epsilon}")
