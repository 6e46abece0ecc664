from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from qcompiler.passes.canonicalize.merge_slices import MergeSlices

SEQUENCE = {0: {1: Dim("sequence", min=1, max=9)}}


def tables() -> dict[str, Tensor]:
    return {"first": torch.randn(9, 4), "second": torch.randn(9, 4)}


def test_golden(rewrite: Callable, network: type) -> None:
    model = network(lambda m, x: x + m.first[: x.shape[1]] + m.second[: x.shape[1]], **tables())
    rewritten = rewrite(MergeSlices(), model, (2, 3, 4), dynamic_shapes=SEQUENCE)
    assert rewritten.lines == [
        "sym_size_int_2 = aten.sym_size.int(inputs_0, dim=1)",
        "slice_3 = aten.slice.Tensor(add_1_constant, dim=0, start=None, sym_size_int_2)",
        "add_2 = aten.add.Tensor(inputs_0, slice_3)",
    ]


@pytest.mark.parametrize("function", [lambda m, x: x + m.vector + m.first[: x.shape[1]], lambda m, x: x + m.first[: x.shape[1]] + m.vector])
def test_constant_that_is_not_sliced(rewrite: Callable, network: type, function: Callable) -> None:
    rewritten = rewrite(MergeSlices(), network(function, vector=torch.randn(4), **tables()), (2, 3, 4), dynamic_shapes=SEQUENCE)
    assert rewritten.ops == {"sym_size": 1, "slice": 1, "add": 1}


def test_other_slices_are_declined(rewrite: Callable, network: type) -> None:
    model = network(lambda m, x: x + m.first[: x.shape[1]] + m.second[None, : x.shape[1]], **tables())
    rewritten = rewrite(MergeSlices(), model, (2, 3, 4), dynamic_shapes=SEQUENCE)
    assert not rewritten.result.modified
