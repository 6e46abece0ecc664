"""Products, clamps, table look-ups and dilation on integer tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.arithmetic.requantize import centre
from qcompiler.errors import VerificationError


def multiply(a: Tensor, b: Tensor, zero_point_a: int, zero_point_b: int) -> Tensor:
    """``(a - zero_point_a) * (b - zero_point_b)`` in int32, broadcasting."""
    return centre(a, zero_point_a) * centre(b, zero_point_b)


def clamp(x: Tensor, low: int, high: int) -> Tensor:
    """``min(max(x, low), high)`` in the dtype of ``x``; bounds outside of the dtype do not bind.

    Raises VerificationError where no value of the dtype lies in [low, high].
    """
    limits = torch.iinfo(x.dtype)
    if low > high or low > limits.max or high < limits.min:
        raise VerificationError(f"no {x.dtype} value lies in [{low}, {high}]: correct the bounds of the clamp")
    return x.clamp(max(low, limits.min), min(high, limits.max))


def lookup(x: Tensor, table: Tensor) -> Tensor:
    """``y = table[x - low]`` with ``low`` the lowest value of the 8-bit dtype of ``x``.

    ``table`` has 256 entries, or shape [C, 256] with one row for each channel (dimension 1 of ``x``).
    """
    index = centre(x, torch.iinfo(x.dtype).min)
    if table.dim() == 2:
        rows = torch.arange(table.shape[0], dtype=torch.int32, device=x.device) * table.shape[1]
        index += rows.reshape(-1, *[1] * (x.dim() - 2))
    return table.reshape(-1).index_select(0, index.reshape(-1)).reshape(x.shape)


def dilate(x: Tensor, factor: Sequence[int], value: int) -> Tensor:
    """Insert ``factor - 1`` copies of ``value`` between neighbours of the last two dimensions: size ``(n - 1) * factor + 1``.

    A transposed convolution of stride f is the convolution of the input dilated by f with the flipped kernel.
    """
    sizes = [(n - 1) * f + 1 for n, f in zip(x.shape[-2:], factor, strict=True)]
    y = x.new_full((*x.shape[:-2], *sizes), value)
    y[..., :: factor[0], :: factor[1]] = x
    return y
