from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qcompiler.passes.canonicalize.merge_duplicates import MergeDuplicates


def test_golden(rewrite: Callable, network: type) -> None:
    def masked_twice(m: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        return x.masked_fill(mask == 0, 1.0) + x.masked_fill(mask == 0, 2.0)

    rewritten = rewrite(MergeDuplicates(), network(masked_twice), (2, 3), torch.ones(2, 3, dtype=torch.int64))
    assert rewritten.lines[0] == "eq = aten.eq.Scalar(inputs_1, other=0)" and rewritten.ops["eq"] == 1


def test_floats_and_other_arguments_are_left_alone(rewrite: Callable, network: type) -> None:
    assert not rewrite(MergeDuplicates(), network(lambda m, x: x.relu() + x.relu()), (2, 3)).result.modified
    model = network(lambda m, x: (x == 0) | (x == 1))
    assert not rewrite(MergeDuplicates(), model, torch.ones(2, 3, dtype=torch.int64)).result.modified
