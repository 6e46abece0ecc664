from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.passes.reconstruct import twins

_qc = torch.ops.qc


@given(
    bits=st.integers(2, 16),
    signed=st.booleans(),
    scale=st.floats(2.0**-20, 2.0**4, width=32),
    zero_share=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_the_twins_are_the_ops(bits: int, signed: bool, scale: float, zero_share: float, seed: int) -> None:
    high = (1 << bits) - 1
    zero_point = round(zero_share * high) - ((high + 1) // 2 if signed else 0)
    x = torch.randn(200, generator=torch.Generator().manual_seed(seed)) * scale * high / 3.0
    parameters = ([scale], [zero_point], -1, bits, signed)
    expected = _qc.quantize(x, *parameters)
    for gradient in (False, True):  # with a gradient the integers come about by another way
        integers = twins.quantize(x.clone().requires_grad_(gradient), *parameters)
        assert torch.equal(integers, expected.to(torch.float32))
        assert torch.equal(twins.dequantize(integers, *parameters), _qc.dequantize(expected, *parameters))


def test_per_channel() -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    parameters = ([0.1, 0.2, 0.3], [1, 2, 3], 0, 4, False)
    expected = _qc.quantize(x, *parameters)
    integers = twins.quantize(x.requires_grad_(), *parameters)
    assert torch.equal(integers, expected.to(torch.float32))
    assert torch.equal(twins.dequantize(integers, *parameters), _qc.dequantize(expected, *parameters))


def test_the_gradient_passes_inside_the_range() -> None:
    x = torch.tensor([-2.0, -0.4, 0.0, 0.26, 0.7, 3.0], requires_grad=True)
    parameters = ([0.1], [8], -1, 4, False)  # reals from -0.8 to 0.7
    twins.dequantize(twins.quantize(x, *parameters), *parameters).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 0.0]))


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_roundings_are_left_out_at_random(probability: float) -> None:
    x = torch.linspace(-5.0, 5.0, 4001)
    parameters = ([0.5], [8], -1, 4, False)
    dropping = twins.Dropping(probability, torch.Generator().manual_seed(0))
    got = twins.dequantize(twins.quantize(x, *parameters, dropping=dropping), *parameters)
    rounded = twins.dequantize(twins.quantize(x, *parameters), *parameters)
    exact = torch.isclose(got, x, atol=1e-5)
    assert torch.equal(got[~exact], rounded[~exact])
    assert float((exact & (rounded - x).abs().gt(1e-3)).float().mean()) == pytest.approx(probability, abs=0.03)


def test_sixteen_bits_are_never_left_out() -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    parameters = ([0.001], [0], -1, 16, True)
    dropping = twins.Dropping(1.0, torch.Generator())
    assert torch.equal(twins.quantize(x, *parameters, dropping=dropping), twins.quantize(x, *parameters))


def test_unequal_steps_pass_on_the_gradient() -> None:
    boundaries, levels = [-1.0, 0.1, 0.5], [-2.0, 0.0, 0.25, 1.0]
    x = torch.tensor([-3.0, -1.0, 0.2, 0.5, 7.0], requires_grad=True)
    got = twins.decode(twins.encode(x, boundaries), levels)
    torch.testing.assert_close(got, torch.tensor([-2.0, 0.0, 0.25, 1.0, 1.0]))
    (got * torch.arange(1.0, 6.0)).sum().backward()
    assert torch.equal(x.grad, torch.arange(1.0, 6.0))
