from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.arithmetic.exponential import MANTISSAS, ONE, base2_constants, check_base2, fixed_point, power
from qcompiler.errors import VerificationError

# docs/arithmetic.md, section 9: relative errors of the mantissas.
BOUNDS = {"shift": (-0.0058, 0.0128), "poly": (-0.00015, 0.00015)}
EXACT = ONE * 2.0 ** (-torch.arange(ONE, dtype=torch.float64) / ONE)


@pytest.mark.parametrize("form", MANTISSAS)
def test_every_mantissa_within_its_bound(form: str) -> None:
    fraction = torch.arange(ONE, dtype=torch.int32)
    mantissa = MANTISSAS[form](fraction)
    error = (mantissa - EXACT) / EXACT
    low, high = BOUNDS[form]
    assert low < float(error.min()) and float(error.max()) < high
    assert int(mantissa.min()) >= 1 << 14 and int(mantissa.max()) == ONE
    # The same integers without any width.
    assert torch.equal(mantissa, MANTISSAS[form](fraction.to(torch.int64)))


@pytest.mark.parametrize("form", MANTISSAS)
def test_mantissas_do_not_rise(form: str) -> None:
    assert int(MANTISSAS[form](torch.arange(ONE, dtype=torch.int32)).diff().max()) <= 0


@given(st.floats(1e-7, 1e4), st.sampled_from([17.0, 29.0]), st.sampled_from([255, 65535, 1 << 17]), st.data())
def test_fixed_point_is_the_product_and_fits_int32(factor: float, reach: float, largest: int, data: st.DataObject) -> None:
    constants = base2_constants(factor, reach, largest)
    check_base2(constants)
    multiplier, shift, limit = constants
    d = data.draw(st.integers(0, largest))
    z = int(fixed_point(torch.tensor([d]), constants))
    assert z == (min(d, limit) * multiplier + (1 << (shift - 1))) >> shift
    assert z >> 15 <= 30
    if d <= limit:
        real = d * min(factor, 30.0) * ONE
        assert abs(z - real) <= 0.5 + d * 2.0 ** (-shift - 1) + 1e-6 * real
    elif reach < 20 and largest == 65535:
        # What is clamped is next to nothing: at most one unit of 2^-15.
        assert int(power(torch.tensor([z], dtype=torch.int32), "poly")) <= 1


@pytest.mark.parametrize("form", MANTISSAS)
def test_powers_over_all_exponents(form: str) -> None:
    z = torch.arange(0, 31 * ONE, 97, dtype=torch.int32)
    exact = 2.0 ** (-z.double() / ONE)
    low, high = BOUNDS[form]
    for bits in (15, 30):
        error = power(z, form, bits) * 2.0**-bits - exact
        assert bool((error <= high * exact + 2.0 ** (-bits - 1)).all())
        assert bool((error >= low * exact - 2.0 ** (-bits - 1)).all())


@pytest.mark.parametrize("constants", [(1 << 30, 1, 3), (-1, 4, 5), (5, 0, 5), (1 << 20, 1, 1023), (1, 31, 1)])
def test_constants_that_leave_int32_are_refused(constants: tuple[int, int, int]) -> None:
    with pytest.raises(VerificationError, match="choose them by arithmetic"):
        check_base2(constants)


def test_tiny_and_huge_steps() -> None:
    assert fixed_point(torch.tensor([65535]), base2_constants(1e-7, 17.0, 65535)).tolist() == [round(65535e-7 * ONE)]
    assert fixed_point(torch.tensor([0, 1, 9]), base2_constants(1e6, 17.0, 65535)).tolist() == [0, 30 * ONE, 30 * ONE]
    assert math.isclose(base2_constants(0.05, 17.0, 65535)[0] * 2.0 ** -(15 + base2_constants(0.05, 17.0, 65535)[1]), 0.05, rel_tol=1e-5)
