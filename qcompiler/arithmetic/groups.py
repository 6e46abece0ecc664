"""Weights with two levels of scales: one real number for each output channel, one small integer for each group of its inputs.

    w[n, k] = scale[n] * factor[n, k // length] * code[n, k]

A code has few bits, and ``factor * code`` fits int8, so that a layer multiplies integers whatever the groups are: either the int8 products
themselves, or the codes, whose partial sums over a group are then multiplied by its factor (QServe, Lin et al. 2024, section 4.1,
"progressive group quantization"). The last group may be shorter.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST_WEIGHT = 127
# A factor is searched for between the one that covers a group's largest weight and a third of it: few bits want to clip.
_SHRINKAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


def scale_groups(codes: Tensor, factors: Tensor, length: int) -> Tensor:
    """``codes[n, k, ...] * factors[n, k // length]``: int8 [N, K, ...] and int8 [N, ceil(K / length)] to int8 [N, K, ...].

    Products that do not fit int8 wrap; range analysis proves that there are none.
    """
    return (codes.to(torch.int32) * expand_factors(factors, length, codes)).to(torch.int8)


def expand_factors(factors: Tensor, length: int, codes: Tensor) -> Tensor:
    """The factor of each input: [N, ceil(K / length)] to [N, K, 1...], which broadcasts against the codes."""
    expanded = factors.repeat_interleave(length, 1)[:, : codes.shape[1]]
    return expanded.reshape(*expanded.shape, *[1] * (codes.dim() - 2))


def largest_factor(bits: int) -> int:
    """The largest f for which ``f * code`` fits int8 for every code in [-q, q], q = 2^(bits-1) - 1."""
    return _LARGEST_WEIGHT // ((1 << (bits - 1)) - 1)


def choose_groups(weight: Tensor, scale: Tensor, bits: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and factors for ``weight`` [N, K, ...] with ``scale`` [N]: of each group the factor with the least squared error.

    For a factor f the codes are ``clamp(rint(w / (scale f)), -q, q)``.

    Returns:
        codes int8 [N, K, ...], factors int8 [N, ceil(K / length)] in 1..``largest_factor(bits)``, squared error [N].
    """
    outputs, inputs = weight.shape[:2]
    count = -(-inputs // length)
    steps = weight.detach().reshape(outputs, inputs, -1) / scale.reshape(-1, 1, 1)
    padded = torch.nn.functional.pad(steps, (0, 0, 0, count * length - inputs)).reshape(outputs, count, -1)
    high = (1 << (bits - 1)) - 1
    covering = padded.abs().amax(2) / high
    least = torch.full_like(covering, torch.inf)
    factors = torch.ones_like(covering)
    for shrinkage in _SHRINKAGES:
        tried = (covering * shrinkage).round_().clamp_(1, largest_factor(bits))
        rounded = _codes(padded, tried, high).mul_(tried[..., None])
        error = rounded.sub_(padded).square_().sum(2)
        better = error < least
        least, factors = torch.where(better, error, least), torch.where(better, tried, factors)
    codes = _codes(padded, factors, high).reshape(outputs, count * length, -1)[:, :inputs].reshape(weight.shape)
    return codes.to(torch.int8), factors.to(torch.int8), least.sum(1) * scale.square()


def _codes(steps: Tensor, factors: Tensor, high: int) -> Tensor:
    return (steps / factors[..., None]).round_().clamp_(-high, high)
