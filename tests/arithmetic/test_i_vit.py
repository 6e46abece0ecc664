"""I-ViT's functions against the published code written again in float64 numpy, which holds all of its integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompiler.arithmetic import nonlinear, nonlinear_parameters, normalize, softmax, softmax_parameters, softmax_scale
from qcompiler.arithmetic.i_vit import check_step, exponent_step
from qcompiler.errors import VerificationError

Floats = NDArray[np.float64]
LARGEST = 2.0**31 - 1


def exponential_as_published(x: Floats, scale: float, n: int) -> Floats:
    """IntSoftmax.int_exp_shift and IntGELU.int_exp_shift."""
    x = x + np.floor(x / 2) - np.floor(x / 2**4)
    x0 = np.floor(-1.0 / scale)
    x = np.maximum(x, n * x0)
    q = np.floor(x / x0)
    r = x - x0 * q
    return np.maximum(np.floor((r / 2 - x0) * 2.0 ** (n - q)), 0)


def shiftmax_as_published(x: Floats, scale: float, bits: int) -> Floats:
    e = exponential_as_published(x - x.max(-1, keepdims=True), scale, 15)
    total = np.minimum(e.sum(-1, keepdims=True), LARGEST)
    return np.floor(e * np.floor(LARGEST / total) / 2 ** (31 - bits + 1))


def shift_gelu_as_published(x: Floats, scale: float, bits: int = 8) -> Floats:
    largest = x.max(-1, keepdims=True)
    e = exponential_as_published(x - largest, scale * 1.702, 23)
    total = np.minimum(e + exponential_as_published(-largest, scale * 1.702, 23), LARGEST)
    sigmoid = np.floor(e * np.floor(LARGEST / total) / 2 ** (31 - bits + 1))
    return x * sigmoid


def layer_norm_as_published(x: Floats) -> Floats:
    """IntLayerNorm up to its affine part."""
    y = x - np.round(x.mean(-1, keepdims=True))
    variance = (y**2).sum(-1, keepdims=True)
    k = np.full_like(variance, 2.0**16)
    for _ in range(10):
        k = np.floor((k + np.floor(variance / k)) / 2)
    return np.floor(y * np.floor(LARGEST / k) / 2)


rows_8_bit = st.lists(st.integers(-128, 127), min_size=1, max_size=200)
rows_16_bit = st.lists(st.integers(-32768, 32767), min_size=1, max_size=200)


@given(rows_8_bit, st.floats(4e-5, 3.0), st.sampled_from([4, 8, 16]))
def test_shiftmax(row: list[int], scale: float, bits: int) -> None:
    _, constants = softmax_parameters("shiftmax", scale)
    result = softmax(torch.tensor([row], dtype=torch.int8), None, None, "shiftmax", constants, bits)
    assert result[0].tolist() == shiftmax_as_published(np.array(row, dtype=np.float64), scale, bits).tolist()
    assert softmax_scale("shiftmax", bits) == 2.0 ** -(bits - 1)


def test_shiftmax_of_all_differences_and_of_long_rows() -> None:
    x = torch.stack([torch.full((256,), 127), 127 - torch.arange(256)], -1).to(torch.int8)
    for scale in np.linspace(1e-3, 0.5, 60):
        _, constants = softmax_parameters("shiftmax", float(scale))
        expected = shiftmax_as_published(x.double().numpy(), float(scale), 8)
        assert softmax(x, None, None, "shiftmax", constants, 8).tolist() == expected.tolist()
    row = torch.zeros(1, 4096, dtype=torch.int8)  # its sum passes 2^31 and is clamped
    _, constants = softmax_parameters("shiftmax", 1e-3)
    assert softmax(row, None, None, "shiftmax", constants, 8).tolist() == shiftmax_as_published(row.double().numpy(), 1e-3, 8).tolist()


@given(rows_8_bit, st.floats(0.0035, 1.5))
def test_shift_gelu(row: list[int], scale: float) -> None:
    constants, output_scale = nonlinear_parameters("gelu", "shift-gelu", scale)
    result = nonlinear(torch.tensor(row, dtype=torch.int8), 0, "gelu", "shift-gelu", constants)
    assert result.tolist() == shift_gelu_as_published(np.array(row, dtype=np.float64), scale).tolist()
    assert output_scale == pytest.approx(scale / 128)


@given(rows_16_bit)
def test_layer_norm(row: list[int]) -> None:
    result = normalize(torch.tensor(row, dtype=torch.int16), 0, 0, True, "i-layernorm")
    assert result.tolist() == layer_norm_as_published(np.array(row, dtype=np.float64)).tolist()


def test_means_halfway_round_to_even() -> None:
    rows = torch.tensor([[0, 1], [1, 2], [-1, 0], [-2, -1]], dtype=torch.int16)
    expected = layer_norm_as_published(rows.double().numpy())
    assert normalize(rows, 0, 0, True, "i-layernorm").tolist() == expected.tolist()


def test_layer_norm_of_the_largest_rows_fits_int32() -> None:
    row = torch.full((1, 8192), -32768, dtype=torch.int16)
    row[:, ::2] = 32767
    result = normalize(row, 0, 0, True, "i-layernorm")
    assert result.tolist() == layer_norm_as_published(row.double().numpy()).tolist()
    assert normalize(torch.full((1, 64), 5), 0, 0, True, "i-layernorm").abs().max() == 0


def test_scales_whose_exponentials_leave_int32_are_refused() -> None:
    assert exponent_step(0.0040, 23) == -250
    with pytest.raises(VerificationError, match="x0 = -500 and n = 23 leaves int32"):
        nonlinear_parameters("gelu", "shift-gelu", 0.002 / 1.702)
    with pytest.raises(VerificationError, match="leaves int32"):
        check_step(0, 15)
