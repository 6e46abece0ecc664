from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from qcompiler.capture.onnx.minifloats import MINIFLOATS, rounded

TYPES = {
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}


@pytest.mark.parametrize("element_type", TYPES)
def test_rounds_as_the_type_itself(element_type: int) -> None:
    """Every number of 8 bits, the ties between neighbours, and numbers of all magnitudes."""
    dtype, kind = TYPES[element_type], MINIFLOATS[element_type]
    numbers = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype).float()
    numbers = numbers[numbers.isfinite()].sort().values
    ties = (numbers[1:] + numbers[:-1]) / 2
    torch.manual_seed(0)
    others = torch.randn(20_000) * torch.logspace(-8, 6, 20_000)
    x = torch.cat([numbers, ties, others]).clamp(-kind.largest, kind.largest)
    assert torch.equal(rounded(x, kind), x.to(dtype).float())


def test_four_bits_and_saturation() -> None:
    x = torch.tensor([0.2, 0.25, 0.3, 0.75, 2.5, 5.0, 7.0, -1e9, float("inf")])
    assert rounded(x, MINIFLOATS[TensorProto.FLOAT4E2M1]).tolist() == [0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 6.0, -6.0, 6.0]


@pytest.mark.parametrize("element_type", TYPES)
def test_without_saturation_as_the_type_itself(element_type: int) -> None:
    """Infinity and NaN in place of what is beyond the largest number; half a step beyond it still rounds to it."""
    dtype, kind = helper.tensor_dtype_to_np_dtype(element_type), MINIFLOATS[element_type]
    largest = kind.largest
    x = torch.tensor([largest, 1.01 * largest, 2 * largest, -1e9, float("inf"), float("nan"), 1.0])
    expected = x.numpy().astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(rounded(x, kind, saturate=False).numpy(), expected)
