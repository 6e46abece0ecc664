from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.arithmetic.exponential import MANTISSAS
from qcompiler.arithmetic.softmax import (
    MAXIMUM_ROW,
    SOFTMAX_FORMS,
    check_softmax,
    exponential_table,
    newton_reciprocal,
    softmax,
    softmax_parameters,
    softmax_scale,
)
from qcompiler.errors import UnknownNameError, VerificationError

# docs/arithmetic.md, section 7: spread of the exponentials' relative errors.
SPREAD = {"table": 0.0, "poly": 0.0003, "shift": 0.0187}
OURS = pytest.mark.parametrize("form", SPREAD)


def softmax_of_unbounded_integers(row: list[int], table: list[int], bits: int) -> list[int]:
    """The module's formula on Python integers, one element at a time."""
    return probabilities_of([table[max(row) - x] for x in row], bits)


def probabilities_of(exponentials: list[int], bits: int) -> list[int]:
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


@pytest.mark.parametrize("far", range(16, 4096, 255))
def test_sixteen_bits_of_a_row_whose_sum_is_just_above_a_power_of_two(far: int) -> None:
    """The largest product of the formula and the largest rounding term come together there."""
    table = exponential_table(0.1)
    row = [0] * far + [-127] * (4096 - far)
    found = softmax(torch.tensor(row, dtype=torch.int8), table, None, "table", [], 16)
    assert found.tolist() == softmax_of_unbounded_integers(row, table.tolist(), 16)


@pytest.mark.parametrize("length", [1, 2, 17, 197, 4096])
def test_error_stays_close_to_half_a_step(length: int) -> None:
    x = torch.randint(0, 256, (64, length), dtype=torch.uint8, generator=torch.Generator().manual_seed(length))
    exact = torch.softmax(x.double() * 0.05, dim=-1) * 255
    # 1/2 from the last rounding, the rest from the 15-bit exponentials and the reciprocal
    assert (softmax(x, exponential_table(0.05), None, "table", [], 8) - exact).abs().max() < 0.54


@pytest.mark.parametrize("form", SPREAD)
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_floor_is_what_is_left_without_the_rounding_term(form: str, bits: int) -> None:
    x = torch.randint(-128, 128, (50, 23), dtype=torch.int8, generator=torch.Generator().manual_seed(bits))
    table, constants = softmax_parameters(form, 0.03)
    near, down = (softmax(x, table, None, form, constants, bits, rounding).int() for rounding in ("nearest", "floor"))
    assert set((near - down).unique().tolist()) == {0, 1}
    assert (down.sum(-1) < (1 << bits)).all()


def test_rounding_is_an_option_of_our_own_forms() -> None:
    with pytest.raises(VerificationError, match="no softmax of form 'shiftmax' with rounding 'floor'"):
        check_softmax("shiftmax", None, softmax_parameters("shiftmax", 0.1)[1], 8, "floor")
    with pytest.raises(VerificationError, match="with rounding 'up'"):
        check_softmax("table", exponential_table(0.1), [], 8, "up")


def wide_softmax_of_unbounded_integers(row: list[int], table: list[int], bits: int) -> list[int]:
    exponentials, high = [table[max(row) - x] for x in row], (1 << bits) - 1
    b = sum(exponentials).bit_length()
    f = (sum(exponentials) << 31) >> b
    y = newton_reciprocal(torch.tensor(f >> 16)).item() << 16
    for _ in range(2):
        y = (y * ((2**62 - f * y) >> 31)) >> 30
    q, s = (high * int(y)) >> bits, min(b - 2 - bits, 30)
    return [min(max(((e * q >> 32) + (1 << (s - 1))) >> s, 0), high) for e in exponentials]


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=40), st.floats(1e-6, 2.0), st.sampled_from([1, 8, 16, 24]))
def test_wide_table_equals_the_formula_on_unbounded_integers(row: list[int], scale: float, bits: int) -> None:
    table, _ = softmax_parameters("wide-table", scale)
    assert table is not None
    found = softmax(torch.tensor(row, dtype=torch.int8), table, None, "wide-table", [], bits)
    assert found.tolist() == wide_softmax_of_unbounded_integers(row, table.tolist(), bits)


@pytest.mark.parametrize("bits", [8, 16, 24])
@pytest.mark.parametrize("length", [1, 2, 17, 197, 4096])
def test_wide_table_rounds_as_reals_do(length: int, bits: int) -> None:
    """docs/arithmetic.md, section 7: 3 * 2^-26 of the largest integer above half a step."""
    x = torch.randint(-128, 128, (64, length), dtype=torch.int8, generator=torch.Generator().manual_seed(length))
    for scale in (0.001, 0.05, 0.5):
        table, _ = softmax_parameters("wide-table", scale)
        exact = torch.softmax(x.double() * scale, dim=-1) * ((1 << bits) - 1)
        assert (softmax(x, table, None, "wide-table", [], bits) - exact).abs().max() <= 0.5 + (1 << bits) * 3 * 2.0**-26


def test_longest_row_stays_in_int32() -> None:
    table = exponential_table(0.1)
    total = int(table[0]) * MAXIMUM_ROW
    assert total < 2**31
    uniform = torch.zeros(MAXIMUM_ROW, dtype=torch.int8)
    assert softmax(uniform, table, None, "table", [], 16).tolist() == [1] * MAXIMUM_ROW
    wide, _ = softmax_parameters("wide-table", 0.1)
    assert softmax(uniform, wide, None, "wide-table", [], 16).tolist() == [1] * MAXIMUM_ROW
    assert softmax(uniform, wide, None, "wide-table", [], 1).tolist() == [0] * MAXIMUM_ROW


