"""Float twins of the rounding ops: the same numbers as ``qc.quantize`` and ``qc.dequantize`` give, held in float32, with a gradient.

The gradient of a rounding is the straight-through estimator (Bengio et al., arXiv 1308.3432): that of ``clamp(x / s + z, low, high)``, so
that values inside the range pass it on and saturated ones do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler import arithmetic
from qcompiler.ir.types import QuantizedType

_qc = torch.ops.qc

# Roundings to more bits than these lose so little that leaving some out at random would teach nothing.
_DROPPED_BITS = 8


class Dropping:
    """Leaves the rounding of an activation out at random, element by element (QDrop, Wei et al., arXiv 2203.05740, section 4.2)."""

    def __init__(self, probability: float, generator: torch.Generator) -> None:
        self._probability, self._generator = probability, generator

    def choose(self, rounded: Tensor, exact: Tensor) -> Tensor:
        """``exact`` with the probability given, else ``rounded``, for each element on its own."""
        kept = torch.rand(rounded.shape, generator=self._generator) < self._probability
        return torch.where(kept, exact, rounded)


def quantize(
    x: Tensor, scale: Sequence[float], zero_point: Sequence[int], axis: int, bits: int, signed: bool, dropping: Dropping | None = None
) -> Tensor:
    """The integers of ``qc.quantize`` as float32."""
    kind = QuantizedType.from_arguments(scale, zero_point, axis, bits, signed)
    integers = arithmetic.quantize(x.detach(), kind).to(torch.float32)
    dropped = dropping is not None and bits <= _DROPPED_BITS
    if not (x.requires_grad or dropped):
        return integers
    factor, offset = _broadcast(x, kind)
    exact = x * factor.reciprocal() + offset
    smooth = exact.clamp(kind.integer.low, kind.integer.high)
    # Exact: the difference is at most half a step and a multiple of the spacing of floats at ``smooth``.
    rounded = smooth + (integers - smooth).detach()
    return dropping.choose(rounded, exact) if dropping is not None and dropped else rounded


def dequantize(x: Tensor, scale: Sequence[float], zero_point: Sequence[int], axis: int, bits: int, signed: bool) -> Tensor:
    """As ``qc.dequantize``, also of integers that are held in float32."""
    kind = QuantizedType.from_arguments(scale, zero_point, axis, bits, signed)
    if not x.is_floating_point():
        return arithmetic.dequantize(x, kind)
    factor, offset = _broadcast(x, kind)
    return (x - offset) * factor


def encode(x: Tensor, boundaries: Sequence[float]) -> Tensor:
    """The codes of ``qc.encode`` as float32; they pass on the gradient of ``x`` itself, which ``decode`` expects."""
    codes = torch.bucketize(x.detach(), torch.tensor(boundaries, dtype=torch.float32), right=True).to(torch.float32)
    return codes + (x - x.detach()) if x.requires_grad else codes


def decode(codes: Tensor, levels: Sequence[float]) -> Tensor:
    """As ``qc.decode``, also of codes that are held in float32; the pair with ``encode`` has gradient 1."""
    values = torch.tensor(levels, dtype=torch.float32)[codes.detach().round().long()]
    return values + (codes - codes.detach()) if codes.requires_grad else values


def l2_normalize(x: Tensor, eps: float) -> Tensor:
    """``x / max(|x|, eps)`` over the last dimension."""
    return nn.functional.normalize(x, dim=-1, eps=eps)


def hadamard(x: Tensor, block: int, zero_point: int = 0) -> Tensor:
    """The sums of ``qc.hadamard``, of floats."""
    return arithmetic.hadamard(x, block, zero_point)


TWINS: dict[Any, Callable[..., Tensor]] = {
    getattr(_qc, twin.__name__).default: twin
    for twin in (quantize, dequantize, encode, decode, l2_normalize, hadamard)
    if hasattr(_qc, twin.__name__)
}


def _broadcast(x: Tensor, kind: QuantizedType) -> tuple[Tensor, Tensor]:
    """Scale and zero point as float32 that broadcast against ``x``."""
    shape = [1] * x.dim()
    if kind.axis is not None:
        shape[kind.axis] = -1
    scale = torch.tensor(kind.scale, dtype=torch.float32)
    zero_point = torch.tensor(kind.zero_point, dtype=torch.float32)
    return scale.reshape(shape), zero_point.expand_as(scale).reshape(shape)
