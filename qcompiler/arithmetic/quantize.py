"""The border between floats and integers: affine quantization, its inverse, and the choice of scale and zero point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qcompiler.errors import CalibrationError, VerificationError

if TYPE_CHECKING:
    from qcompiler.ir.types import IntegerType, QuantizedType

_WIDEST_QUANTIZED = 24  # bits: every such integer is a float32 value, so rounding and clamping in float32 are exact
_SMALLEST_SCALE = 2.0**-126  # the smallest normal float32: its reciprocal is finite


def quantize(x: Tensor, kind: QuantizedType) -> Tensor:
    """``q = clamp(rint(x * float32(1 / scale)) + zero_point, low, high)``, all in float32, ``rint`` rounding half to even.

    ``x`` is a float tensor; per channel the scales run along ``kind.axis``. Infinities saturate, NaN becomes the zero point.
    Raises VerificationError for integers of more than 24 bits, which float32 cannot hold.
    """
    if kind.integer.bits > _WIDEST_QUANTIZED:
        raise VerificationError(f"cannot quantize floats to {kind.integer}: float32 holds integers of at most {_WIDEST_QUANTIZED} bits")
    scale, zero_point = _parameters(x, kind)
    scaled = (x.to(torch.float32) * scale.reciprocal()).round_().nan_to_num_()
    return scaled.add_(zero_point).clamp_(kind.integer.low, kind.integer.high).to(kind.integer.dtype)


def dequantize(x: Tensor, kind: QuantizedType) -> Tensor:
    """``float32(q - zero_point) * float32(scale)``; the difference is exact for integers of up to 24 bits, else rounded once."""
    scale, zero_point = _parameters(x, kind)
    return (x.to(torch.int64) - zero_point.to(torch.int64)).to(torch.float32).mul_(scale)


def scale_and_zero_point(
    low: float | Sequence[float] | Tensor,
    high: float | Sequence[float] | Tensor,
    integer: IntegerType,
    symmetric: bool,
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Scale (a float32 value) and zero point for reals in [low, high], per tensor or per channel (then 1-d).

    Affine: the range is widened to contain 0, ``scale = (high - low) / (q_high - q_low)`` and ``zero_point = q_low - rint(low / scale)``,
    so that 0 is an integer exactly. Symmetric: ``scale = max(|low|, |high|) / q_positive`` around the middle of the type
    (0, or ``2^(bits-1)`` unsigned). A range of 0 alone has scale 1.

    Raises CalibrationError where the range is not finite or is empty.
    """
    pairs = list(zip(_as_list(low), _as_list(high), strict=True))
    for bottom, top in pairs:
        if not (math.isfinite(bottom) and math.isfinite(top) and bottom <= top):
            raise CalibrationError(f"no scale for the range [{bottom}, {top}]: it must be finite and not empty, check the calibration data")
    choose = _symmetric if symmetric else _affine
    chosen = [choose(bottom, top, integer) for bottom, top in pairs]
    return tuple(scale for scale, _ in chosen), tuple(zero_point for _, zero_point in chosen)


def _affine(low: float, high: float, integer: IntegerType) -> tuple[float, int]:
    low, high = min(low, 0.0), max(high, 0.0)
    scale = _float32_scale((high - low) / (integer.high - integer.low))
    zero_point = integer.low - round(low / scale)
    return scale, min(max(zero_point, integer.low), integer.high)


def _symmetric(low: float, high: float, integer: IntegerType) -> tuple[float, int]:
    middle = 0 if integer.signed else 1 << (integer.bits - 1)
    return _float32_scale(max(abs(low), abs(high)) / max(integer.high - middle, 1)), middle


def _float32_scale(scale: float) -> float:
    if scale == 0.0:
        return 1.0
    return max(float(torch.tensor(scale, dtype=torch.float32)), _SMALLEST_SCALE)


def _as_list(values: float | Sequence[float] | Tensor) -> list[float]:
    return [float(v) for v in torch.as_tensor(values, dtype=torch.float64).reshape(-1)]


def _parameters(x: Tensor, kind: QuantizedType) -> tuple[Tensor, Tensor]:
    """Scale and zero point as float32 tensors that broadcast against ``x``."""
    shape = [1] * x.dim()
    if kind.axis is not None:
        shape[kind.axis] = -1
    scale = torch.tensor(kind.scale, dtype=torch.float32, device=x.device)
    zero_point = torch.tensor(kind.zero_point, dtype=torch.float32, device=x.device)
    return scale.reshape(shape), zero_point.expand_as(scale).reshape(shape)
