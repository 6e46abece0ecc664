"""Integer normalization of rows, the core of LayerNorm and RMSNorm: (x - mean) / sqrt(sum (x - mean)^2 + epsilon) in Q29.

For a row of N integers (any scale and zero point: both cancel)::

    c = N * x - sum(x)                        exact: no mean is rounded   (RMSNorm: c = x)
    h = max(0, bit length of max|c| - B)      B: magnitude bits kept, so that N * 4^B <= 2^30
    d = (c + 2^(h-1)) >> h                    (h = 0: d = c)
    V = max(1, sum(d^2) + (epsilon >> 2h))
    k = the shift that brings V << 2k to 2^28 or more, below 2^31
    r = 2^33 / sqrt(V << 2k)                  by integer Newton steps
    y = d * ((r << k) >> 4)                   ~ 2^29 * d / sqrt(V)

LayerNorm(x) = y * sqrt(N) * 2^-29 * gamma + beta: the affine part is one ``qc::add`` with a multiplier a channel.
"""

from __future__ import annotations

import math

import torch

from qcompiler.arithmetic import i_bert, i_vit
from qcompiler.arithmetic.reciprocal import bit_length

NORMALIZE_FORMS = ("newton", "i-layernorm", "i-bert")
OUTPUT_FRACTION_BITS = 29
# newton: |d| <= sqrt(V), and the reciprocal root is at most 2^-28 too large; the papers' forms halve a product below 2^31.
OUTPUT_BOUND = (1 << OUTPUT_FRACTION_BITS) + 4
OUTPUT_BOUNDS = {"newton": OUTPUT_BOUND, "i-layernorm": 1 << 30, "i-bert": 1 << 30}
MAXIMUM_ROW = 1 << 13  # N * (x - mean) fits int32 for x - zero_point of 17 bits
LARGEST_EPSILON = 1 << 29  # in reduced units; beyond any sum of squares, it only has to stay there
ROOT_START = 488000  # of the line 488000 - 5 v / 2^15 that the Newton steps start from
ROOT_STEPS = 4


def magnitude_bits(length: int) -> int:
    """B of the module's formula: the most bits, 11 at most, for which the sum of ``length`` squares stays within 2^30."""
    return min(11, (30 - math.ceil(math.log2(length))) // 2)


def integer_epsilon(epsilon: float, scale: float, length: int, centre: bool) -> int:
    """The epsilon of a LayerNorm (RMSNorm: ``centre`` false) in squared units of c, for an input of step ``scale``."""
    factor = length**3 if centre else length
    return round(factor * epsilon / scale**2)


def normalized_scale(form: str) -> float:
    """One unit of the result of ``normalize``, whose rows have unit length: times sqrt(N) it is LayerNorm before its affine part."""
    return 2.0**-OUTPUT_FRACTION_BITS if form == "newton" else 2.0**-30


def normalize(x: torch.Tensor, zero_point: int, epsilon: int, centre: bool, form: str) -> torch.Tensor:
    """int32 rows y with y * normalized_scale(form) = c / sqrt(sum c^2 + epsilon), over the last dimension; x of at most 16 bits.

    ``newton`` is the module's formula; ``i-layernorm`` (I-ViT) and ``i-bert`` are the papers' functions, which know no epsilon.
    """
    wide = x.to(torch.int64) - zero_point
    if form == "i-layernorm":
        return i_vit.normalize(wide, centre).to(torch.int32)
    if form == "i-bert":
        return i_bert.normalize(wide, centre).to(torch.int32)
    return _normalize_newton(wide, epsilon, centre)


def _normalize_newton(wide: torch.Tensor, epsilon: int, centre: bool) -> torch.Tensor:
    length = wide.shape[-1]
    centred = wide * length - wide.sum(dim=-1, keepdim=True) if centre else wide
    shift = (bit_length(centred.abs().amax(dim=-1, keepdim=True)).to(torch.int64) - magnitude_bits(length)).clamp(min=0)
    rounding = (torch.ones_like(shift) << shift) >> 1
    reduced = (centred + rounding) >> shift
    reduced_epsilon = (torch.full_like(shift, epsilon) >> (2 * shift)).clamp(max=LARGEST_EPSILON)
    power = ((reduced * reduced).sum(dim=-1, keepdim=True) + reduced_epsilon).clamp(min=1)
    even = (30 - bit_length(power).to(torch.int64)).clamp(min=0) >> 1
    root = reciprocal_square_root(power << (2 * even))
    return (reduced * ((root << even) >> 4)).to(torch.int32)


def reciprocal_square_root(v: torch.Tensor) -> torch.Tensor:
    """2^33 / sqrt(v) for int64 v in [2^28, 2^31): Newton steps y += y * (1 - v y^2 / 2^66) / 2.

    The line that starts them is within 20 % on the whole interval, so that four steps leave only the last roundings.
    """
    y = ROOT_START - ((5 * v) >> 15)
    for _ in range(ROOT_STEPS):
        square = (y * y) >> 8
        y = (y * ((3 << 30) - ((v * square) >> 28))) >> 31
    return y
