from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from qcompiler.passes.canonicalize.normalize_pooling import NormalizePooling


@pytest.mark.parametrize("size", [1, 3, (6, 1), (2, 4)])
@pytest.mark.parametrize(("pool", "op"), [(nn.AdaptiveAvgPool2d, "avg_pool2d"), (nn.AdaptiveMaxPool2d, "max_pool2d")])
def test_equal_windows(rewrite: Callable, pool: type[nn.Module], op: str, size: int | tuple[int, int]) -> None:
    shape = (1, 3, 6, 8) if size == (2, 4) else (1, 3, 6, 6)
    assert rewrite(NormalizePooling(), pool(size), shape).ops == {op: 1}


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])
def test_unequal_windows_are_left_alone(rewrite: Callable, pool: type[nn.Module]) -> None:
    rewritten = rewrite(NormalizePooling(), pool(3), (1, 3, 7, 6))
    assert not rewritten.result.modified
    assert "its windows differ: [7, 6] elements into [3, 3]" in rewritten.result.notes[0]
