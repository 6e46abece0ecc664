"""Integer normalization of rows, the core of LayerNorm and RMSNorm: (x - mean) / sqrt(variance + epsilon) without a rounded mean.

For a row of N integers (any scale and zero point z: both cancel)::

    LayerNorm:    c = N x - sum(x)      V = max(1, N sum(x^2) - sum(x)^2 + epsilon)      g = ceil(log2(N) / 2)
    RMSNorm, L2:  c = x - z             V = max(1, sum(c^2) + epsilon)                   g = 0

    w = V << 2j                         in [2^60, 2^62)
    r = 2^46 / sqrt(w >> 30)            by integer Newton steps, in [2^30, 2^31)
    t = c 2^(j - g)                     where j < g: rounded, half up
    y = (t r) >> 32                     ~ 2^(29 - g) c / sqrt(V)

No bit of a sum or of a deviation is dropped (but where j < g, beyond 2^-23 of the row's deviation), so y is within 2.25 units of the real
number: ``docs/arithmetic.md``, section 8. LayerNorm(x) = y 2^(g - 29) gamma + beta: one ``qc::add`` with a multiplier a channel.
"""

from __future__ import annotations

import math

import torch

from qcompiler.arithmetic import i_bert, i_vit
from qcompiler.arithmetic.reciprocal import bit_length

NORMALIZE_FORMS = ("newton", "i-layernorm", "i-bert")
OUTPUT_FRACTION_BITS = 29
# newton: |c| <= sqrt(V) 2^g, and r is at most 2^-29 too large; the papers' forms halve a product below 2^31.
OUTPUT_BOUND = (1 << OUTPUT_FRACTION_BITS) + 2
OUTPUT_BOUNDS = {"newton": OUTPUT_BOUND, "i-layernorm": 1 << 30, "i-bert": 1 << 30}
MAXIMUM_ROW = 1 << 13  # N sum(x^2) stays below 2^58 for differences of 16-bit integers
LARGEST_EPSILON = 1 << 61  # V stays below 2^62
POWER_BITS = 62  # of w
ROOT_START, ROOT_SLOPE = 2_290_062_000, 19_969  # of the line ROOT_START - (ROOT_SLOPE v >> 16) that the Newton steps start from
ROOT_STEPS = 4


def guard_bits(length: int, centre: bool) -> int:
    """g of the module's formula: |c| <= sqrt(V) 2^g, as one deviation alone can be sqrt(N - 1) times the root of their mean square."""
    return (length - 1).bit_length() + 1 >> 1 if centre else 0


def drops_bits(length: int, span: int, epsilon: int, centre: bool) -> bool:
    """Whether j < g for some row whose integers lie within ``span`` of each other: where V has more than 62 - 2g bits."""
    # The squares of N deviations are largest where half of the elements lie at either end.
    return centre and (length * span) ** 2 // 4 + epsilon >> (POWER_BITS - 2 * guard_bits(length, centre)) > 0


def integer_epsilon(epsilon: float, scale: float, length: int, centre: bool) -> int:
    """The epsilon of a LayerNorm (RMSNorm: ``centre`` false) in units of V, for an input of step ``scale``; at most LARGEST_EPSILON."""
    factor = length**2 if centre else length
    return min(round(factor * epsilon / scale**2), LARGEST_EPSILON)


def normalized_scale(form: str, length: int, centre: bool) -> float:
    """One unit of the result of ``normalize``, whose rows have unit length: times sqrt(N) it is LayerNorm before its affine part."""
    if form != "newton":
        return 2.0**-30
    unit = 2.0 ** (guard_bits(length, centre) - OUTPUT_FRACTION_BITS)
    return unit / math.sqrt(length) if centre else unit


def normalize(x: torch.Tensor, zero_point: int, epsilon: int, centre: bool, form: str) -> torch.Tensor:
    """int32 rows y of unit length, times ``normalized_scale``, over the last dimension; x of at most 16 bits.

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
    power = (wide * wide).sum(dim=-1, keepdim=True)
    if centre:
        total = wide.sum(dim=-1, keepdim=True)
        wide, power = wide * length - total, power * length - total * total
    power = (power + epsilon).clamp(min=1)
    even = (POWER_BITS - _bit_length(power)) >> 1
    root = reciprocal_square_root((power << (2 * even)) >> 30)
    lift = even - guard_bits(length, centre)
    drop = (-lift).clamp(min=0)
    rounding = (torch.ones_like(drop) << drop) >> 1
    scaled = ((wide << lift.clamp(min=0)) + rounding) >> drop
    return ((scaled * root) >> 32).to(torch.int32)


def _bit_length(x: torch.Tensor) -> torch.Tensor:
    """``bit_length`` of integers below 2^62, which float64 does not hold."""
    high = x >> 31
    return torch.where(high > 0, bit_length(high) + 31, bit_length(x & ((1 << 31) - 1))).to(torch.int64)


def reciprocal_square_root(v: torch.Tensor) -> torch.Tensor:
    """2^46 / sqrt(v) for int64 v in [2^30, 2^32): Newton steps y += y * (1 - v y^2 / 2^92) / 2. Less than 2^31.

    The line that starts them is within 8.6 %, so that four steps leave only their floors: it is off by less than 1.5, as all v show.
    """
    y = ROOT_START - ((ROOT_SLOPE * v) >> 16)
    for _ in range(ROOT_STEPS):
        square = (y * y) >> 31
        y = (y * ((3 << 30) - ((v * square) >> 31))) >> 31
    return y
