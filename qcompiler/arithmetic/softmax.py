r"""Integer softmax over the last dimension: no division, unsigned probabilities rounded to nearest, or down.

With d = max(x) - x, an exponential e of 15 bits in one of three forms, S = sum(e), b = bit length of S and L = 2^bits - 1::

    table    e = table[d]                                            exactly rounded, x of 8 bits
    shift    e = min(2^-z, 2^15 - 1), z = d in base 2, by the formulas of ``arithmetic.exponential``; x of at most 16 bits
    poly     as shift, with the mantissa by a polynomial

    f = (S << (31 - b)) >> 16                 in [2^14, 2^15)
    y = 47747 - f;  twice  y = (y * (65536 - ((f * y) >> 14))) >> 15        y ~ 2^29 / f
    p = clamp((((((e * y) >> 15) * L) >> 1) + 2^(b-3)) >> (b - 2), 0, L)    ~ L * e / S, rounded to nearest
                                              without the 2^(b-3):        rounded down

Every intermediate fits int32 for rows of at most 65,536 elements: e <= 2^15 - 1, y <= 2^15 + 2, and L <= 2^16 - 1. Elements that a mask
drops do not enter the maximum and have e = 0. ``shiftmax`` (I-ViT) and ``i-softmax`` (I-BERT) are the papers' own functions.

``wide-table`` has exponentials of 30 bits and up to 24 bits of probability, with the same names::

    f = S 2^(31-b)                            in [2^30, 2^31), cut off where b > 31; S has up to 46 bits
    q = (L * y) >> bits                       y ~ 2^61 / f by ``arithmetic.reciprocal.wide_reciprocal``
    p = clamp((((e * q) >> 32) + 2^(s-1)) >> s, 0, L)       s = min(b - 2 - bits, 30)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.arithmetic import i_bert, i_vit
from qcompiler.arithmetic.exponential import ONE, base2_constants, check_base2, fixed_point, power
from qcompiler.arithmetic.reciprocal import RECIPROCAL_START, RECIPROCAL_STEPS, bit_length, newton_reciprocal, wide_reciprocal
from qcompiler.errors import UnknownNameError, VerificationError

__all__ = ["RECIPROCAL_START", "RECIPROCAL_STEPS", "bit_length", "newton_reciprocal", "softmax"]

SOFTMAX_FORMS = ("table", "wide-table", "poly", "shift", "shiftmax", "i-softmax")
TABLE_FORMS = frozenset({"table", "wide-table"})
ROUNDINGS = ("nearest", "floor")
PAPER_FORMS = frozenset({"shiftmax", "i-softmax"})  # have the scale and the rounding of their papers
EXPONENT_BITS = 15
WIDE_EXPONENT_BITS = 30
MOST_BITS, MOST_WIDE_BITS = 16, 24  # of a probability
LARGEST_WIDE_SHIFT = 30  # from here on (e * q) >> 32, below 2^29, rounds to 0
MAXIMUM_ROW = 1 << 16
TABLE_ENTRIES = 256
LARGEST_DIFFERENCE = (1 << 16) - 1
LOGISTIC_REACH = 17.0  # in base 2: from here on an exponential rounds to 0
_SMALLEST_TOTAL = 1 << (EXPONENT_BITS - 1)  # a row's maximum alone has at least as much


def exponential_table(scale: float, bits: int = EXPONENT_BITS) -> Tensor:
    """int32 [256]: round((2^bits - 1) * exp(-scale * d)) for a difference of d steps of ``scale`` below the row's maximum."""
    differences = torch.arange(TABLE_ENTRIES, dtype=torch.float64)
    return torch.round(((1 << bits) - 1) * torch.exp(-scale * differences)).to(torch.int32)


def most_probability_bits(form: str) -> int:
    """Of a probability."""
    return MOST_WIDE_BITS if form == "wide-table" else MOST_BITS


def softmax_parameters(form: str, scale: float) -> tuple[Tensor | None, list[int]]:
    """Table and constants of ``softmax`` for scores of step ``scale``.

    Raises UnknownNameError for a form that does not exist, VerificationError where a paper's form cannot serve the scale.
    """
    if form in TABLE_FORMS:
        return exponential_table(scale, _exponent_bits(form)), []
    if form in ("shift", "poly"):
        return None, [*base2_constants(scale * math.log2(math.e), LOGISTIC_REACH, LARGEST_DIFFERENCE)]
    if form == "shiftmax":
        return None, [i_vit.exponent_step(scale, i_vit.SHIFTMAX_BITS), i_vit.SHIFTMAX_BITS]
    if form == "i-softmax":
        return None, i_bert.softmax_constants(scale)
    raise UnknownNameError("form of softmax", form, SOFTMAX_FORMS)


def softmax_scale(form: str, bits: int) -> float:
    """What one unit of the result means: 1 / (2^bits - 1); ``shiftmax`` 2^(1 - bits), ``i-softmax`` 2^-bits."""
    if form == "shiftmax":
        return 2.0 ** (1 - bits)
    return 2.0**-bits if form == "i-softmax" else 1.0 / ((1 << bits) - 1)


