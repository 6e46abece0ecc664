"""Reciprocals and quotients by Newton's method, without a division instruction.

Source of the iteration: Newton-Raphson on 1/f with a linear start, e.g. Warren, Hacker's Delight, 10-14.
"""

from __future__ import annotations

import torch
from torch import Tensor

RECIPROCAL_START = 47747  # of the line 47747 - f that the Newton steps start from
RECIPROCAL_STEPS = 2
DIVISION_STEPS = 2
LARGEST_FRACTION = 28  # fraction bits of a quotient: the last shift stays positive for a divisor of 1


def bit_length(x: Tensor) -> Tensor:
    """Number of bits of positive integers below 2^53: floor(log2 x) + 1, exact because frexp reads the exponent."""
    return torch.frexp(x.to(torch.float64)).exponent


def newton_reciprocal(f: Tensor) -> Tensor:
    """2^29 / f for f in [2^14, 2^15], within 2 units; two Newton steps from a line. Fits int32 throughout."""
    y = RECIPROCAL_START - f
    for _ in range(RECIPROCAL_STEPS):
        y = (y * (65536 - ((f * y) >> 14))) >> 15
    return y


def wide_reciprocal(f: Tensor) -> Tensor:
    """2^61 / f for int64 f in [2^30, 2^31), within 8 units below: Newton's 15 bits, then two steps in 64 bits."""
    y = newton_reciprocal(f >> 16) << 16
    for _ in range(DIVISION_STEPS):
        y = (y * (((1 << 62) - f * y) >> 31)) >> 30
    return y


def divide(x: Tensor, divisor: Tensor, fraction_bits: int) -> Tensor:
    """``x 2^fraction_bits / divisor`` to the nearest, int32; x int32, divisors in [1, 2^31), which broadcast.

    With b the bit length of the divisor, f = divisor << (31 - b) and r ~ 2^61 / f::

        y = (x r + 2^(k-1)) >> k        k = 30 + b - fraction_bits

    Only the product with r needs 64 bits for each element (its high half is one instruction); r is computed once for each divisor.
    Within ``1/2 + |quotient| 2^-27`` of the real quotient. The result must fit int32 (the verifier proves it).
    """
    wide = divisor.to(torch.int64).reshape(divisor.shape or (1,))
    length = bit_length(wide).to(torch.int64)
    reciprocal = wide_reciprocal(wide << (31 - length))
    shift = 30 + length - fraction_bits
    rounding = torch.ones_like(shift) << (shift - 1)
    return ((x.to(torch.int64) * reciprocal + rounding) >> shift).to(torch.int32).reshape(torch.broadcast_shapes(x.shape, divisor.shape))
