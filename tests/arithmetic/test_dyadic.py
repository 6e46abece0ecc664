"""The chosen parameters keep the contract, and their error bounds hold, checked in rational numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qcompiler.arithmetic import (
    REQUANTIZE,
    Dyadic,
    choose,
    choose_exact64,
    choose_high,
    choose_narrow,
    choose_residual,
    residual_add,
)
from qcompiler.errors import VerificationError

INT32_MAX = (1 << 31) - 1
LIMIT = 255

mantissas = st.floats(0.5, 1.0, exclude_max=True)
bounds = st.one_of(st.sampled_from((0, 1, 127, 255, 32767, 32768, 65535, INT32_MAX)), st.integers(0, INT32_MAX))


def factors(least_exponent: int, largest_exponent: int) -> st.SearchStrategy[float]:
    """Floats spread evenly over binary orders of magnitude, with the mantissas that round up to the next power of two."""
    mantissa = st.one_of(mantissas, st.sampled_from((0.5, 1 - 2.0**-53, 1 - 2.0**-16, 1 - 2.0**-15)))
    return st.builds(lambda m, e: m * 2.0**e, mantissa, st.integers(least_exponent, largest_exponent))


def samples(bound: int, factor: float) -> torch.Tensor:
    """Integers of [-bound, bound] where errors are largest: the ends, around 0, and next to ties between two outputs."""
    values = {0, 1, -1, bound, -bound, bound - 1, 1 - bound, bound // 2, bound // 3}
    if factor > 0:
        for y in (1, 2, 3, 100, 127, 128, 254, 255, 256):
            tie = int((Fraction(y) - Fraction(1, 2)) / Fraction(factor))
            values |= {sign * (tie + d) for sign in (-1, 1) for d in (-1, 0, 1, 2)}
    return torch.tensor(sorted(v for v in values if -bound <= v <= bound), dtype=torch.int32)


def worst_error(dyadic: Dyadic, factor: float, a: torch.Tensor, limit: int | None) -> Fraction:
    y = REQUANTIZE[dyadic.form](a, dyadic.pre_shift, dyadic.multiplier, dyadic.shift)
    worst = Fraction(0)
    for integer, result in zip(a.tolist(), y.tolist(), strict=True):
        real = integer * Fraction(factor)
        if limit is not None:
            real, result = min(max(real, Fraction(-limit)), Fraction(limit)), min(max(result, -limit), limit)
        worst = max(worst, abs(result - real))
    return worst


def assert_high(dyadic: Dyadic, bound: int) -> None:
    pre_shift, multiplier, shift = (int(p) for p in (dyadic.pre_shift, dyadic.multiplier, dyadic.shift))
    assert multiplier == 0 or ((1 << 30) <= multiplier < (1 << 31) and multiplier % 2 == 0)
    assert 1 <= shift <= 30
    assert pre_shift >= 0 and bound << pre_shift < 1 << 31
    assert multiplier == 0 or shift >= 8 or bound << (pre_shift + 1) >= 1 << 31, "a larger shift was possible"


@given(factor=factors(-40, 20), bound=bounds)
def test_high_keeps_the_contract_and_its_bound(factor: float, bound: int) -> None:
    try:
        dyadic = choose_high(factor, bound)
    except VerificationError:
        assert bound * factor >= 2.0**28, "refused although the output is small"
        return
    assert_high(dyadic, bound)
    error = worst_error(dyadic, factor, samples(bound, factor), None)
    claimed = Fraction(float(dyadic.error_bound(factor, bound)))
    assert error <= claimed <= Fraction(1, 2) + Fraction(1, 1 << int(dyadic.shift))


@example(factor=0.12499999999999999, bound=3)  # the multiplier's error is less than the last bit of the bound
@given(factor=factors(-46, 0), bound=bounds)
def test_narrow_keeps_the_contract_and_its_bound(factor: float, bound: int) -> None:
    try:
        dyadic = choose_narrow(factor, bound, LIMIT)
    except VerificationError:
        # Refused for factors that round to 1, for wide ranges of factors near 1, and for the largest bounds.
        assert factor > 2.0**-8 or bound > 1 << 30
        return
    pre_shift, multiplier, shift = (int(p) for p in (dyadic.pre_shift, dyadic.multiplier, dyadic.shift))
    assert multiplier == 0 or (1 << 14) <= multiplier < (1 << 15)
    assert 0 <= pre_shift <= 30 and 0 <= shift <= 15
    assert bound + (1 << pre_shift >> 1) <= INT32_MAX
    error = worst_error(dyadic, factor, samples(bound, factor), LIMIT)
    assert error <= Fraction(float(dyadic.error_bound(factor, bound, LIMIT)))


@given(factor=factors(-30, -1), bound=st.integers(1 << 15, 1 << 26))
def test_narrow_saturation_is_never_seen_after_the_clamp(factor: float, bound: int) -> None:
    """With unbounded u the clamped result is the same."""
    try:
        dyadic = choose_narrow(factor, bound, LIMIT)
    except VerificationError:
        return
    k, m, s = (int(p) for p in (dyadic.pre_shift, dyadic.multiplier, dyadic.shift))
    saturating = [x for x in (32767 << k, (32768 << k) + 1, -(32769 << k)) if abs(x) <= bound]
    a = torch.cat([samples(bound, factor), torch.tensor(saturating, dtype=torch.int32)])
    y = REQUANTIZE["narrow"](a, dyadic.pre_shift, dyadic.multiplier, dyadic.shift)
    for integer, result in zip(a.tolist(), y.tolist(), strict=True):
        u = (integer + (1 << k >> 1)) >> k
        unbounded = (((u * m + (1 << 14)) >> 15) + (1 << s >> 1)) >> s
        assert min(max(result, -LIMIT), LIMIT) == min(max(unbounded, -LIMIT), LIMIT)


@given(factor=factors(-30, -6), bound=st.integers(0, 1 << 30))
def test_narrow_always_serves_ordinary_8_bit_outputs_within_the_default_tolerance(factor: float, bound: int) -> None:
    assert choose(factor, bound).form == "narrow"


@pytest.mark.parametrize("form", ["high", "narrow", "exact64"])
@pytest.mark.parametrize("factor", [0.5, 0.3, 1 / 3, 0.0123456, 2.0**-9, 0.0019, 0.00077])
def test_error_bound_holds_for_every_integer(form: str, factor: float) -> None:
    bound = 20_000
    dyadic = choose(factor, bound, form)
    a = torch.arange(-bound, bound + 1, dtype=torch.int32)
    y = REQUANTIZE[form](a, dyadic.pre_shift, dyadic.multiplier, dyadic.shift)
    # y - a * factor in units of 1 / denominator, all integers: exact.
    numerator, denominator = Fraction(factor).numerator, Fraction(factor).denominator
    limit = LIMIT * denominator
    errors = [
        abs(min(max(result * denominator, -limit), limit) - min(max(integer * numerator, -limit), limit))
        for integer, result in zip(a.tolist(), y.tolist(), strict=True)
    ]
    assert Fraction(max(errors), denominator) <= Fraction(float(dyadic.error_bound(factor, bound, LIMIT)))


@given(factor=factors(-64, 30), bound=bounds)
def test_exact64_keeps_the_contract_and_its_bound(factor: float, bound: int) -> None:
    dyadic = choose_exact64(factor)
    assert int(dyadic.pre_shift) == 0 and 0 <= int(dyadic.shift) <= 62
    assert int(dyadic.multiplier) == 0 or (1 << 30) <= int(dyadic.multiplier) < (1 << 31)
    assert worst_error(dyadic, factor, samples(bound, factor), None) <= Fraction(float(dyadic.error_bound(factor, bound)))


@given(factor=st.one_of(st.just(0.0), factors(-80, 16)), bound=bounds)
def test_auto_finds_a_form_for_every_factor(factor: float, bound: int) -> None:
    dyadic = choose(factor, bound)
    error = worst_error(dyadic, factor, samples(bound, factor), LIMIT)
    claimed = Fraction(float(dyadic.error_bound(factor, bound, LIMIT)))
    assert error <= claimed
    if dyadic.form == "narrow":
        assert claimed <= Fraction(1, 2) + Fraction(0.02)


def test_parameters_are_int32_of_the_shape_of_the_factors() -> None:
    factor = torch.tensor([0.001, 0.3, 0.0]).double().reshape(3, 1, 1)
    for form in ("auto", "high", "narrow", "exact64"):
        dyadic = choose(factor, 1000, form)
        for parameter in (dyadic.pre_shift, dyadic.multiplier, dyadic.shift):
            assert parameter.dtype == torch.int32 and parameter.shape == (3, 1, 1)
        assert int(dyadic.multiplier[2]) == 0
        assert torch.allclose(dyadic.factor(), factor, rtol=2.0**-14, atol=0)


def test_a_single_factor_takes_the_largest_bound_of_the_channels() -> None:
    dyadic = choose_high(2.0, [3, 1 << 22, 7])
    assert dyadic.multiplier.shape == ()
    assert (1 << 22) << int(dyadic.pre_shift) < 1 << 31


def test_per_channel_choice_is_the_choice_of_each_channel() -> None:
    reals, limits = [0.0017, 0.9, 2.0**-20, 0.0], [1 << 20, 255, 1 << 28, 9]
    for form in ("high", "narrow", "exact64"):
        together = choose(reals, limits, form)
        for i, (real, bound) in enumerate(zip(reals, limits, strict=True)):
            alone = choose(real, bound, form)
            assert [int(p[i]) for p in (together.pre_shift, together.multiplier, together.shift)] == [
                int(p) for p in (alone.pre_shift, alone.multiplier, alone.shift)
            ]


@pytest.mark.parametrize(
    ("factor", "exponent"), [(1 - 2.0**-53, 0), (2.0**-9 * (1 - 2.0**-20), -9), (2.0**-9, -9), (1 - 2.0**-16, 0)], ids=str
)
def test_multipliers_that_round_up_to_a_power_of_two_are_carried(factor: float, exponent: int) -> None:
    dyadic = choose_high(factor, 1000) if factor != 1 - 2.0**-16 else choose_narrow(2.0**-9 * factor, 1000)
    real = factor if factor != 1 - 2.0**-16 else 2.0**-9 * factor
    assert float(dyadic.factor()) == pytest.approx(real, rel=2.0**-15)


def test_a_channel_nobody_can_see_gets_multiplier_zero() -> None:
    dyadic = choose([1e-12, 0.01], [1000, 1000], "high")
    assert dyadic.multiplier.tolist()[0] == 0
    assert float(dyadic.error_bound([1e-12, 0.01], [1000, 1000])[0]) == pytest.approx(1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choose_high(8.0, 1 << 30), "cannot multiply integers up to 1073741824 by 8"),
        (lambda: choose_narrow([0.1, 1.5], 1000), r"by 1.5 \(entry 1\): use the form 'auto'"),
        (lambda: choose(0.1, 1000, "low"), "unknown form of requantization 'low'"),
        (lambda: choose(-0.1, 1000), "finite and not negative"),
        (lambda: choose(float("nan"), 1000), "finite and not negative"),
        (lambda: choose(0.1, 1 << 31), "proven to fit int32"),
        (lambda: choose_exact64(2.0**40), "cannot multiply"),
        (lambda: choose_residual(1e9, 255, 1.0, 255), "requantize the operands first"),
    ],
)
def test_what_cannot_be_represented_is_refused(call: object, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        call()  # type: ignore[operator]


operands = st.tuples(st.one_of(st.just(0.0), factors(-36, 6)), st.one_of(st.sampled_from((0, 127, 255)), st.integers(0, 1 << 24)))


@settings(deadline=None)
@given(a=operands, b=operands)
def test_residual_keeps_32_bits_and_its_bound(a: tuple[float, int], b: tuple[float, int]) -> None:
    (factor_a, bound_a), (factor_b, bound_b) = a, b
    if bound_a * factor_a + bound_b * factor_b > 2.0**28:
        return
    dyadic = choose_residual(factor_a, bound_a, factor_b, bound_b)
    la, ma, lb, mb = (int(p) for p in (dyadic.pre_shift_a, dyadic.multiplier_a, dyadic.pre_shift_b, dyadic.multiplier_b))
    assert ma % 2 == 0 and mb % 2 == 0 and 0 <= ma < 1 << 31 and 0 <= mb < 1 << 31
    assert bound_a << la < 1 << 31 and bound_b << lb < 1 << 31 and 1 <= dyadic.shift <= 30
    claimed = Fraction(float(dyadic.error_bound(factor_a, bound_a, factor_b, bound_b)))
    for x in samples(bound_a, factor_a).tolist()[::2]:
        for y in (-bound_b, -1, 0, bound_b // 3, bound_b):
            total = (((x << la) * ma) >> 32) + (((y << lb) * mb) >> 32)
            assert total >= -(1 << 31) and total + (1 << (dyadic.shift - 1)) < 1 << 31
            result = (total + (1 << (dyadic.shift - 1))) >> dyadic.shift
            assert abs(result - (x * Fraction(factor_a) + y * Fraction(factor_b))) <= claimed


def test_residual_of_8_bit_operands_is_within_a_ten_thousandth_of_rounding() -> None:
    dyadic = choose_residual(0.71, 255, 0.33, 255)
    assert float(dyadic.error_bound(0.71, 255, 0.33, 255)) < 0.5001
    a, b = torch.meshgrid(torch.arange(-255, 256, dtype=torch.int32), torch.arange(-255, 256, dtype=torch.int32), indexing="ij")
    y = residual_add(a, b, dyadic.pre_shift_a, dyadic.multiplier_a, dyadic.pre_shift_b, dyadic.multiplier_b, dyadic.shift)
    assert float((y - (0.71 * a.double() + 0.33 * b.double())).abs().max()) <= 0.5001


def test_residual_per_channel_shares_the_shift() -> None:
    factor = torch.tensor([1e-3, 1e-9, 0.0]).double().reshape(3, 1, 1)
    dyadic = choose_residual(factor, 1 << 22, 0.3, 255)
    assert dyadic.multiplier_a.shape == (3, 1, 1) and dyadic.multiplier_b.shape == ()
    own_a, own_b = dyadic.factors()
    assert torch.allclose(own_a, factor, rtol=0, atol=2.0**-32) and float(own_b) == pytest.approx(0.3, rel=2.0**-29)
