"""The one-shift kernels against the stepwise formulas of the contract, on Python's unbounded integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.arithmetic import (
    REQUANTIZE,
    centre,
    requantize_exact64,
    requantize_high,
    requantize_narrow,
    residual_add,
    saturate,
)

INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1
EDGES = (0, 1, -1, 2, -2, 255, -255, INT32_MAX, INT32_MIN, INT32_MIN + 1, 1 << 30, -(1 << 30))

int32 = st.one_of(st.sampled_from(EDGES), st.integers(INT32_MIN, INT32_MAX))


def rounding_shift(value: int, shift: int) -> int:
    return value if shift == 0 else (value + (1 << (shift - 1))) >> shift


def high_step_by_step(a: int, pre_shift: int, multiplier: int, shift: int) -> int:
    assert INT32_MIN <= a << pre_shift <= INT32_MAX
    t = ((a << pre_shift) * multiplier) >> 32
    assert INT32_MIN <= t + (1 << (shift - 1)) <= INT32_MAX
    return rounding_shift(t, shift)


def narrow_step_by_step(a: int, pre_shift: int, multiplier: int, shift: int) -> int:
    u = min(max(rounding_shift(a, pre_shift), -(1 << 15)), (1 << 15) - 1)
    return rounding_shift((u * multiplier + (1 << 14)) >> 15, shift)


def exact64_step_by_step(a: int, multiplier: int, shift: int) -> int:
    assert abs(a * multiplier) + (1 << shift >> 1) < 1 << 63
    return rounding_shift(a * multiplier, shift)


def parameter(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int32)


def one(value: int) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.int32)


@given(
    pre_shift=st.integers(0, 30),
    a=int32,
    multiplier=st.one_of(st.just(0), st.sampled_from((1 << 30, (1 << 31) - 2)), st.integers(1 << 29, (1 << 30) - 1).map(lambda m: 2 * m)),
    shift=st.integers(1, 30),
)
def test_high_is_the_stepwise_formula(pre_shift: int, a: int, multiplier: int, shift: int) -> None:
    a >>= pre_shift
    y = requantize_high(one(a), parameter(pre_shift), parameter(multiplier), parameter(shift))
    assert y.item() == high_step_by_step(a, pre_shift, multiplier, shift)


@given(
    a=int32,
    pre_shift=st.integers(0, 30),
    multiplier=st.one_of(st.just(0), st.just(1 << 14), st.integers(0, (1 << 15) - 1)),
    shift=st.integers(0, 15),
)
def test_narrow_is_the_stepwise_formula(a: int, pre_shift: int, multiplier: int, shift: int) -> None:
    y = requantize_narrow(one(a), parameter(pre_shift), parameter(multiplier), parameter(shift))
    assert y.item() == narrow_step_by_step(a, pre_shift, multiplier, shift)


@given(a=int32, multiplier=st.one_of(st.sampled_from((0, 1, INT32_MAX)), st.integers(0, INT32_MAX)), shift=st.integers(0, 62))
def test_exact64_is_the_formula(a: int, multiplier: int, shift: int) -> None:
    y = requantize_exact64(one(a), parameter(0), parameter(multiplier), parameter(shift))
    assert y.item() == exact64_step_by_step(a, multiplier, shift)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("form", ["high", "narrow", "exact64"])
def test_every_dtype_and_a_dimensionless_parameter_give_int64(form: str, dtype: torch.dtype) -> None:
    """torch promotes with 0-dimensional tensors by other rules: the product must not be taken in the narrow type."""
    x = torch.tensor([[100, 7], [0, 99]], dtype=dtype)
    narrow = form == "narrow"
    y = REQUANTIZE[form](x, parameter(0), parameter((1 << 14) if narrow else (1 << 30)), parameter(1))
    assert y.dtype == torch.int64
    step = {
        "high": lambda a: high_step_by_step(a, 0, 1 << 30, 1),
        "narrow": lambda a: narrow_step_by_step(a, 0, 1 << 14, 1),
        "exact64": lambda a: exact64_step_by_step(a, 1 << 30, 1),
    }[form]
    assert y.tolist() == [[step(a) for a in row] for row in x.tolist()]


def test_parameters_per_channel_broadcast() -> None:
    a = torch.arange(-60, 60, dtype=torch.int32).reshape(2, 3, 4, 5) * 1000
    pre_shift = torch.tensor([0, 1, 4], dtype=torch.int32).reshape(3, 1, 1)
    multiplier = torch.tensor([1 << 30, 1500000002, 0], dtype=torch.int32).reshape(3, 1, 1)
    shift = torch.tensor([1, 5, 8], dtype=torch.int32).reshape(3, 1, 1)
    y = requantize_high(a, pre_shift, multiplier, shift)
    for c in range(3):
        expected = [high_step_by_step(v, int(pre_shift[c]), int(multiplier[c]), int(shift[c])) for v in a[:, c].flatten().tolist()]
        assert y[:, c].flatten().tolist() == expected


def test_kernels_leave_their_arguments_alone() -> None:
    a = torch.tensor([5, -7], dtype=torch.int32)
    parameters = [torch.tensor([v], dtype=torch.int32) for v in (1, 1 << 14, 2)]
    for kernel in REQUANTIZE.values():
        kernel(a, *parameters)
    wide = torch.tensor([5, -7])
    saturate(wide, 3, 0, 4, torch.uint8)
    assert a.tolist() == [5, -7] and wide.tolist() == [5, -7]
    assert [p.item() for p in parameters] == [1, 1 << 14, 2]


@given(
    y=st.lists(st.one_of(st.sampled_from((-(1 << 62), 1 << 62)), st.integers(-600, 600)), min_size=1, max_size=8),
    zero_point=st.integers(0, 255),
    bounds=st.tuples(st.integers(0, 255), st.integers(0, 255)),
)
def test_saturate(y: list[int], zero_point: int, bounds: tuple[int, int]) -> None:
    low, high = sorted(bounds)
    result = saturate(torch.tensor(y), zero_point, low, high, torch.uint8)
    assert result.dtype == torch.uint8
    assert result.tolist() == [min(max(v + zero_point, low), high) for v in y]


operand = st.tuples(int32, st.integers(0, 30), st.integers(0, (1 << 30) - 1))


@given(a=operand, b=operand, shift=st.integers(1, 30))
def test_residual_add_is_the_stepwise_formula(a: tuple[int, int, int], b: tuple[int, int, int], shift: int) -> None:
    halves = []
    operands: list[torch.Tensor] = []
    parameters: list[torch.Tensor] = []
    for value, pre_shift, half in (a, b):
        value >>= pre_shift
        halves.append(((value << pre_shift) * 2 * half) >> 32)
        operands.append(one(value))
        parameters += [parameter(pre_shift), parameter(2 * half)]
    y = residual_add(*operands, *parameters, shift)
    assert y.item() == rounding_shift(sum(halves), shift)


def test_residual_add_broadcasts_a_channel_against_a_tensor() -> None:
    a = torch.arange(24, dtype=torch.int32).reshape(2, 3, 2, 2) - 12
    b = torch.arange(24, dtype=torch.int32).reshape(2, 3, 2, 2).flip(0)
    multiplier = torch.tensor([1 << 30, (1 << 30) + 2, 0], dtype=torch.int32).reshape(3, 1, 1)
    y = residual_add(a, b, torch.zeros_like(multiplier), multiplier, parameter(3), parameter(1 << 30), 2)
    for index in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2), torch.arange(2)):
        i = tuple(index.tolist())
        t = ((int(a[i]) * int(multiplier[i[1]])) >> 32) + (((int(b[i]) << 3) << 30) >> 32)
        assert int(y[i]) == rounding_shift(t, 2)


@pytest.mark.parametrize(("dtype", "value"), [(torch.uint8, 0), (torch.uint8, 255), (torch.int8, -128), (torch.int16, -32768)])
def test_centre_is_int32(dtype: torch.dtype, value: int) -> None:
    y = centre(torch.tensor([value], dtype=dtype), 200 if dtype == torch.uint8 else 100)
    assert y.dtype == torch.int32
    assert y.item() == value - (200 if dtype == torch.uint8 else 100)
