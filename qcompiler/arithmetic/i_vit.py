r"""I-ViT's integer functions as the paper's code has them: Shiftmax, ShiftGELU, I-LayerNorm.

Source: Li and Gu, "I-ViT: Integer-only Quantization for Efficient Vision Transformer Inference" (arXiv 2207.01405, sections 3.3 to
3.5), and its code, ``models/quantization_utils/quant_modules.py`` (classes IntSoftmax, IntGELU, IntLayerNorm). That code simulates
integers in float32, which rounds those above 2^24; here they are exact. Constants, order of floors and clamps are the code's.

The exponential of p <= 0 steps of a scale S, with x0 = floor(-1 / S)::

    p' = max(p + floor(p / 2) - floor(p / 16), n x0)        q = floor(p' / x0)        r = p' - x0 q
    e  = floor((r / 2 - x0) 2^(n - q))                      ~ e^(S p) |x0| 2^n
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.errors import VerificationError

SHIFTMAX_BITS = 15  # n of Shiftmax
SHIFT_GELU_BITS = 23  # n of ShiftGELU
SIGMOID_SLOPE = 1.702  # GELU(x) ~ x sigmoid(1.702 x)
SIGMOID_BITS = 8
LARGEST_FACTOR = (1 << 31) - 1
ROOT_START = 1 << 16
ROOT_ITERATIONS = 10
_MOST_SHIFT = 40  # of int64: what is shifted further has left int32 long before


def exponent_step(scale: float, n: int) -> int:
    """``x0 = floor(-1 / S)``. Raises VerificationError where ``|x0| 2^n`` does not fit int32."""
    step = math.floor(-1.0 / scale)
    check_step(step, n)
    return step


def check_step(step: int, n: int) -> None:
    """The largest exponential is ``|x0| 2^n``: it must fit int32."""
    if not (step < 0 < n < 31 and -step << n <= LARGEST_FACTOR):
        raise VerificationError(
            f"I-ViT's exponential with x0 = {step} and n = {n} leaves int32, so no form of I-ViT has a scale as small: use shift or poly"
        )


def shift_exponential(p: Tensor, step: int, n: int) -> Tensor:
    """e of the module's formula, int64; p <= 0 gives 1..|x0| 2^n. A positive p saturates somewhere above 2^31."""
    p = p.to(torch.int64)
    p = (p + (p >> 1) - (p >> 4)).clamp(min=n * step)
    quotient = torch.div(p, step, rounding_mode="floor")
    remainder = p - step * quotient
    return ((remainder - 2 * step) << (n - quotient).clamp(max=_MOST_SHIFT)) >> 1


def shiftmax(differences: Tensor, kept: Tensor | None, constants: Sequence[int], bits: int) -> Tensor:
    """``floor(e floor((2^31 - 1) / min(sum e, 2^31 - 1)) / 2^(32 - bits))`` of differences x - max(x) <= 0, scale ``2^(1 - bits)``.

    e and the last product fit int32; the sum, one for each row, needs 47 bits before it is clamped.
    """
    step, n = constants
    exponentials = shift_exponential(differences, step, n)
    if kept is not None:
        exponentials = torch.where(kept, exponentials, 0)
    total = exponentials.sum(dim=-1, keepdim=True).clamp(1, LARGEST_FACTOR)
    return (exponentials * (LARGEST_FACTOR // total)) >> (32 - bits)


def shift_gelu(x: Tensor, constants: Sequence[int]) -> Tensor:
    """``x sigmoid`` with the sigmoid of ``1.702 x`` from exponentials relative to the maximum of each row (last dimension).

    sigmoid = ``floor(e floor((2^31 - 1) / min(e + e_max, 2^31 - 1)) / 2^(32 - bits))``, e of x - max(x) and e_max of -max(x).
    x is centred on its zero point; the result has the scale ``S 2^(1 - bits)``.
    """
    step, n, bits = constants
    wide = x.to(torch.int64)
    largest = wide.amax(dim=-1, keepdim=True)
    exponentials = shift_exponential(wide - largest, step, n)
    total = (exponentials + shift_exponential(-largest, step, n)).clamp(max=LARGEST_FACTOR)
    sigmoid = (exponentials * torch.div(LARGEST_FACTOR, total, rounding_mode="floor")) >> (32 - bits)
    return (wide * sigmoid).to(torch.int32)


def normalize(x: Tensor, centre: bool) -> Tensor:
    """I-LayerNorm before its affine part: ``floor(y floor((2^31 - 1) / std) / 2)``, scale ``sqrt(N) 2^-30``; int64 rows in and out.

    y = x - round(mean); std by ten steps ``k = floor((k + floor(sum y^2 / k)) / 2)`` from 2^16, which is no less than the root's floor,
    hence ``|y| floor((2^31 - 1) / std) < 2^31``. The sum of squares of 16-bit inputs needs up to 47 bits, one value for each row.
    """
    y = x - rounded_mean(x) if centre else x
    power = (y * y).sum(dim=-1, keepdim=True)
    root = torch.full_like(power, ROOT_START)
    for _ in range(ROOT_ITERATIONS):
        root = (root + power // root) >> 1
    return (y * (LARGEST_FACTOR // root)) >> 1


def rounded_mean(x: Tensor) -> Tensor:
    """Mean of the last dimension, half to even as torch.round; int64, dimension kept."""
    length, total = x.shape[-1], x.sum(dim=-1, keepdim=True)
    doubled = 2 * total + length
    mean = torch.div(doubled, 2 * length, rounding_mode="floor")
    return mean - ((mean * 2 * length == doubled) & (mean % 2 == 1)).to(torch.int64)
