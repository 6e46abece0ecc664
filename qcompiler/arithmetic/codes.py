"""Codes of quantizers with steps of their own (log2, adaptive logarithm, tan): thresholds one way, a table of levels back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def bucketize(x: Tensor, boundaries: Tensor) -> Tensor:
    """Number of ``boundaries`` (sorted integers) that are at most x, int64."""
    return torch.bucketize(x.to(torch.int64).contiguous(), boundaries.to(torch.int64), right=True)


def encode(x: Tensor, boundaries: Sequence[float]) -> Tensor:
    """uint8: number of ``boundaries`` (sorted, at most 255, as float32) that are at most x; NaN takes the last code."""
    return torch.bucketize(x.to(torch.float32).contiguous(), torch.tensor(boundaries, dtype=torch.float32), right=True).to(torch.uint8)


def decode(codes: Tensor, levels: Sequence[float]) -> Tensor:
    """float32 ``levels[code]``."""
    return torch.tensor(levels, dtype=torch.float32)[codes.to(torch.int64)]


def embedding(weight: Tensor, ids: Tensor) -> Tensor:
    """Rows of a table [R, C]: ``weight[ids]``, of the shape of ids with C appended; ids are integers in [0, R)."""
    return weight[ids.to(torch.int64)]
