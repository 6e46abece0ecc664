"""Products, clamps, look-ups, dilation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.arithmetic import clamp, dilate, lookup, multiply
from qcompiler.errors import VerificationError


def test_multiply_covers_every_pair_of_8_bit_integers() -> None:
    a = torch.arange(256, dtype=torch.uint8)[:, None]
    b = torch.arange(-128, 128, dtype=torch.int8)
    y = multiply(a, b, 255, -128)
    assert y.dtype == torch.int32
    assert torch.equal(y, (torch.arange(256)[:, None] - 255).mul(torch.arange(256)).int())


@given(value=st.integers(0, 255), low=st.integers(-(1 << 40), 255), span=st.integers(0, 1 << 41))
def test_clamp_with_bounds_past_the_dtype(value: int, low: int, span: int) -> None:
    high = max(low + span, 0)
    y = clamp(torch.tensor([value], dtype=torch.uint8), low, high)
    assert y.dtype == torch.uint8 and y.item() == min(max(value, low), high)


@pytest.mark.parametrize(("low", "high"), [(5, 4), (256, 300), (-9, -1)])
def test_clamp_to_nothing_is_refused(low: int, high: int) -> None:
    with pytest.raises(VerificationError, match=r"no torch\.uint8 value lies in"):
        clamp(torch.zeros(1, dtype=torch.uint8), low, high)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_lookup_reaches_every_entry(dtype: torch.dtype) -> None:
    low = torch.iinfo(dtype).min
    x = torch.arange(low, low + 256, dtype=torch.int32).to(dtype).reshape(1, 2, 8, 16)
    table = torch.arange(256, dtype=torch.int32).flip(0) * 3
    assert torch.equal(lookup(x, table).flatten(), table)


def test_lookup_per_channel_uses_the_row_of_its_channel() -> None:
    x = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    table = torch.stack([torch.arange(256) + 1000 * c for c in range(3)]).int()
    assert torch.equal(lookup(x, table), x.int() + 1000 * torch.arange(3, dtype=torch.int32)[:, None])


@pytest.mark.parametrize("factor", [(1, 1), (2, 2), (3, 1), (1, 4)])
def test_dilate_then_convolve_is_a_transposed_convolution(factor: tuple[int, int]) -> None:
    x = torch.arange(24).reshape(1, 2, 3, 4).to(torch.int8)
    y = dilate(x, factor, 0)
    assert y.dtype == torch.int8 and y.shape[-2:] == (2 * factor[0] + 1, 3 * factor[1] + 1)
    weight = torch.arange(2 * 3 * 9).reshape(2, 3, 3, 3).double() - 20
    transposed = F.conv_transpose2d(x.double(), weight, stride=factor)
    flipped = weight.transpose(0, 1).flip(2, 3)
    assert torch.equal(F.conv2d(y.double(), flipped, padding=2), transposed)


def test_dilate_fills_with_the_value() -> None:
    assert dilate(torch.tensor([[1, 2]], dtype=torch.uint8), (2, 3), 9).tolist() == [[1, 9, 9, 2]]
