"""Quantization is the float32 formula, checked with numpy's float32 scalars; scales contain zero."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.arithmetic import dequantize, quantize, scale_and_zero_point
from qcompiler.errors import CalibrationError, VerificationError
from qcompiler.ir.types import INT8, INT16, INT32, UINT8, IntegerType, QuantizedType

TYPES = (INT8, UINT8, INT16, IntegerType(4, True), IntegerType(4, False), IntegerType(16, False))
kinds = st.sampled_from(TYPES)
float32s = st.floats(width=32, allow_nan=False)
scales = st.floats(2.0**-40, 2.0**40, width=32)


@given(x=float32s, scale=scales, kind=kinds, fraction=st.floats(0, 1))
def test_quantize_is_the_float32_formula(x: float, scale: float, kind: IntegerType, fraction: float) -> None:
    zero_point = kind.low + int(fraction * (kind.high - kind.low))
    q = quantize(torch.tensor([x]), QuantizedType(kind, (scale,), (zero_point,)))
    with np.errstate(over="ignore"):
        rounded = np.rint(np.float32(x) * (np.float32(1) / np.float32(scale)))
        expected = np.clip(rounded + np.float32(zero_point), kind.low, kind.high)
    assert q.dtype == kind.dtype and q.item() == int(expected)


@given(q=st.integers(-128, 127), scale=scales, zero_point=st.integers(-128, 127))
def test_dequantize_is_one_float32_product(q: int, scale: float, zero_point: int) -> None:
    x = dequantize(torch.tensor([q], dtype=torch.int8), QuantizedType(INT8, (scale,), (zero_point,)))
    assert x.dtype == torch.float32 and x.item() == float(np.float32(q - zero_point) * np.float32(scale))


def test_dequantize_of_accumulators_rounds_the_integer_once() -> None:
    values = [(1 << 31) - 1, -(1 << 31), (1 << 24) + 1, (1 << 24) + 3, 0]
    x = dequantize(torch.tensor(values, dtype=torch.int32), QuantizedType(INT32, (0.5,)))
    assert x.tolist() == [float(np.float32(v) * np.float32(0.5)) for v in values]


@given(kind=kinds, scale=scales, fraction=st.floats(0, 1))
def test_integers_survive_the_way_out_and_back(kind: IntegerType, scale: float, fraction: float) -> None:
    zero_point = kind.low + int(fraction * (kind.high - kind.low))
    quantized = QuantizedType(kind, (scale,), (zero_point,))
    q = torch.linspace(kind.low, kind.high, 300).round().to(kind.dtype)
    assert torch.equal(quantize(dequantize(q, quantized), quantized), q)


def test_halves_go_to_even() -> None:
    q = quantize(torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5]), QuantizedType(INT8, (1.0,)))
    assert q.tolist() == [-2, 0, 0, 2, 2]


def test_what_is_no_number_becomes_zero_and_infinity_saturates() -> None:
    q = quantize(torch.tensor([math.nan, math.inf, -math.inf]), QuantizedType(UINT8, (0.1,), (7,)))
    assert q.tolist() == [7, 255, 0]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_per_channel_runs_along_its_axis(axis: int) -> None:
    x = torch.arange(-9, 18).reshape(3, 3, 3) * 0.37
    kind = QuantizedType(INT8, (0.5, 0.25, 2.0), (1, 0, -3), axis)
    q, back = quantize(x, kind), dequantize(quantize(x, kind), kind)
    for c in range(3):
        alone = QuantizedType(INT8, (kind.scale[c],), (kind.zero_point[c],))
        assert torch.equal(q.select(axis, c), quantize(x.select(axis, c), alone))
        assert torch.equal(back.select(axis, c), dequantize(q.select(axis, c), alone))


def test_one_zero_point_serves_all_channels() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert quantize(x, QuantizedType(UINT8, (1.0, 2.0), (5,), 0)).tolist() == [[6, 7], [7, 7]]


def test_more_than_24_bits_are_refused() -> None:
    with pytest.raises(VerificationError, match="cannot quantize floats to i32"):
        quantize(torch.zeros(1), QuantizedType(INT32, (1.0,)))


ranges = st.tuples(float32s, float32s).map(sorted).filter(lambda r: all(map(math.isfinite, r)))


@given(bounds=ranges, kind=kinds)
def test_affine_ranges_contain_zero_and_their_ends(bounds: list[float], kind: IntegerType) -> None:
    low, high = bounds
    (scale,), (zero_point,) = scale_and_zero_point(low, high, kind, symmetric=False)
    assert scale == float(np.float32(scale)) and kind.low <= zero_point <= kind.high
    # Rounding the zero point moves the range by half a step, rounding the scale by 2^-24 of a range of at most 2^16 steps.
    slack = 0.51 * scale
    assert scale * (kind.low - zero_point) <= min(low, 0.0) + slack
    assert scale * (kind.high - zero_point) >= max(high, 0.0) - slack


@given(bounds=ranges, kind=kinds)
def test_symmetric_ranges_are_centred(bounds: list[float], kind: IntegerType) -> None:
    low, high = bounds
    (scale,), (zero_point,) = scale_and_zero_point(low, high, kind, symmetric=True)
    assert zero_point == (0 if kind.signed else 1 << (kind.bits - 1))
    assert scale * (kind.high - zero_point) >= max(abs(low), abs(high)) * (1 - 2.0**-23)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 0.0, (1.0, 0)),
        (0.0, 255.0, (1.0, 0)),
        (3.0, 255.0, (1.0, 0)),
        (-255.0, -1.0, (1.0, 255)),
        (-1.0, 1.0, (float(np.float32(2 / 255)), 127)),
        (0.0, 1e-45, (2.0**-126, 0)),
    ],
)
def test_affine_examples(low: float, high: float, expected: tuple[float, int]) -> None:
    (scale,), (zero_point,) = scale_and_zero_point(low, high, UINT8, symmetric=False)
    assert (scale, zero_point) == expected


def test_scales_per_channel() -> None:
    scale, zero_point = scale_and_zero_point(torch.tensor([-127.0, 0.0]), torch.tensor([1.0, 254.0]), INT8, symmetric=True)
    assert scale == (1.0, 2.0) and zero_point == (0, 0)


@pytest.mark.parametrize("bounds", [(math.nan, 1.0), (0.0, math.inf), (2.0, 1.0)])
def test_ranges_without_a_scale_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(CalibrationError, match="must be finite and not empty"):
        scale_and_zero_point(*bounds, UINT8, symmetric=False)
