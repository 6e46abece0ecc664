from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.arithmetic.hadamard import block_of, hadamard, hadamard_matrix, is_order, small_order

# All below 120 but 92 and 116, which take a search (Williamson).
ORDERS = [1, 2, *(order for order in range(4, 120, 4) if order not in (92, 116))]


@pytest.mark.parametrize("order", [*ORDERS, 172 * 2, 384, 768])
def test_rows_are_orthogonal(order: int) -> None:
    matrix = hadamard_matrix(order).to(torch.int64)
    assert bool((matrix.abs() == 1).all())
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.int64))


@pytest.mark.parametrize("order", [0, 3, 6, 92, 116, 172])
def test_orders_without_a_construction(order: int) -> None:
    assert not is_order(order)
    with pytest.raises(ValueError, match=f"of order {order} is known"):
        hadamard_matrix(order)


def test_the_smallest_factor_is_taken() -> None:
    assert {order: small_order(order) for order in (64, 192, 384, 768, 1536, 3072, 640, 28)} == {
        64: 1,
        192: 12,
        384: 12,
        768: 12,
        1536: 12,
        3072: 12,
        640: 20,
        28: 28,
    }


@pytest.mark.parametrize(("channels", "block"), [(192, 192), (11008, 11008), (92, 4), (100, 100), (35, 1), (6, 2), (4096, 4096)])
def test_the_largest_block_that_divides(channels: int, block: int) -> None:
    assert block_of(channels) == block


def test_blocks_that_kernels_compute() -> None:
    """688 = 2 x 344: the matrix of order 344 is not written out; 43 is left."""
    assert {channels: block_of(channels, online=True) for channels in (688, 11008, 768, 12, 8, 92)} == {
        688: 16,
        11008: 256,
        768: 768,
        12: 4,
        8: 8,
        92: 4,
    }


@settings(max_examples=30)
@given(
    block=st.sampled_from([2, 4, 12, 16, 20, 24, 28, 36, 96, 128]), blocks=st.integers(1, 3), zero_point=st.integers(0, 255), data=st.data()
)
def test_transform_is_the_product_with_the_matrix(block: int, blocks: int, zero_point: int, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 1000))
    x = torch.randint(0, 256, (2, 3, blocks * block), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    want = (x.to(torch.int64) - zero_point).reshape(2, 3, blocks, block) @ hadamard_matrix(block).to(torch.int64)
    got = hadamard(x, block, zero_point)
    assert got.dtype == torch.int32
    assert torch.equal(got.to(torch.int64), want.reshape(x.shape))
    floats = hadamard(x.float() - zero_point, block)
    assert torch.equal(floats.to(torch.int64), want.reshape(x.shape))  # sums of few small integers: float32 is exact


@pytest.mark.parametrize("order", [4, 16, 64, 256, 8, 128, 12, 20, 24, 192, 384, 1536])
def test_a_constant_is_spread(order: int) -> None:
    """Its energy, order^2 in all, would be sqrt(order) everywhere at best; the matrices' sums are whole and even."""
    sums = hadamard(torch.ones(1, order, dtype=torch.int8), order)
    assert int(sums.to(torch.int64).square().sum()) == order**2
    assert float(sums.abs().max()) < 1.7 * order**0.5


def test_transform_of_sixteen_bits_at_its_ends() -> None:
    x = torch.full((1, 1024), -32768, dtype=torch.int32)
    assert hadamard(x * hadamard_matrix(1024)[:, 0], 1024)[0, 0].item() == -(1 << 25)


def test_blocks_must_fit() -> None:
    with pytest.raises(ValueError, match="6 channels in blocks of 4"):
        hadamard(torch.zeros(2, 6), 4)
