from __future__ import annotations

from collections.abc import Callable

import torch

from qcompiler.passes.canonicalize.drop_expand import DropExpand


def test_golden(rewrite: Callable, network: type) -> None:
    rewritten = rewrite(DropExpand(), network(lambda m, x, y: x * y.expand(-1, 3, 4) + y), (2, 3, 4), (2, 1, 4))
    assert rewritten.lines == ["mul_1 = aten.mul.Tensor(inputs_0, inputs_1)", "add = aten.add.Tensor(mul_1, inputs_1)"]


def test_expand_that_gives_the_shape_stays(rewrite: Callable, network: type) -> None:
    assert not rewrite(DropExpand(), network(lambda m, x: x.expand(-1, 3, 4) * 2), (2, 1, 4)).result.modified
    assert not rewrite(DropExpand(), network(lambda m, x: torch.relu(x.expand(-1, 3, 4))), (2, 1, 4)).result.modified
