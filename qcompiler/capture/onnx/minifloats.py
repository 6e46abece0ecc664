"""Floats of 8 and 4 bits, as programs hold them: float32 values that have one of their numbers.

With m bits of mantissa, the least exponent e of a normal number and the largest number L, reals round half to even at the step of their
binade, and saturate (ONNX, "Float stored in 8 bits"):

    y = clamp(rint(x / s) s, -L, L)        s = 2^(k - m) for 2^k <= |x| < 2^(k + 1), k >= e;  s = 2^(e - m) below 2^e

Without saturation what is beyond L becomes infinite, or NaN where the format has no infinity.

No stage after FLOAT has such numbers: integers of 8 bits have one step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from onnx import TensorProto
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from qcompiler.capture.onnx.model import ElementType


@dataclass(frozen=True)
class Minifloat:
    """``mantissa``: stored bits; ``exponent``: of the least normal number; ``largest``: finite number; ``beyond``: what follows it."""

    mantissa: int
    exponent: int
    largest: float
    beyond: float = math.nan


MINIFLOATS: Mapping[ElementType, Minifloat] = {
    TensorProto.FLOAT8E4M3FN: Minifloat(3, -6, 448.0),
    TensorProto.FLOAT8E4M3FNUZ: Minifloat(3, -7, 240.0),
    TensorProto.FLOAT8E5M2: Minifloat(2, -14, 57344.0, math.inf),
    TensorProto.FLOAT8E5M2FNUZ: Minifloat(2, -15, 57344.0),
    TensorProto.FLOAT4E2M1: Minifloat(1, 0, 6.0),
}


def rounded(x: Tensor, kind: Minifloat, saturate: bool = True) -> Tensor:
    """The nearest numbers of the format, in float32."""
    with _disable_current_modes():
        binades = range(kind.exponent, math.frexp(kind.largest)[1])
        starts = torch.tensor([0.0, *(2.0**k for k in binades[1:])])
        steps = torch.tensor([2.0 ** (k - kind.mantissa) for k in binades])
    reached = torch.ge(torch.abs(x).unsqueeze(-1), starts).to(torch.float32)
    step = torch.amax(reached * steps, -1)
    nearest = torch.round(x / step) * step
    if saturate:
        return torch.clamp(nearest, -kind.largest, kind.largest)
    return torch.where(torch.gt(torch.abs(nearest), kind.largest), nearest * kind.beyond, nearest)
