r"""GELU, SiLU, sigmoid, tanh, erf and exp of integers of at most 16 bits, to int32 of a scale that follows from the parameters.

The forms ``shift`` and ``poly`` share one way: with a = |x - zero point| in fixed point and e = 2^-z from ``arithmetic.exponential``::

    sigmoid(|v|) = 1 / (1 + e^-|v|)        f = 2^14 + e/2 in [2^14, 2^15]        y = 2^29 / f by Newton, Q15
    s = y where x >= 0, else 2^15 - y

    sigmoid: s        tanh: 2 s - 2^15 of 2x        SiLU: (x - zero point) s        exp: 2^-z in Q30, relative to the largest input
    GELU: (x - zero point) s and erf: 2 s - 2^15 with the logit of the normal distribution's Phi(t),

        ln(Phi / (1 - Phi)) ~ 1.5957691 t + 0.0713548 t^3,        Phi within 1.8e-4

(Page, "Approximations to the cumulative normal function", Applied Statistics 26, 1977; it is GELU's tanh form). t = x for GELU,
t = sqrt(2) x for erf, with 13 fraction bits up to 4.25::

    z = (t (K1 + ((K3 ((t t) >> 13)) >> 14))) >> 11
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qcompiler.arithmetic import i_bert, i_vit
from qcompiler.arithmetic.exponential import ONE, base2_constants, check_base2, fixed_point, power
from qcompiler.arithmetic.reciprocal import newton_reciprocal
from qcompiler.errors import UnknownNameError, VerificationError

FUNCTIONS = ("gelu", "silu", "sigmoid", "tanh", "exp", "erf")
LARGEST_INPUT = 1 << 16  # |x - zero point|
LOGISTIC_REACH = 17.0  # in base 2: from here on 2^-z rounds to 0
EXPONENTIAL_REACH = 29.0
EXPONENTIAL_FRACTION_BITS = 30
NORMAL_FRACTION_BITS = 13  # of t
NORMAL_REACH = 4.25  # of t: z is past 17 there
NORMAL_LOGIT = (18860, 1687)  # K1 with 13 fraction bits and K3 with 14: 1.5957691 and 0.0713548 over ln 2
_LOG2_E = math.log2(math.e)

# x - zero point is multiplied by the sigmoid; the others give the sigmoid itself, or twice it less one.
_PRODUCTS = ("gelu", "silu")
_NORMAL = ("gelu", "erf")
_STEEPNESS = {"gelu": 1.0, "erf": math.sqrt(2.0), "silu": _LOG2_E, "sigmoid": _LOG2_E, "tanh": 2.0 * _LOG2_E, "exp": _LOG2_E}


def nonlinear_parameters(function: str, form: str, scale: float, bound: int = LARGEST_INPUT) -> tuple[list[int], float]:
    """Constants of ``nonlinear`` for inputs of step ``scale`` with ``|x - zero_point| <= bound``, and the scale of the result.

    Raises UnknownNameError for a function or form that does not exist, VerificationError where the form cannot serve the scale.
    """
    choose = _FORMS.get((function, form))
    if choose is None:
        raise UnknownNameError("integer form", f"{form} {function}", [f"{form} {function}" for function, form in _FORMS])
    return choose(function, scale, bound)


def has_form(function: str, form: str) -> bool:
    """Whether ``nonlinear`` computes this function in this form."""
    return (function, form) in _FORMS


def nonlinear(x: Tensor, zero_point: int, function: str, form: str, constants: Sequence[int]) -> Tensor:
    """int32 of the shape of x (at most 16 bits); see the module. ``shift-gelu`` looks at whole rows of the last dimension."""
    centred = x.to(torch.int32) - zero_point
    if form == "shift-gelu":
        return i_vit.shift_gelu(centred, constants)
    if form == "i-gelu":
        return i_bert.i_gelu(centred, constants) if function == "gelu" else (-i_bert.i_erf(centred, constants)).to(torch.int32)
    if form == "i-exp":
        return i_bert.i_exp(centred, constants)
    if function == "exp":
        *base2, bound = constants
        return power(fixed_point((bound - centred).clamp(min=0), base2), form, EXPONENTIAL_FRACTION_BITS)
    return _logistic(centred, function, form, constants)


def _logistic(x: Tensor, function: str, form: str, constants: Sequence[int]) -> Tensor:
    z = fixed_point(x.abs(), constants)
    exponential = power(_normal_logit(z) if function in _NORMAL else z, form)
    positive = newton_reciprocal((ONE + exponential) >> 1)
    sigmoid = torch.where(x >= 0, positive, ONE - positive)
    if function == "sigmoid":
        return sigmoid
    return x * sigmoid if function in _PRODUCTS else 2 * sigmoid - ONE


def _normal_logit(t: Tensor) -> Tensor:
    """z of the module's formula; every product fits int32 for t <= 4.25."""
    first, third = NORMAL_LOGIT
    square = (t * t) >> NORMAL_FRACTION_BITS
    return (t * (first + ((third * square) >> (NORMAL_FRACTION_BITS + 1)))) >> 11