def test_reciprocal_over_its_whole_interval() -> None:
    f = torch.arange(1 << 14, 1 << 15)
    y = newton_reciprocal(f)
    assert (y - 2.0**29 / f.double()).abs().max() < 2
    assert y.max() < 1 << 15


def test_rows_are_independent_and_shift_invariant() -> None:
    table = exponential_table(0.2)
    x = torch.tensor([[3, -7, 20], [13, 3, 30]], dtype=torch.int8)
    assert torch.equal(softmax(x, table, None, "table", [], 8)[0], softmax(x, table, None, "table", [], 8)[1])


def exponential_of_unbounded_integers(difference: int, form: str, constants: list[int]) -> int:
    multiplier, shift, limit = constants
    z = (min(difference, limit) * multiplier + (1 << (shift - 1))) >> shift
    n, f = z >> 15, z & 32767
    if form == "shift":
        mantissa = 32768 - ((f + ((3 * min(f, 32768 - f)) >> 4)) >> 1)
    else:
        mantissa = (65536 - f - ((((f * (32768 - f)) >> 15) * (6270 - ((1275 * f) >> 15))) >> 14) + 1) >> 1
    return min((mantissa + ((1 << n) >> 1)) >> n, 32767)


@given(
    st.lists(st.integers(-32768, 32767), min_size=1, max_size=40),
    st.floats(1e-5, 2.0),
    st.sampled_from([4, 8, 16]),
    st.sampled_from(sorted(MANTISSAS)),
)
def test_16_bit_scores_equal_the_formula_on_unbounded_integers(row: list[int], scale: float, bits: int, form: str) -> None:
    _, constants = softmax_parameters(form, scale)
    expected = probabilities_of([exponential_of_unbounded_integers(max(row) - x, form, constants) for x in row], bits)
    result = softmax(torch.tensor(row, dtype=torch.int16), None, None, form, constants, bits)
    assert result.tolist() == expected
    bound = error_bound(form, bits, torch.softmax(torch.tensor(row).double() * scale, 0), len(row))
    exact = torch.softmax(torch.tensor(row).double() * scale, 0) * ((1 << bits) - 1)
    # 2e-3: the difference in base 2 has 25 bits, which at scales this small are few.
    assert bool(((result - exact).abs() <= bound + ((1 << bits) - 1) * 2e-3).all())


def error_bound(form: str, bits: int, probability: torch.Tensor, length: int) -> torch.Tensor:
    """docs/arithmetic.md, section 7, in output steps."""
    exponentials = probability * (1 - probability) * SPREAD[form] + (1 + length * probability) * 2.0**-16
    reciprocal = probability * 2.64 * 2.0**-14
    return 0.5 + ((1 << bits) - 1) * (1.03 * (exponentials + reciprocal) + 2.0**-14)


@OURS
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_all_differences_of_8_bits_within_the_bound(form: str, bits: int) -> None:
    """Rows of a maximum, each of the 256 values, and a few more that weigh nothing to much."""
    for scale in (0.002, 0.01, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0):
        table, constants = softmax_parameters(form, scale)
        for others in ([], [-128], [100, 90], [0] * 14, [-128] * 254):
            x = torch.tensor([[127, value, *others] for value in range(-128, 128)], dtype=torch.int8)
            exact = torch.softmax(x.double() * scale, -1)
            error = (softmax(x, table, None, form, constants, bits) - exact * ((1 << bits) - 1)).abs()
            assert bool((error <= error_bound(form, bits, exact, x.shape[-1])).all()), (scale, others)


@pytest.mark.parametrize("form", SOFTMAX_FORMS)
def test_masks_take_elements_out(form: str) -> None:
    table, constants = softmax_parameters(form, 0.05)
    x = torch.randint(-128, 128, (3, 4, 50), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(50) % 3 != 1
    result = softmax(x, table, mask, form, constants, 8)
    assert result[..., ~mask].abs().max() == 0
    assert torch.equal(result[..., mask], softmax(x[..., mask], table, None, form, constants, 8))
    nothing = torch.ones(3, 1, 50, dtype=torch.bool)
    nothing[1] = False
    result = softmax(x, table, nothing, form, constants, 8)
    assert result[1].max() == 0
    assert torch.equal(result[0], softmax(x[0], table, None, form, constants, 8))


@pytest.mark.parametrize("form", SOFTMAX_FORMS)
def test_results_stay_within_what_is_proven(form: str) -> None:
    for scale in (0.003, 0.05, 0.6):
        table, constants = softmax_parameters(form, scale)
        largest = check_softmax(form, table, constants, 8)
        single = torch.tensor([[100, -128]], dtype=torch.int8)
        assert int(softmax(single, table, None, form, constants, 8).max()) <= largest
        assert int(softmax(single[:, :1], table, None, form, constants, 8).max()) <= largest
    assert softmax_scale(form, 8) * 256 == pytest.approx(1.0, rel=1.01)


def test_forms_that_do_not_exist_and_parameters_of_others() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'shiftmax'"):
        softmax_parameters("shiftmaxx", 0.1)
    with pytest.raises(VerificationError, match="takes 3 constants, not 0"):
        check_softmax("poly", None, [], 8)
    with pytest.raises(VerificationError, match="no softmax of form 'table' with 8 bits and no table"):
        check_softmax("table", None, [], 8)
    with pytest.raises(VerificationError, match="its exponentials do not fit 16 bits"):
        check_softmax("i-softmax", None, [-14, 54, 1116, 1 << 31, 5], 8)
