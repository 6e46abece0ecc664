from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.arithmetic.reciprocal import LARGEST_FRACTION, divide, newton_reciprocal, wide_reciprocal


def test_reciprocal_over_its_whole_interval_fits_int32() -> None:
    f = torch.arange(1 << 14, (1 << 15) + 1)
    y = newton_reciprocal(f)
    assert (y - 2.0**29 / f.double()).abs().max() < 2
    assert int(y.max()) <= 1 << 15
    assert torch.equal(newton_reciprocal(f.to(torch.int32)).to(torch.int64), y)


def test_wide_reciprocal() -> None:
    f = torch.cat([torch.randint(1 << 30, 1 << 31, (200_000,), generator=torch.Generator().manual_seed(0)), torch.tensor([1 << 30])])
    f = torch.cat([f, torch.tensor([(1 << 31) - 1, (1 << 30) + 1])])
    error = wide_reciprocal(f).double() - 2.0**61 / f.double()
    assert float(error.min()) > -8 and float(error.max()) <= 0.5
    assert int(wide_reciprocal(f).max()) <= 1 << 31


@given(st.integers(-(2**31), 2**31 - 1), st.integers(1, 2**31 - 1), st.integers(0, LARGEST_FRACTION))
def test_quotients_are_within_their_bound(x: int, divisor: int, bits: int) -> None:
    quotient = (x << bits) / divisor
    if abs(quotient) > 2**31 - 64:
        return
    result = int(divide(torch.tensor([x], dtype=torch.int32), torch.tensor([divisor], dtype=torch.int32), bits))
    assert abs(result - quotient) <= 0.5 + abs(quotient) * 2.0**-27


def test_small_quotients_are_rounded_exactly() -> None:
    x, divisor = torch.arange(-4000, 4000, dtype=torch.int32)[:, None], torch.arange(1, 300, dtype=torch.int32)
    exact = torch.floor(x.double() / divisor.double() + 0.5)
    off = divide(x, divisor, 0) != exact
    # Ties may go either way, by the reciprocal's last bits.
    assert bool(((2 * x % divisor == 0) | ~off).all())


def test_divisors_broadcast() -> None:
    x = torch.arange(12, dtype=torch.int16).reshape(2, 2, 3)
    assert torch.equal(divide(x, torch.tensor(3, dtype=torch.int32), 0), divide(x, torch.full((2, 1, 1), 3, dtype=torch.int32), 0))
