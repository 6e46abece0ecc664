from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import VerificationError
from qcompiler.ir.types import INT8, INT16, INT32, UINT8, IntegerRange, IntegerType, Precision, QuantizedType


def test_bounds_and_names_of_the_common_types() -> None:
    assert [(str(kind), kind.low, kind.high) for kind in (INT8, UINT8, INT16, INT32)] == [
        ("i8", -128, 127),
        ("u8", 0, 255),
        ("i16", -32768, 32767),
        ("i32", -(1 << 31), (1 << 31) - 1),
    ]


@given(st.integers(1, 32), st.booleans())
def test_storage_holds_every_value(bits: int, signed: bool) -> None:
    if not signed and bits > 16:
        return
    kind = IntegerType(bits, signed)
    limits = torch.iinfo(kind.dtype)
    assert limits.min <= kind.low and kind.high <= limits.max
    assert kind.high - kind.low == (1 << bits) - 1


@pytest.mark.parametrize(("bits", "signed"), [(0, True), (33, True), (17, False), (-1, False)])
def test_types_that_do_not_exist_are_rejected(bits: int, signed: bool) -> None:
    with pytest.raises(VerificationError, match="no integer type has"):
        IntegerType(bits, signed)


def test_ranges() -> None:
    assert IntegerRange(-3, 5).union(IntegerRange(0, 9)) == IntegerRange(-3, 9)
    assert IntegerRange(-3, 5).intersection(IntegerRange(0, 9)) == IntegerRange(0, 5)
    assert IntegerRange(0, 255).within(UINT8) and not IntegerRange(-1, 255).within(UINT8)
    assert str(IntegerRange(-3, 9)) == "[-3, 9]"


@pytest.mark.parametrize(
    ("scale", "zero_point", "axis", "message"),
    [
        ((), (0,), None, "positive and finite"),
        ((0.0,), (0,), None, "positive and finite"),
        ((float("inf"),), (0,), None, "positive and finite"),
        ((float("nan"),), (0,), None, "positive and finite"),
        ((1.0, 2.0), (0, 0, 0), 0, "2 scales but 3 zero points"),
        ((1.0, 2.0), (0,), None, "2 scales need an axis"),
    ],
)
def test_quantized_types_that_mean_nothing_are_rejected(
    scale: tuple[float, ...], zero_point: tuple[int, ...], axis: int | None, message: str
) -> None:
    with pytest.raises(VerificationError, match=message):
        QuantizedType(INT8, scale, zero_point, axis)


def test_a_proven_range_is_kept_beside_the_scale() -> None:
    kind = QuantizedType(UINT8, (0.5,), (3,))
    assert kind.with_range(1, 9) == QuantizedType(UINT8, (0.5,), (3,), range=IntegerRange(1, 9))
    assert not kind.per_channel and QuantizedType(INT8, (0.5, 1.0), axis=0).per_channel


@pytest.mark.parametrize("bits", [{"weight": 0}, {"weight": 9}, {"activation": 17}])
def test_a_precision_says_which_widths_there_are(bits: dict[str, int]) -> None:
    with pytest.raises(VerificationError, match=r"use 1\.\."):
        Precision(**bits)
    assert Precision(weight=4) == Precision(4, None)


@pytest.mark.parametrize("quantized", [QuantizedType(UINT8, (0.5,), (3,)), QuantizedType(INT8, (0.5, 0.25), (0,), 1)])
def test_the_arguments_of_quantize_say_the_whole_type(quantized: QuantizedType) -> None:
    assert QuantizedType.from_arguments(*quantized.arguments) == quantized
