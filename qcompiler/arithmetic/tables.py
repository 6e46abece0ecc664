"""Look-up tables: a float function of an 8-bit integer, rounded exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qcompiler.errors import VerificationError

if TYPE_CHECKING:
    from qcompiler.ir.types import QuantizedType


def build_table(function: Callable[[Tensor], Tensor], input: QuantizedType, output: QuantizedType, rounding: str = "nearest") -> Tensor:
    """``table[q - q_low] = clamp(rint(f(scale_in * (q - zero_point_in)) / scale_out) + zero_point_out, low, high)``.

    ``q`` runs over all 256 values of the input's storage dtype. ``function`` is evaluated in float64; the quotient is taken in
    rational numbers and rounded half to even (``rounding`` "floor": down), so the table is the exact rounding of that float64 function.
    Shape [256], or [C, 256] for an input quantized per channel. Infinite values saturate.

    Raises VerificationError for inputs wider than 8 bits, outputs per channel, and functions that give NaN or another shape.
    """
    if input.integer.bits > 8:
        raise VerificationError(f"a table needs an input of at most 8 bits, got {input.integer}: quantize it to 8 bits")
    if output.per_channel:
        raise VerificationError("the output of a table has one scale: quantize it per tensor")
    limits = torch.iinfo(input.integer.dtype)
    integers = torch.arange(limits.min, limits.max + 1, dtype=torch.float64)
    scale = torch.tensor(input.scale, dtype=torch.float64)[:, None]
    zero_point = torch.tensor(input.zero_point, dtype=torch.float64)[:, None]
    reals = scale * (integers - zero_point)
    values = function(reals)
    if values.shape != reals.shape or values.isnan().any():
        raise VerificationError("the function of a table must give one number for every input: it gave NaN or another shape")
    entries = [_round(value, output, rounding) for value in values.reshape(-1).tolist()]
    table = torch.tensor(entries, dtype=output.integer.dtype).reshape(reals.shape)
    return table if input.per_channel else table[0]


def _round(value: float, output: QuantizedType, rounding: str) -> int:
    low, high = output.integer.low, output.integer.high
    if math.isinf(value):
        return high if value > 0 else low
    quotient = Fraction(value) / Fraction(output.scale[0])
    return min(max((round(quotient) if rounding == "nearest" else math.floor(quotient)) + output.zero_point[0], low), high)
