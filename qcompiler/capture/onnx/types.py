"""Element types of ONNX and the dtypes of torch that hold them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from onnx import TensorProto

from qcompiler.errors import CaptureError

# 4- and 2-bit integers are held in the next larger dtype; torch has no floats of 4 bits.
_DTYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.INT4: torch.int8,
    TensorProto.UINT4: torch.uint8,
    TensorProto.INT2: torch.int8,
    TensorProto.UINT2: torch.uint8,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    TensorProto.FLOAT8E8M0: torch.float8_e8m0fnu,
    TensorProto.FLOAT4E2M1: torch.float32,
}


def dtype_of(element_type: int, what: str) -> torch.dtype:
    """The dtype that holds values of an ONNX element type.

    Raises:
        CaptureError: strings, complex numbers and the like; the message starts with ``what``.
    """
    found = _DTYPES.get(element_type)
    if found is None:
        known = element_type in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(element_type).lower() if known else f"unknown ({element_type})"
        raise CaptureError(f"{what} has the type {name}: tensors must hold floats, whole numbers or booleans")
    return found


def traced_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a program computes values of ``dtype``: float32 for every float, since stage FLOAT has no other."""
    return torch.float32 if dtype.is_floating_point else dtype