def check_softmax(form: str, table: Tensor | None, constants: Sequence[int], bits: int, rounding: str = "nearest") -> int:
    """The largest result. Raises VerificationError where parameters do not keep every step in int32."""
    if form not in SOFTMAX_FORMS or not 1 <= bits <= most_probability_bits(form) or (table is not None) != (form in TABLE_FORMS):
        raise VerificationError(f"no softmax of form '{form}' with {bits} bits and {'a' if table is not None else 'no'} table")
    if rounding not in ROUNDINGS or (form in PAPER_FORMS and rounding != "nearest"):
        raise VerificationError(
            f"no softmax of form '{form}' with rounding '{rounding}': the papers' forms have their own, ours {ROUNDINGS}"
        )
    if len(constants) != _COUNTS[form]:
        raise VerificationError(f"softmax of form '{form}' takes {_COUNTS[form]} constants, not {len(constants)}")
    if table is not None:
        _check_table(table, _exponent_bits(form))
    elif form == "shiftmax":
        i_vit.check_step(*constants)
        return (1 << (bits - 1)) - 1
    elif form == "i-softmax":
        _check_i_softmax(constants)
    else:
        check_base2(constants)
    return (1 << bits) - 1


_COUNTS = {"table": 0, "wide-table": 0, "poly": 3, "shift": 3, "shiftmax": 2, "i-softmax": 5}


def _exponent_bits(form: str) -> int:
    return WIDE_EXPONENT_BITS if form == "wide-table" else EXPONENT_BITS


def _check_table(table: Tensor, bits: int) -> None:
    inside = table.shape == (TABLE_ENTRIES,) and int(table.min()) >= 0 and int(table.max()) < 1 << bits
    if not inside or int(table[0]) != int(table.max()) or int(table[0]) < 1 << (bits - 1):
        raise VerificationError("its table is none that softmax is proven for: make it by arithmetic.exponential_table")


def _check_i_softmax(constants: Sequence[int]) -> None:
    *exponential, multiplier, shift = constants
    i_bert.check_exponential(exponential)
    if not (0 <= multiplier <= 1 << 31 and 1 <= shift <= 62 and exponential[2] * multiplier < ((1 << 15) - 1 << shift) + (1 << shift >> 1)):
        raise VerificationError("its exponentials do not fit 16 bits: choose its constants by arithmetic.softmax_parameters")


def softmax(
    x: Tensor,
    table: Tensor | None,
    mask: Tensor | None,
    form: str,
    constants: Sequence[int],
    bits: int,
    rounding: str = "nearest",
) -> Tensor:
    """Unsigned integers of ``bits`` bits (1..16, ``wide-table`` 1..24), scale ``softmax_scale``; x of at most 16 bits, any zero point.

    ``rounding``: of our own forms, ``nearest`` or ``floor``. ``mask`` is bool, True where an element is kept, and broadcasts against x.
    Rows of which nothing is kept are 0.
    """
    kept = None if mask is None else mask.expand(x.shape)
    differences = _differences(x.to(torch.int32), kept)
    if form == "shiftmax":
        probabilities = i_vit.shiftmax(-differences, kept, constants, bits)
    elif form == "i-softmax":
        probabilities = i_bert.softmax(-differences, kept, constants, bits)
    else:
        exponentials = _exponentials(differences, table, form, constants)
        if kept is not None:
            exponentials = torch.where(kept, exponentials, 0)
        rounded = _wide_probabilities if form == "wide-table" else _probabilities
        probabilities = rounded(exponentials, bits, rounding)
    return probabilities.to(torch.uint8 if bits <= 8 else torch.int32)


def _differences(x: Tensor, kept: Tensor | None) -> Tensor:
    """max(x) - x over what is kept, 0 where nothing is."""
    if kept is None:
        return x.amax(dim=-1, keepdim=True) - x
    largest = torch.where(kept, x, torch.iinfo(x.dtype).min).amax(dim=-1, keepdim=True)
    return torch.where(kept, largest - x, 0)


def _exponentials(differences: Tensor, table: Tensor | None, form: str, constants: Sequence[int]) -> Tensor:
    if table is not None:
        return table[differences.to(torch.int64)].to(torch.int32)
    return power(fixed_point(differences, constants), form).clamp(max=ONE - 1)


def _probabilities(exponentials: Tensor, bits: int, rounding: str) -> Tensor:
    """p of the module's formula."""
    total = exponentials.sum(dim=-1, keepdim=True, dtype=torch.int32).clamp(min=_SMALLEST_TOTAL)
    length = bit_length(total).to(torch.int32)
    reciprocal = newton_reciprocal((total.to(torch.int64) << (31 - length) >> 16).to(torch.int32))
    high = (1 << bits) - 1
    halved = (((exponentials * reciprocal) >> 15) * high) >> 1  # the rounding term would not fit beside the whole
    half = torch.ones_like(length) << (length - 3) if rounding == "nearest" else 0
    rounded = (halved + half) >> (length - 2)
    return rounded.clamp(0, high)


def _wide_probabilities(exponentials: Tensor, bits: int, rounding: str) -> Tensor:
    """p of the module's formula for 30 bits."""
    wide = exponentials.to(torch.int64)
    total = wide.sum(dim=-1, keepdim=True).clamp(min=1 << (WIDE_EXPONENT_BITS - 1))
    length = bit_length(total).to(torch.int64)
    high = (1 << bits) - 1
    reciprocal = wide_reciprocal((total << (31 - length).clamp(min=0)) >> (length - 31).clamp(min=0))
    factor = (reciprocal * high) >> bits
    shift = (length - (2 + bits)).clamp(max=LARGEST_WIDE_SHIFT)
    half = torch.ones_like(shift) << (shift - 1) if rounding == "nearest" else 0
    return ((((wide * factor) >> 32) + half) >> shift).clamp(0, high)
