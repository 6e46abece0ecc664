"""Weights of one bit: ``w ~ scale * q`` with q in {-1, +1}, as XNOR-Net has them (Rastegari et al., arXiv 1603.05279, section 3.1).

    sum (w - scale q)^2  =  sum w^2 - 2 scale sum w q + n scale^2          for n weights, as q^2 = 1

For every positive scale ``sum w q`` is to be as large as it can be, which q = sign(w) makes it: sum |w|. What is left is a parabola in the
scale, least at ``scale = sum |w| / n``. So no other scale and signs have a smaller squared error, whatever the weights are.

The integers alone say that a weight is binary (``is_binary``): it has a type of 2 bits, as a weight with zeros has.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Scale of a channel without weights, as a share of the layer's largest: its weights cannot be 0, and a sum of 2^20 of them is no step.
_LEAST_SHARE = 2.0**-40


def binarize(x: Tensor) -> Tensor:
    """``+1 where x >= 0, else -1``, int8: the sign, with sign(0) = +1."""
    return torch.where(x >= 0, 1, -1).to(torch.int8)


def binary_scale(weight: Tensor, axis: int | None) -> Tensor:
    """``mean |w|`` for each index of ``axis`` (or over all), float32 [channels] (or [1]).

    A mean below 2^-40 of the largest is raised to that (to 2^-40 where all weights are 0), as a scale must be positive.
    """
    rows = weight.detach().double().abs()
    means = rows.mean().reshape(1) if axis is None else rows.movedim(axis, 0).flatten(1).mean(1)
    largest = means.max()
    return torch.maximum(means, torch.where(largest > 0, largest, 1.0) * _LEAST_SHARE).float()


def is_binary(integers: Tensor) -> bool:
    """Whether every integer is -1 or +1, and there is one."""
    return integers.numel() > 0 and bool(((integers == 1) | (integers == -1)).all())
