"""I-BERT's functions against the published code written again: float64 numpy, Python integers where 53 bits are too few."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompiler.arithmetic import nonlinear, nonlinear_parameters, normalize, softmax, softmax_parameters, softmax_scale
from qcompiler.arithmetic.i_bert import integer_root
from qcompiler.errors import VerificationError

Floats = NDArray[np.float64]


def exponential_as_published(x: int, scale: float, n: int = 30) -> int:
    """IntSoftmax.int_exp of one integer x <= 0; its scale is 0.35815147 scale^2 / 2^n."""
    a, b, c = 0.35815147, 0.96963238 / 0.35815147, 1.0 / 0.35815147
    x0 = math.floor(-0.6931 / scale)
    x = max(x, 30 * x0)
    q = math.floor(x / x0)
    r = x - x0 * q
    z = r * (r + math.floor(b / scale)) + math.floor(c / scale**2)
    assert a > 0
    return max(z, 0) * 2**n // 2**q


def softmax_as_published(row: list[int], scale: float, bits: int) -> list[int]:
    """IntSoftmax; its QuantAct(16) with the range that every row reaches: the exponential of 0."""
    exponentials = [exponential_as_published(x - max(row), scale) for x in row]
    ratio = 32767 / exponential_as_published(0, scale)
    mantissa, exponent = math.frexp(ratio)
    m, e = math.floor(mantissa * 2**31 + 0.5), 31 - exponent
    fine = [(x * m * 2 + (1 << e)) >> (e + 1) for x in exponentials]
    factor = 2**32 // sum(fine)
    return [x * factor // 2 ** (32 - bits) for x in fine]


def erf_as_published(x: Floats, scale: float, n: int) -> Floats:
    """IntGELU.int_erf; its scale is scale^2 (-0.2888) 2^n."""
    b, c = np.floor(-1.769 / scale), np.floor(1 / -0.2888 / scale**2)
    y = np.sign(x) * ((np.minimum(np.abs(x), -b) + b) ** 2 + c)
    return np.floor(y / 2.0**n)


def gelu_as_published(x: Floats, scale: float, n: int) -> tuple[Floats, float]:
    """Integers and scale of IntGELU; both are negative."""
    erf_scale = (scale / 1.4142) ** 2 * -0.2888 * 2.0**n
    return x * (erf_as_published(x, scale / 1.4142, n) + np.floor(1.0 / erf_scale)), scale * erf_scale / 2


def layer_norm_as_published(x: Floats) -> Floats:
    """IntLayerNorm up to its affine part, with shift 0; floor(2^31 / (std + 0.0001)) in exact fractions."""
    y = x - np.round(x.mean(-1, keepdims=True))
    std = math.isqrt(int((y**2).sum()))
    factor = min(2**31 * 10000 // (std * 10000 + 1), 2**31 - 1)
    return np.floor(y * factor / 2)


rows_8_bit = st.lists(st.integers(-128, 127), min_size=1, max_size=100)
rows_16_bit = st.lists(st.integers(-32768, 32767), min_size=1, max_size=100)


@given(rows_8_bit, st.floats(1e-3, 0.69), st.sampled_from([4, 8, 16]))
def test_softmax(row: list[int], scale: float, bits: int) -> None:
    _, constants = softmax_parameters("i-softmax", scale)
    result = softmax(torch.tensor([row], dtype=torch.int8), None, None, "i-softmax", constants, bits)
    assert result[0].tolist() == softmax_as_published(row, scale, bits)
    assert softmax_scale("i-softmax", bits) == 2.0**-bits


def test_softmax_of_all_differences() -> None:
    for scale in np.linspace(2e-3, 0.5, 25):
        _, constants = softmax_parameters("i-softmax", float(scale))
        for difference in range(0, 256, 5):
            row = [127, 127 - difference]
            result = softmax(torch.tensor([row], dtype=torch.int8), None, None, "i-softmax", constants, 8)
            assert result[0].tolist() == softmax_as_published(row, float(scale), 8)


@given(rows_16_bit, st.floats(7e-5, 0.01))
def test_gelu_of_16_bits(row: list[int], scale: float) -> None:
    bound = max(abs(x) for x in row) or 1
    try:
        constants, output_scale = nonlinear_parameters("gelu", "i-gelu", scale, bound)
    except VerificationError:
        assert scale < 2e-4  # the product of x leaves int32
        return
    expected, expected_scale = gelu_as_published(np.array(row, dtype=np.float64), scale, constants[2])
    result = nonlinear(torch.tensor(row, dtype=torch.int16), 0, "gelu", "i-gelu", constants)
    assert result.tolist() == (-expected).tolist()
    assert output_scale == pytest.approx(-expected_scale)


def test_n_of_the_erf_is_14_as_published_where_the_input_is_fine_enough() -> None:
    assert nonlinear_parameters("gelu", "i-gelu", 8 / 32767, 32767)[0][2] == 14
    assert nonlinear_parameters("gelu", "i-gelu", 0.05, 128)[0][2] == 0


@pytest.mark.parametrize("scale", [0.004, 0.02, 0.05])
def test_erf_and_gelu_of_all_8_bit_inputs(scale: float) -> None:
    x = torch.arange(-128, 128, dtype=torch.int8)
    constants, output_scale = nonlinear_parameters("erf", "i-gelu", scale)
    result = nonlinear(x, 0, "erf", "i-gelu", constants)
    assert result.tolist() == (-erf_as_published(x.double().numpy(), scale, constants[2])).tolist()
    # The polynomial itself is off by 0.1 near 0 (the paper bounds GELU, where x multiplies it), the floors by less than 0.05.
    assert (result * output_scale - torch.erf(x.double() * scale)).abs().max() < 0.15
    constants, output_scale = nonlinear_parameters("gelu", "i-gelu", scale, 128)
    gelu = nonlinear(x, 0, "gelu", "i-gelu", constants) * output_scale
    assert (gelu - torch.nn.functional.gelu(x.double() * scale)).abs().max() < 0.025


@given(st.integers(-128, 127), st.floats(0.002, 0.1))
def test_exponential(x: int, scale: float) -> None:
    constants, output_scale = nonlinear_parameters("exp", "i-exp", scale, 127)
    n = constants[3]
    result = int(nonlinear(torch.tensor([x], dtype=torch.int8), 0, "exp", "i-exp", constants))
    assert result == exponential_as_published(x - 127, scale, n)
    # 1.9e-3 of the polynomial, 2 scale of the floors of x0, b and c.
    assert abs(result * output_scale - math.exp(x * scale)) <= (0.003 + 2.5 * scale) * math.exp(127 * scale)


@given(rows_16_bit)
def test_layer_norm(row: list[int]) -> None:
    result = normalize(torch.tensor(row, dtype=torch.int16), 0, 0, True, "i-bert")
    assert result.tolist() == layer_norm_as_published(np.array(row, dtype=np.float64)).tolist()


@given(st.integers(0, 2**50 - 1))
def test_integer_root(value: int) -> None:
    assert int(integer_root(torch.tensor([value]))) == math.isqrt(value)


def test_integer_root_at_all_squares_and_their_neighbours() -> None:
    roots = torch.cat([torch.arange(1, 1 << 20), torch.randint(1 << 20, 1 << 25, (100_000,), generator=torch.Generator().manual_seed(0))])
    for square, expected in ((roots**2, roots), (roots**2 - 1, roots - 1), (roots**2 + 1, roots)):
        assert torch.equal(integer_root(square), expected)


def test_scales_that_leave_int32_are_refused() -> None:
    with pytest.raises(VerificationError, match="leaves int32"):
        softmax_parameters("i-softmax", 1e-5)
    with pytest.raises(VerificationError, match="leaves int32"):
        nonlinear_parameters("gelu", "i-gelu", 1e-5)
