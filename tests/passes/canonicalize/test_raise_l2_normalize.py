from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from qcompiler.passes.canonicalize.fuse_activation import FuseActivation
from qcompiler.passes.canonicalize.normalize_arithmetic import NormalizeArithmetic
from qcompiler.passes.canonicalize.raise_l2_normalize import RaiseL2Normalize

BEFORE = [NormalizeArithmetic(), FuseActivation()]


@pytest.mark.parametrize(
    ("function", "epsilon"),
    [
        (lambda m, x: F.normalize(x, dim=-1), 1e-12),
        (lambda m, x: F.normalize(x, dim=2, eps=1e-6), 1e-6),
        (lambda m, x: x / x.norm(dim=-1, keepdim=True), 0.0),
        (lambda m, x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-3), 1e-3),
        (lambda m, x: x / (x * x).sum(-1, keepdim=True).sqrt(), 0.0),
        (lambda m, x: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True)), 0.0),
    ],
)
def test_golden(rewrite: Callable, network: type, function: Callable, epsilon: float) -> None:
    rewritten = rewrite(RaiseL2Normalize(), network(function), (2, 3, 8), before=BEFORE)
    assert rewritten.lines == [f"l2_normalize = qc.l2_normalize(inputs_0, eps={epsilon})"]


def test_other_dimensions_are_declined(rewrite: Callable, network: type) -> None:
    rewritten = rewrite(RaiseL2Normalize(), network(lambda m, x: F.normalize(x, dim=1)), (2, 3, 8), before=BEFORE)
    assert not rewritten.result.modified and "it normalizes over dimensions [1]" in rewritten.result.notes[0]


@pytest.mark.parametrize("function", [lambda m, x: x / x.abs().sum(-1, keepdim=True), lambda m, x: F.normalize(x, p=1, dim=-1)])
def test_other_norms_are_left_alone(rewrite: Callable, network: type, function: Callable) -> None:
    assert not rewrite(RaiseL2Normalize(), network(function), (2, 3, 8), before=BEFORE).result.modified
