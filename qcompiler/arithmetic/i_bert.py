r"""I-BERT's integer functions as the paper's code has them: i-exp, i-softmax, i-erf, i-GELU, LayerNorm by an integer square root.

Source: Kim et al., "I-BERT: Integer-only BERT Quantization" (arXiv 2101.01321, sections 3.4 to 3.6), and its code,
``fairseq/quantization/utils/quant_modules.py`` (classes IntSoftmax, IntGELU, IntLayerNorm). That code simulates integers in floating point;
here they are exact. Coefficients, order of floors and clamps are the code's, which differ a little from the paper's.

i-exp of p <= 0 steps of a scale S, with x0 = floor(-0.6931 / S), b = floor(2.7073 / S), c = floor(2.7921 / S^2)::

    p' = max(p, n x0)        q = floor(p' / x0)        r = p' - x0 q
    e  = floor((r (r + b) + c) 2^(n - q))                             ~ e^(S p) / (0.35815147 S^2) 2^n

i-erf, with b = floor(-1.769 / S), c = floor(1 / (-0.2888 S^2))::

    y = floor(sign(x) ((min(|x|, -b) + b)^2 + c) / 2^n)               ~ erf(S x) / (-0.2888 S^2 2^n)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.arithmetic.i_vit import rounded_mean
from qcompiler.errors import VerificationError

LOG_2 = 0.6931
EXPONENTIAL = (0.35815147, 0.96963238, 1.0)  # a x^2 + b x + c on [-ln 2, 0]
EXPONENTIAL_BITS = 30  # n of i-exp
SOFTMAX_HIGH = (1 << 15) - 1  # exponentials are requantized to 16 bits before they are added
ERF = (-0.2888, -1.769)  # a (x + b)^2 + 1
ERF_BITS = 14  # n of i-erf
ROOT_OF_2 = 1.4142
ROOT_STEPS = 6  # from a power of two within a factor of 2, for sums below 2^50
_COARSE_BITS = 12  # that the erf polynomial keeps where an input is too coarse for n = 14
_INT32_MAX = (1 << 31) - 1
_MOST_SHIFT = 62


def exponential_constants(scale: float) -> tuple[int, int, int]:
    """x0, b and c of i-exp. Raises VerificationError where c, its largest value, does not fit int32."""
    first, second, third = EXPONENTIAL
    constants = (math.floor(-LOG_2 / scale), math.floor(second / first / scale), math.floor(third / first / scale**2))
    check_exponential(constants)
    return constants


def check_exponential(constants: Sequence[int]) -> None:
    """``r (r + b) + c`` has to stay in [0, c] for every r in (x0, 0], and c in int32."""
    step, b, c = constants
    if not (step < 0 <= b and 0 < c <= _INT32_MAX):
        raise VerificationError(f"I-BERT's exponential with x0 = {step}, b = {b}, c = {c} leaves int32: use shift or poly")


def polynomial(p: Tensor, constants: Sequence[int], n: int) -> tuple[Tensor, Tensor]:
    """``r (r + b) + c``, at least 0, and q of the module's formula, int64, for p <= 0."""
    step, b, c = constants
    p = p.to(torch.int64).clamp(min=n * step)
    quotient = torch.div(p, step, rounding_mode="floor")
    remainder = p - step * quotient
    return (remainder * (remainder + b) + c).clamp(0, _INT32_MAX), quotient


def softmax_constants(scale: float) -> list[int]:
    """``[x0, b, c, m, s]``: i-exp, and the dyadic number m 2^-s ~ 32767 / c by which its results become 16 bits.

    The paper's code requantizes them by the range seen in calibration; its upper end is always e^0 = c, for each row has a maximum.
    """
    step, b, c = exponential_constants(scale)
    mantissa, exponent = math.frexp(SOFTMAX_HIGH / c)
    return [step, b, c, math.floor(mantissa * 2**31 + 0.5), 31 - exponent]


