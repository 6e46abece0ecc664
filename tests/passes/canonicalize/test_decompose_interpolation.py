from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.capture import capture
from qcompiler.ir.types import DynamicSize
from qcompiler.passes.canonicalize.decompose_interpolation import DecomposeInterpolation
from qcompiler.pipeline.contract import PassContext


class Resized(nn.Module):
    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, **self.how)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [{"scale_factor": 2.0}, {"scale_factor": (1.7, 0.6)}, {"size": (3, 16)}, {"size": 9}])
def test_images(rewrite: Callable, mode: str, align: bool, size: dict[str, Any]) -> None:
    rewritten = rewrite(DecomposeInterpolation(), Resized(mode=mode, align_corners=align, **size), (2, 3, 5, 7))
    assert rewritten.ops == {"transpose": 2, "linear": 2}


@pytest.mark.parametrize("size", [{"scale_factor": 3.0}, {"size": 4}])
def test_one_dimension(rewrite: Callable, size: dict[str, Any]) -> None:
    assert rewrite(DecomposeInterpolation(), Resized(mode="linear", **size), (2, 3, 7)).ops == {"linear": 1}


def test_a_dimension_that_keeps_its_size_is_left_alone(rewrite: Callable) -> None:
    assert rewrite(DecomposeInterpolation(), Resized(mode="bilinear", size=(5, 14)), (2, 3, 5, 7)).ops == {"linear": 1}


def test_a_size_of_the_call_is_declined() -> None:
    shapes = {"x": {2: DynamicSize("length", 2, 9)}}
    program = capture(Resized(mode="linear", size=12), torch.randn(2, 6, 5), dynamic_shapes=shapes)
    result = DecomposeInterpolation().run(program, PassContext())
    assert not result.modified and "sizes that are known at run time only: leave them out of dynamic_shapes" in result.notes[0]
