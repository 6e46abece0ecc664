from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.arithmetic.normalize import (
    MAXIMUM_ROW,
    OUTPUT_FRACTION_BITS,
    integer_epsilon,
    magnitude_bits,
    normalize,
    reciprocal_square_root,
)


def normalize_unbounded(row: list[int], zero_point: int, epsilon: int, centre: bool) -> list[int]:
    """The module's formula on Python integers."""
    length = len(row)
    shifted = [x - zero_point for x in row]
    c = [length * x - sum(shifted) for x in shifted] if centre else shifted
    h = max(0, max(abs(x) for x in c).bit_length() - magnitude_bits(length))
    d = [(x + ((1 << h) >> 1)) >> h for x in c]
    power = max(1, sum(x * x for x in d) + min(epsilon >> (2 * h), 1 << 29))
    k = max(0, 30 - power.bit_length()) >> 1
    y = 488000 - ((5 * (power << 2 * k)) >> 15)
    for _ in range(4):
        y = (y * ((3 << 30) - (((power << 2 * k) * ((y * y) >> 8)) >> 28))) >> 31
    return [x * ((y << k) >> 4) for x in d]


@given(
    st.lists(st.integers(-32768, 32767), min_size=1, max_size=50),
    st.integers(-128, 127),
    st.integers(0, 2**40),
    st.booleans(),
)
def test_equals_the_formula_on_unbounded_integers_and_fits_int32(row: list[int], zero_point: int, epsilon: int, centre: bool) -> None:
    expected = normalize_unbounded(row, zero_point, epsilon, centre)
    assert all(-(2**31) <= y < 2**31 for y in expected)
    assert normalize(torch.tensor(row, dtype=torch.int32), zero_point, epsilon, centre, "newton").tolist() == expected


@pytest.mark.parametrize(("length", "spread"), [(64, 3), (64, 1000), (192, 3000), (384, 30), (768, 5000)])
@pytest.mark.parametrize("centre", [True, False])
def test_close_to_the_real_function(length: int, spread: int, centre: bool) -> None:
    generator = torch.Generator().manual_seed(length)
    x = (torch.randn(200, length, generator=generator) * spread).round().to(torch.int32)
    scale, epsilon = 0.01, 1e-5
    result = (
        normalize(x, 0, integer_epsilon(epsilon, scale, length, centre), centre, "newton") / 2**OUTPUT_FRACTION_BITS * math.sqrt(length)
    )
    real = x.double() * scale
    centred = real - real.mean(-1, keepdim=True) if centre else real
    exact = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + epsilon)
    # the centred values keep magnitude_bits bits: half a unit of the largest one
    bound = exact.abs().max() * (2.0 ** -magnitude_bits(length) + 1e-4)
    assert (result - exact).abs().max() < bound


def test_reciprocal_square_root_on_its_whole_interval() -> None:
    v = torch.cat([torch.linspace(2**28, 2**31 - 1, 1_000_001, dtype=torch.float64).to(torch.int64), 2 ** torch.arange(28, 31)])
    exact = 2.0**33 / torch.sqrt(v.double())
    assert ((reciprocal_square_root(v) - exact) / exact).abs().max() < 2**-17


def test_constant_rows_give_zero_and_the_longest_row_fits() -> None:
    assert normalize(torch.full((2, 64), 7), 3, 0, True, "newton").abs().max() == 0
    row = torch.zeros(MAXIMUM_ROW, dtype=torch.int16)
    row[0] = 32767
    assert normalize(row, 0, 0, True, "newton").abs().max() <= 2**30
