"""Dyadic requantization: an integer times a real factor, in integers only.

``>>`` is the arithmetic shift (floor). Every form adds half a unit before its last shift, so it rounds half towards +infinity.
Nested floors compose, ``floor(floor(x / p) / q) = floor(x / (p q))``, hence each form below is evaluated with a single shift;
the stepwise formulas that back ends implement give the same integers (``docs/arithmetic.md``, section 2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SATURATION_LOW, _SATURATION_HIGH = -(1 << 15), (1 << 15) - 1


def requantize_high(a: Tensor, pre_shift: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
    """High half of a 32x32-bit product: ``t = ((a << l) * m) >> 32; y = (t + 2^(s-1)) >> s``, about ``a * m * 2^(l-32-s)``.

    ``a << l`` must fit int32, ``m`` is in [0, 2^31), ``s`` in 1..30; the parameters broadcast against ``a``. Gives int64.
    """
    total = _wide(shift) + 32
    product = a * (_wide(multiplier) << _wide(pre_shift))
    return product.add_(_half_unit(total)).bitwise_right_shift_(total)


def requantize_narrow(a: Tensor, pre_shift: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
    """16-bit form: ``u = sat16((a + 2^(k-1)) >> k); t = (u * m + 2^14) >> 15; y = (t + 2^(s-1)) >> s``, ``k`` being ``pre_shift``.

    A shift of 0 has no rounding term; ``m`` is in [0, 2^15). Stands for ``a * m * 2^(-15-k-s)``. Gives int64.
    """
    k, s = _wide(pre_shift), _wide(shift)
    u = (a + _half_unit(k)).bitwise_right_shift_(k).clamp_(_SATURATION_LOW, _SATURATION_HIGH)
    rounding = (_half_unit(s) << 15) + (1 << 14)
    return u.mul_(_wide(multiplier)).add_(rounding).bitwise_right_shift_(s + 15)


def requantize_exact64(a: Tensor, pre_shift: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
    """64-bit form: ``y = (a * m + 2^(s-1)) >> s``; ``pre_shift`` is not used, ``s`` is in 0..62. Gives int64."""
    s = _wide(shift)
    return (a * _wide(multiplier)).add_(_half_unit(s)).bitwise_right_shift_(s)


REQUANTIZE: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "high": requantize_high,
    "narrow": requantize_narrow,
    "exact64": requantize_exact64,
}


def saturate(y: Tensor, zero_point: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
    """``clamp(y + zero_point, low, high)`` in ``dtype``; ``y`` is int64 and so large only that the sum fits."""
    return y.clamp(low - zero_point, high - zero_point).add_(zero_point).to(dtype)


def residual_add(
    a: Tensor,
    b: Tensor,
    pre_shift_a: Tensor,
    multiplier_a: Tensor,
    pre_shift_b: Tensor,
    multiplier_b: Tensor,
    shift: int,
) -> Tensor:
    """Two high halves under one rounding: ``((((a << la) * ma) >> 32) + (((b << lb) * mb) >> 32) + 2^(s-1)) >> s``. Gives int64.

    ``a << la`` and ``b << lb`` must fit int32. The operands and the multipliers broadcast.
    """
    total = _high_half(a, pre_shift_a, multiplier_a) + _high_half(b, pre_shift_b, multiplier_b)
    return total.add_(1 << (shift - 1)).bitwise_right_shift_(shift)


def centre(x: Tensor, zero_point: int) -> Tensor:
    """``x - zero_point`` as int32."""
    return x.to(torch.int32) if zero_point == 0 else torch.sub(x.to(torch.int32), zero_point)


def _high_half(a: Tensor, pre_shift: Tensor, multiplier: Tensor) -> Tensor:
    return (a * (_wide(multiplier) << _wide(pre_shift))).bitwise_right_shift_(32)


def _wide(parameter: Tensor) -> Tensor:
    """int64 with at least one dimension: torch keeps the narrower type when it promotes with a 0-dimensional tensor."""
    wide = parameter.to(torch.int64)
    return wide.reshape(1) if wide.dim() == 0 else wide


def _half_unit(shift: Tensor) -> Tensor:
    """``2^(shift-1)``, and 0 where ``shift`` is 0."""
    return (torch.ones_like(shift) << shift) >> 1