def check_nonlinear(function: str, form: str, constants: Sequence[int], low: int, high: int) -> tuple[int, int]:
    """Least and largest result of ``nonlinear`` for ``x - zero_point`` in [low, high].

    Raises VerificationError where the constants do not keep every step in int32 for such inputs.
    """
    if (function, form) not in _FORMS:
        raise VerificationError(f"{function} has no form '{form}': forms are {', '.join(f for own, f in _FORMS if own == function)}")
    if len(constants) != _COUNTS.get((function, form), 3):
        raise VerificationError(
            f"{function} in form '{form}' got {len(constants)} constants: choose them by arithmetic.nonlinear_parameters"
        )
    if form in _FAITHFUL_RANGES:
        return _FAITHFUL_RANGES[form](function, constants, low, high)
    if function == "exp":
        return _exponential_range(constants, high)
    check_base2(constants, NORMAL_FRACTION_BITS + 2 if function in _NORMAL else 15)
    if function in _NORMAL and (constants[2] * constants[0]) >> constants[1] > _LARGEST_NORMAL:
        raise VerificationError("the constants of its normal distribution leave int32: choose them by arithmetic.nonlinear_parameters")
    if function in _PRODUCTS:
        return min(low, 0) * ONE, max(high, 0) * ONE
    return (0, ONE) if function == "sigmoid" else (-ONE, ONE)


_LARGEST_NORMAL = 36_000  # of t in fixed point: t K stays below 2^31 up to it


def _exponential_range(constants: Sequence[int], high: int) -> tuple[int, int]:
    *base2, bound = constants
    check_base2(base2)
    _check_reach(bound, high)
    return 0, 1 << EXPONENTIAL_FRACTION_BITS


def _shift_gelu_range(function: str, constants: Sequence[int], low: int, high: int) -> tuple[int, int]:
    step, n, bits = constants
    i_vit.check_step(step, n)
    largest = (1 << (bits - 1)) - 1
    return min(low, 0) * largest, max(high, 0) * largest


def _i_gelu_range(function: str, constants: Sequence[int], low: int, high: int) -> tuple[int, int]:
    if function == "erf":
        i_bert.check_erf(constants)
        largest = i_bert.largest_gelu_factor([*constants, 0])
        return -largest, largest
    i_bert.check_gelu(constants, max(-low, high))
    largest = max(-low, high) * i_bert.largest_gelu_factor(constants)
    return -largest, largest


def _i_exp_range(function: str, constants: Sequence[int], low: int, high: int) -> tuple[int, int]:
    step, b, c, n, bound = constants
    i_bert.check_exponential((step, b, c))
    _check_reach(bound, high)
    if not 0 <= n < 31 or c << n > (1 << 31) - 1:
        raise VerificationError(f"i-exp with c = {c} and n = {n} leaves int32: choose them by arithmetic.nonlinear_parameters")
    return 0, (1 << 31) - 1


def _check_reach(bound: int, high: int) -> None:
    if high > bound:
        raise VerificationError(f"its exponential is scaled for integers up to {bound}, but they reach {high}: choose its constants anew")


_FAITHFUL_RANGES: dict[str, Callable[[str, Sequence[int], int, int], tuple[int, int]]] = {
    "shift-gelu": _shift_gelu_range,
    "i-gelu": _i_gelu_range,
    "i-exp": _i_exp_range,
}


def _own(function: str, scale: float, bound: int) -> tuple[list[int], float]:
    """Constants of ``shift`` and ``poly``."""
    factor = scale * _STEEPNESS[function]
    if function == "exp":
        constants = base2_constants(factor, EXPONENTIAL_REACH, 2 * LARGEST_INPUT)
        return [*constants, bound], math.exp(scale * bound) * 2.0**-EXPONENTIAL_FRACTION_BITS
    if function in _NORMAL:
        factor = min(factor, NORMAL_REACH)
        limit = min(bound, math.floor(NORMAL_REACH / factor))
        return [*_normal_constants(factor, limit)], (scale if function == "gelu" else 1.0) / ONE
    return [*base2_constants(factor, LOGISTIC_REACH, bound)], (scale if function == "silu" else 1.0) / ONE


def _normal_constants(factor: float, limit: int) -> tuple[int, int, int]:
    """The most precise multiplier and shift that int32 holds, for t with 13 fraction bits."""
    for shift in range(30, 0, -1):
        multiplier = round(math.ldexp(factor, NORMAL_FRACTION_BITS + shift))
        if limit * multiplier + (1 << (shift - 1)) < 1 << 31:
            return multiplier, shift, limit
    raise VerificationError(f"no fixed point for steps of {factor:.6g}: use a smaller scale")


def _shift_gelu(function: str, scale: float, bound: int) -> tuple[list[int], float]:
    step = i_vit.exponent_step(scale * i_vit.SIGMOID_SLOPE, i_vit.SHIFT_GELU_BITS)
    return [step, i_vit.SHIFT_GELU_BITS, i_vit.SIGMOID_BITS], scale / 2 ** (i_vit.SIGMOID_BITS - 1)


def _i_gelu(function: str, scale: float, bound: int) -> tuple[list[int], float]:
    if function == "gelu":
        return i_bert.gelu_constants(scale, bound)
    b, c, n, unit = i_bert.erf_constants(scale)
    return [b, c, n], -unit


def _i_exp(function: str, scale: float, bound: int) -> tuple[list[int], float]:
    return i_bert.exp_constants(scale, bound)


_FORMS: dict[tuple[str, str], Callable[[str, float, int], tuple[list[int], float]]] = {
    **{(function, form): _own for function in FUNCTIONS for form in ("shift", "poly")},
    ("gelu", "shift-gelu"): _shift_gelu,
    ("gelu", "i-gelu"): _i_gelu,
    ("erf", "i-gelu"): _i_gelu,
    ("exp", "i-exp"): _i_exp,
}
_COUNTS = {("exp", "shift"): 4, ("exp", "poly"): 4, ("gelu", "i-gelu"): 4, ("exp", "i-exp"): 5}
