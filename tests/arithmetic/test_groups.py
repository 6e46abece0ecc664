from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler import arithmetic


def random_codes(bits: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    high = (1 << (bits - 1)) - 1
    return torch.randint(-high, high + 1, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int8)


@given(st.integers(1, 4), st.integers(1, 23), st.integers(1, 9), st.integers(1, 3), st.integers(0, 1 << 30))
def test_each_weight_is_its_code_times_its_groups_factor(outputs: int, inputs: int, length: int, taps: int, seed: int) -> None:
    codes = random_codes(4, (outputs, inputs, taps), seed)
    factors = torch.randint(1, 19, (outputs, -(-inputs // length)), generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    weight = arithmetic.scale_groups(codes, factors, length)
    for n in range(outputs):
        for k in range(inputs):
            assert weight[n, k].tolist() == [int(code) * int(factors[n, k // length]) for code in codes[n, k]]


@given(st.sampled_from([2, 3, 4]))
def test_the_largest_factor_leaves_every_code_in_int8(bits: int) -> None:
    high, factor = (1 << (bits - 1)) - 1, arithmetic.largest_factor(bits)
    assert high * factor <= 127 < high * (factor + 1)


@given(st.sampled_from([2, 3, 4]), st.integers(1, 40), st.integers(1, 17), st.integers(0, 1 << 30))
def test_chosen_groups(bits: int, inputs: int, length: int, seed: int) -> None:
    """Codes and factors in their ranges, the error that is stated, and never a larger one than with the factor that clips nothing."""
    weight = torch.randn(3, inputs, generator=torch.Generator().manual_seed(seed))
    high, largest = (1 << (bits - 1)) - 1, arithmetic.largest_factor(bits)
    scale = weight.abs().amax(1) / (high * largest)
    codes, factors, error = arithmetic.choose_groups(weight, scale, bits, length)
    assert int(codes.abs().max()) <= high and 1 <= int(factors.min()) <= int(factors.max()) <= largest
    reals = arithmetic.scale_groups(codes, factors, length) * scale[:, None]
    torch.testing.assert_close((reals - weight).square().sum(1), error, rtol=1e-3, atol=1e-9)
    steps = weight / scale[:, None]
    padded = torch.nn.functional.pad(steps, (0, -inputs % length)).reshape(3, -1, length)
    covering = (padded.abs().amax(2) / high).round().clamp(1, largest)[..., None]
    covered = (padded / covering).round().clamp(-high, high) * covering
    assert bool((error <= (covered - padded).square().sum((1, 2)) * scale.square() * (1 + 1e-3) + 1e-9).all())
