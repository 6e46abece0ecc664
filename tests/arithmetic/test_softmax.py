from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.arithmetic.softmax import MAXIMUM_ROW, exponential_table, newton_reciprocal, softmax


def softmax_of_unbounded_integers(row: list[int], table: list[int], bits: int) -> list[int]:
    """The module's formula on Python integers, one element at a time."""
    exponentials = [table[max(row) - x] for x in row]
    total, high = sum(exponentials), (1 << bits) - 1
    b = total.bit_length()
    f = (total << (31 - b)) >> 16
    y = 47747 - f
    for _ in range(2):
        y = (y * (65536 - ((f * y) >> 14))) >> 15
    return [min(max(((((e * y) >> 15) * high) + (1 << (b - 2))) >> (b - 1), 0), high) for e in exponentials]


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=40), st.floats(0.001, 2.0), st.sampled_from([4, 8, 16]))
def test_equals_the_formula_on_unbounded_integers(row: list[int], scale: float, bits: int) -> None:
    table = exponential_table(scale)
    expected = softmax_of_unbounded_integers(row, table.tolist(), bits)
    assert softmax(torch.tensor(row, dtype=torch.int8), table, None, "table", [], bits).tolist() == expected


@pytest.mark.parametrize("length", [1, 2, 17, 197, 4096])
def test_error_stays_close_to_half_a_step(length: int) -> None:
    x = torch.randint(0, 256, (64, length), dtype=torch.uint8, generator=torch.Generator().manual_seed(length))
    exact = torch.softmax(x.double() * 0.05, dim=-1) * 255
    # 1/2 from the last rounding, the rest from the 15-bit exponentials and the reciprocal
    assert (softmax(x, exponential_table(0.05), None, "table", [], 8) - exact).abs().max() < 0.54


def test_longest_row_stays_in_int32() -> None:
    table = exponential_table(0.1)
    total = int(table[0]) * MAXIMUM_ROW
    assert total < 2**31
    uniform = torch.zeros(MAXIMUM_ROW, dtype=torch.int8)
    assert softmax(uniform, table, None, "table", [], 16).tolist() == [1] * MAXIMUM_ROW


def test_reciprocal_over_its_whole_interval() -> None:
    f = torch.arange(1 << 14, 1 << 15)
    y = newton_reciprocal(f)
    assert (y - 2.0**29 / f.double()).abs().max() < 2
    assert y.max() < 1 << 15


def test_rows_are_independent_and_shift_invariant() -> None:
    table = exponential_table(0.2)
    x = torch.tensor([[3, -7, 20], [13, 3, 30]], dtype=torch.int8)
    assert torch.equal(softmax(x, table, None, "table", [], 8)[0], softmax(x, table, None, "table", [], 8)[1])
