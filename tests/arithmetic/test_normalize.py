from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.arithmetic.normalize import (
    LARGEST_EPSILON,
    MAXIMUM_ROW,
    NORMALIZE_FORMS,
    OUTPUT_BOUND,
    drops_bits,
    guard_bits,
    integer_epsilon,
    normalize,
    normalized_scale,
    reciprocal_square_root,
)


def normalize_unbounded(row: list[int], zero_point: int, epsilon: int, centre: bool) -> list[int]:
    """The module's formula on Python integers."""
    length = len(row)
    shifted = [x - zero_point for x in row]
    c = [length * x - sum(shifted) for x in shifted] if centre else shifted
    power = length * sum(x * x for x in shifted) - sum(shifted) ** 2 if centre else sum(x * x for x in shifted)
    power = max(1, power + epsilon)
    g = math.ceil(math.log2(length) / 2) if centre else 0
    j = (62 - power.bit_length()) // 2
    v = (power << 2 * j) >> 30
    r = 2_290_062_000 - ((19_969 * v) >> 16)
    for _ in range(4):
        r = (r * ((3 << 30) - ((v * ((r * r) >> 31)) >> 31))) >> 31
    t = [x << (j - g) if j >= g else (x + (1 << (g - j - 1))) >> (g - j) for x in c]
    assert all(-(2**31) <= x < 2**31 for x in t)
    return [(x * r) >> 32 for x in t]


def worst_error(x: torch.Tensor, epsilon: int, centre: bool) -> float:
    """In units of the result; float64 holds every integer here but N sum(x^2) of the longest rows, of which it keeps 53 bits."""
    wide, length = x.double(), x.shape[-1]
    c = length * wide - wide.sum(-1, keepdim=True) if centre else wide
    power = (c**2).sum(-1, keepdim=True) / (length if centre else 1) + epsilon
    exact = 2.0 ** (29 - guard_bits(length, centre)) * c / torch.sqrt(power.clamp(min=1))
    return float((normalize(x, 0, epsilon, centre, "newton") - exact).abs().max())


@given(
    st.lists(st.integers(-32768, 32767), min_size=1, max_size=50),
    st.integers(-128, 127),
    st.integers(0, 2**40) | st.integers(0, LARGEST_EPSILON),
    st.booleans(),
)
def test_equals_the_formula_on_unbounded_integers_and_fits_int32(row: list[int], zero_point: int, epsilon: int, centre: bool) -> None:
    expected = normalize_unbounded(row, zero_point, epsilon, centre)
    assert all(abs(y) <= OUTPUT_BOUND for y in expected)
    assert normalize(torch.tensor(row, dtype=torch.int32), zero_point, epsilon, centre, "newton").tolist() == expected


@pytest.mark.parametrize(("length", "spread"), [(2, 9), (64, 3), (64, 1000), (192, 3000), (384, 30), (768, 5000), (MAXIMUM_ROW, 9000)])
@pytest.mark.parametrize("centre", [True, False])
def test_within_its_units_of_the_real_number(length: int, spread: int, centre: bool) -> None:
    generator = torch.Generator().manual_seed(length)
    x = (torch.randn(100, length, generator=generator) * spread).round().clamp(-32768, 32767).to(torch.int32)
    x[0], x[1] = 0, -spread
    x[0, 0], x[1, ::2] = spread, spread
    assert worst_error(x, 0, centre) < 2.25
    assert worst_error(x, integer_epsilon(1e-5, 0.01, length, centre), centre) < 2.25


@pytest.mark.parametrize("form", NORMALIZE_FORMS)
@pytest.mark.parametrize("centre", [True, False])
def test_the_scale_makes_rows_of_unit_length(form: str, centre: bool) -> None:
    x = (torch.randn(20, 192, generator=torch.Generator().manual_seed(0)) * 8000).to(torch.int32)
    length = (normalize(x, 0, 0, centre, form).double() * normalized_scale(form, 192, centre)).norm(dim=-1)
    assert (length - 1).abs().max() < 1e-3


def test_reciprocal_square_root_on_its_whole_interval() -> None:
    steps = torch.linspace(2**30, 2**32 - 1, 1_000_001, dtype=torch.float64).to(torch.int64)
    v = torch.cat([steps, 2**30 + torch.arange(100_000), 2**32 - 1 - torch.arange(100_000)])
    error = reciprocal_square_root(v) - 2.0**46 / torch.sqrt(v.double())
    assert error.abs().max() < 1.5
    assert reciprocal_square_root(v).max() < 2**31


def test_deviations_lose_bits_only_where_said() -> None:
    assert not drops_bits(1024, 2**16 - 1, 1 << 40, True) and not drops_bits(MAXIMUM_ROW, 2**16 - 1, LARGEST_EPSILON, False)
    assert drops_bits(2048, 2**16 - 1, 0, True) and drops_bits(192, 255, LARGEST_EPSILON, True)
    for length, span in ((1024, 2**16 - 1), (2048, 2**15)):
        row = torch.arange(length) % 2 * span
        power = length * int((row**2).sum()) - int(row.sum()) ** 2
        assert ((62 - power.bit_length()) // 2 < guard_bits(length, True)) == drops_bits(length, span, 0, True)


def test_constant_rows_give_zero_and_the_longest_row_fits() -> None:
    assert normalize(torch.full((2, 64), 7), 3, 0, True, "newton").abs().max() == 0
    row = torch.zeros(MAXIMUM_ROW, dtype=torch.int16)
    row[0] = 32767
    assert normalize(row, 0, 0, True, "newton").abs().max() <= OUTPUT_BOUND
