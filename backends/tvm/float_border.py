"""``arithmetic.quantize`` as an expression, of one element or of the lanes of a vector."""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Expr

from qcompiler.backends.tvm.extents import as_type


def quantized(x: Expr, reciprocal: Expr, zero_point: Expr, low: Expr | int, high: Expr | int) -> Expr:
    """``clamp(rint(x * reciprocal) + zero_point, low, high)`` as int32; all of float32, NaN as 0."""
    scaled = tirx.nearbyint(x * reciprocal)
    dtype = scaled.ty.dtype
    number = tirx.Select(tirx.isnan(scaled), tirx.const(0, dtype), scaled) + zero_point
    clamped = tirx.max(tirx.min(number, as_type(high, dtype)), as_type(low, dtype))
    return clamped.astype(str(dtype).replace("float32", "int32"))
