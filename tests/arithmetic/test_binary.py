"""Weights of one bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler import arithmetic

rows = st.lists(st.floats(-4.0, 4.0, width=32, allow_subnormal=False), min_size=1, max_size=6)


def test_the_sign_of_zero_is_plus_one() -> None:
    found = arithmetic.binarize(torch.tensor([-2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0]))
    assert found.dtype is torch.int8 and found.tolist() == [-1, -1, 1, 1, 1, 1]


@given(rows, st.floats(0.0, 8.0))
def test_no_signs_and_scale_have_a_smaller_squared_error(row: list[float], other: float) -> None:
    weight = torch.tensor(row, dtype=torch.float64)
    scale = float(arithmetic.binary_scale(weight, None))  # rounded to float32: d = 2^-23 from the best, where the parabola rises by 6 d^2
    error = float((weight - scale * arithmetic.binarize(weight)).square().sum())
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * len(row)).reshape(-1, len(row))
    for tried in (other, scale):
        assert error <= float((weight - tried * signs).square().sum(1).min()) + 1e-12


@pytest.mark.parametrize("axis", [0, 1, None])
def test_a_scale_is_the_mean_magnitude(axis: int | None) -> None:
    weight = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    others = [dim for dim in range(3) if dim != axis]
    expected = weight.abs().mean(others)
    found = arithmetic.binary_scale(weight, axis)
    assert found.dtype is torch.float32 and found.shape == (1 if axis is None else weight.shape[axis],)
    torch.testing.assert_close(found, expected.reshape(-1))


def test_channels_without_weights_have_a_scale_that_means_nothing() -> None:
    assert arithmetic.binary_scale(torch.tensor([[8.0, -8.0], [0.0, 0.0]]), 0).tolist() == [8.0, 2.0**-37]
    assert arithmetic.binary_scale(torch.zeros(2, 3), 0).tolist() == [2.0**-40] * 2


@pytest.mark.parametrize(("integers", "expected"), [([1, -1, 1], True), ([1, 0], False), ([-1, 2], False), ([-1], True), ([], False)])
def test_the_integers_say_whether_a_weight_is_binary(integers: list[int], expected: bool) -> None:
    assert arithmetic.is_binary(torch.tensor(integers, dtype=torch.int8)) is expected
