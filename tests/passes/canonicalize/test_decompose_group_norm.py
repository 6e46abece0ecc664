from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from qcompiler.capture import capture
from qcompiler.ir.types import DynamicSize
from qcompiler.passes.canonicalize.canonicalize import Canonicalize
from qcompiler.passes.canonicalize.decompose_group_norm import DecomposeGroupNorm
from qcompiler.pipeline.contract import PassContext


def randomized(norm: nn.Module) -> nn.Module:
    for value in (*norm.parameters(), *norm.buffers()):
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1.5)
    return norm


@pytest.mark.parametrize(
    ("norm", "shape", "ops"),
    [
        (nn.GroupNorm(2, 6), (2, 6, 4, 3), {"reshape": 2, "layer_norm": 1, "batch_norm": 1}),
        (nn.GroupNorm(3, 6, eps=0.1), (2, 6, 5), {"reshape": 2, "layer_norm": 1, "batch_norm": 1}),
        (nn.GroupNorm(6, 6, affine=False), (2, 6, 4, 3), {"reshape": 2, "layer_norm": 1}),
        (nn.GroupNorm(1, 6), (2, 6), {"reshape": 2, "layer_norm": 1, "batch_norm": 1}),
        (nn.InstanceNorm2d(6), (2, 6, 4, 3), {"reshape": 2, "layer_norm": 1}),
        (nn.InstanceNorm1d(6, affine=True), (2, 6, 9), {"reshape": 2, "layer_norm": 1, "batch_norm": 1}),
        (nn.InstanceNorm2d(6, affine=True, track_running_stats=True), (2, 6, 4, 3), {"batch_norm": 1}),
    ],
)
def test_rows_and_channels(rewrite: Callable, norm: nn.Module, shape: tuple[int, ...], ops: dict[str, int]) -> None:
    assert rewrite(DecomposeGroupNorm(), randomized(norm), shape).ops == ops


def test_the_affine_map_goes_into_the_next_layer(rewrite: Callable) -> None:
    model = nn.Sequential(randomized(nn.GroupNorm(2, 6)), nn.Conv2d(6, 4, 1))
    assert rewrite(Canonicalize(), model, (2, 6, 4, 4)).ops == {"reshape": 2, "layer_norm": 1, "conv2d": 1}


def test_a_size_of_the_call_is_declined() -> None:
    program = capture(nn.GroupNorm(2, 6), torch.randn(2, 6, 5), dynamic_shapes={"input": {2: DynamicSize("length", 2, 9)}})
    result = DecomposeGroupNorm().run(program, PassContext())
    assert not result.modified and "sizes that are known at run time only: leave them out of dynamic_shapes" in result.notes[0]


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(2, affine=True)])
def test_of_rows_that_are_too_long_for_integers_the_norm_stays(rewrite: Callable, norm: nn.Module) -> None:
    rewritten = rewrite(DecomposeGroupNorm(), randomized(norm), (2, sum(value.numel() for value in norm.parameters()) // 2, 130, 64))
    assert rewritten.ops == {"group_norm": 1, "batch_norm": 1}
    assert "values each, and integer rows at most 8192: more groups, or allow_float" in rewritten.result.notes[-1]