def softmax(differences: Tensor, kept: Tensor | None, constants: Sequence[int], bits: int) -> Tensor:
    """``floor(e floor(2^32 / sum e) / 2^(32 - bits))`` with e in 16 bits, of differences x - max(x) <= 0; scale ``2^-bits``.

    e = ``round(z m 2^-(s + q))``: the product of z <= c and the 31-bit m needs 62 bits, the paper's own ``e 2^30`` up to 61. Sums of e fit
    int32 for rows of at most 65,536, ``e floor(2^32 / sum e)`` 32 bits without sign.
    """
    *exponential, multiplier, shift = constants
    z, quotient = polynomial(differences, exponential, EXPONENTIAL_BITS)
    amount = (quotient + shift).clamp(max=_MOST_SHIFT)
    exponentials = (z * multiplier + ((torch.ones_like(amount) << amount) >> 1)) >> amount
    if kept is not None:
        exponentials = torch.where(kept, exponentials, 0)
    total = exponentials.sum(dim=-1, keepdim=True).clamp(min=1)
    return (exponentials * ((1 << 32) // total)) >> (32 - bits)


def exp_constants(scale: float, bound: int) -> tuple[list[int], float]:
    """``[x0, b, c, n, bound]`` for integers of at most ``bound``, and the scale of the result.

    n = 30 as in the paper would need 61 bits; n is the largest for which ``c 2^n`` fits int32.
    """
    step, b, c = exponential_constants(scale)
    n = 31 - c.bit_length()
    return [step, b, c, n, bound], math.exp(scale * bound) * EXPONENTIAL[0] * scale**2 / 2**n


def i_exp(x: Tensor, constants: Sequence[int]) -> Tensor:
    """``floor(z 2^(n - q))`` of x - bound, int32."""
    step, b, c, n, bound = constants
    z, quotient = polynomial((x.to(torch.int64) - bound).clamp(max=0), (step, b, c), EXPONENTIAL_BITS)
    return ((z << n) >> quotient).to(torch.int32)


def erf_constants(scale: float) -> tuple[int, int, int, float]:
    """b, c, n of i-erf and the (negative) scale of its result. n is 14 wherever c has 26 bits; coarser inputs keep 12 bits of c."""
    first, second = ERF
    b, c = math.floor(second / scale), math.floor(1 / first / scale**2)
    n = max(0, min(ERF_BITS, (-c).bit_length() - _COARSE_BITS))
    check_erf((b, c, n))
    return b, c, n, scale**2 * first * 2**n


def check_erf(constants: Sequence[int]) -> None:
    """``(|x| + b)^2 + c`` has to fit int32."""
    b, c, n = constants
    if not (b < 0 and c < 0 and 0 <= n < 31 and max(b * b, -c) <= _INT32_MAX):
        raise VerificationError(f"I-BERT's erf with b = {b}, c = {c}, n = {n} leaves int32: use shift or poly")


def i_erf(x: Tensor, constants: Sequence[int]) -> Tensor:
    """y of the module's formula, int64; its scale is negative."""
    b, c, n = constants
    wide = x.to(torch.int64)
    value = (wide.abs().clamp(max=-b) + b) ** 2 + c
    return (wide.sign() * value) >> n


def gelu_constants(scale: float, bound: int) -> tuple[list[int], float]:
    """``[b, c, n, one]`` of i-GELU, one = floor(1 / scale of i-erf), and the scale of the result, for ``|x| <= bound``.

    Raises VerificationError where the product ``x (y + one)`` leaves int32.
    """
    b, c, n, unit = erf_constants(scale / ROOT_OF_2)
    constants = [b, c, n, math.floor(1.0 / unit)]
    check_gelu(constants, bound)
    return constants, -scale * unit / 2


def check_gelu(constants: Sequence[int], bound: int) -> None:
    """``|x| (|y| + |one|)`` has to fit int32."""
    b, c, n, one = constants
    check_erf((b, c, n))
    if one > 0 or bound * largest_gelu_factor(constants) > _INT32_MAX:
        raise VerificationError(f"I-BERT's GELU of integers up to {bound} leaves int32 (c = {c}, n = {n}): use shift or poly")


def largest_gelu_factor(constants: Sequence[int]) -> int:
    """``|y| + |one|`` of i-GELU at most; y lies between both ends of ``sign (0..c) / 2^n``."""
    b, c, n, one = constants
    return max((-c >> n) + 1, (b * b + c) >> n) - one


def i_gelu(x: Tensor, constants: Sequence[int]) -> Tensor:
    """``-x (y + one)``, int32: the paper's product, whose scale is negative, with both signs turned."""
    *erf, one = constants
    return (-x.to(torch.int64) * (i_erf(x, erf) + one)).to(torch.int32)


def integer_root(value: Tensor) -> Tensor:
    """floor(sqrt(n)) by Newton (the paper's Algorithm 4), int64 n in [0, 2^50): ``k = floor((k + floor(n / k)) / 2)``.

    The start ``2^ceil(bits / 2)`` is within a factor of 2 above the root; the steps fall to its floor and stay there or go up by one,
    hence the minimum.
    """
    positive = value.clamp(min=1)
    bits = torch.frexp(positive.to(torch.float64)).exponent.to(torch.int64)
    root = torch.ones_like(positive) << ((bits + 1) >> 1)
    for _ in range(ROOT_STEPS):
        root = torch.minimum(root, (root + positive // root) >> 1)
    return torch.where(value == 0, 0, root)


def normalize(x: Tensor, centre: bool) -> Tensor:
    """LayerNorm before its affine part: ``floor(y floor(2^31 / (std + 0.0001)) / 2)``, scale ``sqrt(N) 2^-30``; int64 rows in and out.

    y = x - round(mean), std = floor(sqrt(sum y^2)), so ``|y| factor < 2^31``. The sum of squares needs up to 47 bits, one value a row;
    the paper shifts y right by an amount found in training to keep it in 32, which 64 bits a row make needless.
    """
    y = x - rounded_mean(x) if centre else x
    root = integer_root((y * y).sum(dim=-1, keepdim=True))
    factor = ((10_000 << 31) // (10_000 * root + 1)).clamp(max=_INT32_MAX)
    return (y * factor) >> 1
