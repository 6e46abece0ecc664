"""Tables are the exact rounding of a float64 function."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from qcompiler.arithmetic import build_table, dequantize, lookup
from qcompiler.errors import VerificationError
from qcompiler.ir.types import INT8, INT16, UINT8, IntegerType, QuantizedType

OUTPUT = QuantizedType(UINT8, (1 / 256,), (0,))


@pytest.mark.parametrize("integer", [INT8, UINT8])
@pytest.mark.parametrize("output", [OUTPUT, QuantizedType(INT16, (2.0**-15,)), QuantizedType(INT8, (0.003,), (-128,))])
def test_sigmoid_is_rounded_half_to_even(integer: IntegerType, output: QuantizedType) -> None:
    kind = QuantizedType(integer, (0.0625,), (integer.low + 100,))
    table = build_table(torch.sigmoid, kind, output)
    assert table.shape == (256,) and table.dtype == output.integer.dtype
    x = torch.arange(integer.low, integer.high + 1).to(integer.dtype)
    for integer_in, integer_out in zip(x.tolist(), lookup(x, table).tolist(), strict=True):
        real = float(torch.sigmoid(torch.tensor(0.0625 * (integer_in - integer.low - 100), dtype=torch.float64)))
        exact = round(Fraction(real) / Fraction(output.scale[0])) + output.zero_point[0]
        assert integer_out == min(max(exact, output.integer.low), output.integer.high)


def test_rounded_down() -> None:
    kind = QuantizedType(INT8, (0.5,), (3,))
    near, down = (build_table(torch.tanh, kind, QuantizedType(INT16, (2.0**-10,), (5,)), rounding) for rounding in ("nearest", "floor"))
    exact = torch.tanh(0.5 * (torch.arange(-128, 128).double() - 3)) * 1024
    assert torch.equal(down, (exact.floor() + 5).short()) and torch.equal(near, (exact.round() + 5).short())


def test_ties_that_a_float_quotient_would_miss() -> None:
    """Half a step exactly, for a scale that is no power of two: 2.5 * scale is a float64, 2.5 its exact quotient."""
    scale = float(torch.tensor(0.1, dtype=torch.float32))
    table = build_table(lambda x: 2.5 * scale + 0 * x, QuantizedType(INT8, (1.0,)), QuantizedType(INT8, (scale,)))
    assert set(table.tolist()) == {2}
    above = math.nextafter(2.5 * scale, 1)
    assert set(build_table(lambda x: above + 0 * x, QuantizedType(INT8, (1.0,)), QuantizedType(INT8, (scale,))).tolist()) == {3}


def test_infinite_values_saturate() -> None:
    table = build_table(torch.log, QuantizedType(UINT8, (1.0,)), QuantizedType(INT8, (0.01,)))
    assert table[0] == -128 and table[255] == 127
    assert build_table(lambda x: 1 / x.abs(), QuantizedType(INT8, (1.0,)), QuantizedType(INT8, (1.0,)))[128] == 127


def test_an_input_per_channel_gives_a_row_for_each() -> None:
    kind = QuantizedType(INT8, (0.1, 0.2), (0, 3), 1)
    table = build_table(torch.tanh, kind, QuantizedType(INT8, (1 / 128,)))
    assert table.shape == (2, 256)
    for c in range(2):
        alone = QuantizedType(INT8, (kind.scale[c],), (kind.zero_point[c],))
        assert torch.equal(table[c], build_table(torch.tanh, alone, QuantizedType(INT8, (1 / 128,))))


def test_identity_table_is_the_identity() -> None:
    kind = QuantizedType(UINT8, (0.25,), (13,))
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(lookup(x, build_table(lambda v: v, kind, kind)), x)
    assert torch.equal(dequantize(x, kind), 0.25 * (torch.arange(256) - 13))


@pytest.mark.parametrize(
    ("function", "input_kind", "output_kind", "message"),
    [
        (torch.sqrt, QuantizedType(INT8, (1.0,)), OUTPUT, "gave NaN"),
        (torch.sum, QuantizedType(INT8, (1.0,)), OUTPUT, "another shape"),
        (torch.sigmoid, QuantizedType(INT16, (1.0,)), OUTPUT, "at most 8 bits, got i16"),
        (torch.sigmoid, QuantizedType(INT8, (1.0,)), QuantizedType(INT8, (1.0, 2.0), (0,), 1), "per tensor"),
    ],
)
def test_what_has_no_table_is_refused(function: object, input_kind: QuantizedType, output_kind: QuantizedType, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        build_table(function, input_kind, output_kind)  # type: ignore[arg-type]
