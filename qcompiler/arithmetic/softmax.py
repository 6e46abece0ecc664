"""Integer softmax over the last dimension: table exponential, reciprocal of the row sum by integer Newton steps, no division.

With d = max(x) - x, e = table[d], S = sum(e), b = bit length of S and L = 2^bits - 1::

    f = (S << (31 - b)) >> 16                 in [2^14, 2^15)
    y = 47747 - f;  twice  y = (y * (65536 - ((f * y) >> 14))) >> 15        y ~ 2^29 / f
    p = clamp((((e * y) >> 15) * L + 2^(b-2)) >> (b - 1), 0, L)             ~ L * e / S

Every intermediate fits int32 for rows of at most 65,536 elements: e <= 2^15 - 1, y <= 2^15 + 2, and L <= 2^16 - 1.
Source of the reciprocal: Newton-Raphson on 1/f with a linear start, e.g. Warren, Hacker's Delight, 10-14.
"""

from __future__ import annotations

import torch

EXPONENT_BITS = 15
MAXIMUM_ROW = 1 << 16
TABLE_ENTRIES = 256
RECIPROCAL_START = 47747  # of the line 47747 - f that the Newton steps start from
RECIPROCAL_STEPS = 2


def exponential_table(scale: float) -> torch.Tensor:
    """int32 [256]: round((2^15 - 1) * exp(-scale * d)) for a difference of d steps of ``scale`` below the row's maximum."""
    differences = torch.arange(TABLE_ENTRIES, dtype=torch.float64)
    return torch.round(((1 << EXPONENT_BITS) - 1) * torch.exp(-scale * differences)).to(torch.int32)


def bit_length(x: torch.Tensor) -> torch.Tensor:
    """Number of bits of positive integers below 2^53: floor(log2 x) + 1, exact because frexp reads the exponent."""
    return torch.frexp(x.to(torch.float64)).exponent


def softmax(x: torch.Tensor, table: torch.Tensor, bits: int) -> torch.Tensor:
    """Probabilities as unsigned integers of ``bits`` bits (1..16) and scale 1 / (2^bits - 1); x is 8-bit, any zero point."""
    wide = x.to(torch.int64)
    differences = wide.amax(dim=-1, keepdim=True) - wide
    exponentials = table.to(torch.int64)[differences]
    total = exponentials.sum(dim=-1, keepdim=True)
    length = bit_length(total).to(torch.int64)
    reciprocal = newton_reciprocal((total << (31 - length)) >> 16)
    high = (1 << bits) - 1
    scaled = ((exponentials * reciprocal) >> 15) * high
    rounded = (scaled + (torch.ones_like(length) << (length - 2))) >> (length - 1)
    return rounded.clamp(0, high).to(torch.uint8 if bits <= 8 else torch.int32)


def newton_reciprocal(f: torch.Tensor) -> torch.Tensor:
    """2^29 / f for f in [2^14, 2^15), within 2 units; two Newton steps from a line."""
    y = RECIPROCAL_START - f
    for _ in range(RECIPROCAL_STEPS):
        y = (y * (65536 - ((f * y) >> 14))) >> 15
    return y
