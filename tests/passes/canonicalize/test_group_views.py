from __future__ import annotations

from collections.abc import Callable

import pytest
from torch.export import Dim

from qcompiler.passes.canonicalize.group_views import GroupViews

SEQUENCE = {0: {1: Dim("sequence", min=1, max=9)}}


@pytest.mark.parametrize(
    ("function", "calls"),
    [
        (lambda m, x: x.view(x.shape[0], x.shape[1], 3, -1), ["aten.unflatten.int(inputs_0, dim=2, sizes=[3, 4])"]),
        (
            lambda m, x: x.view(x.shape[0], x.shape[1], 1, 4, 3).reshape(x.shape[0], 1, x.shape[1], 6, 2),
            [
                "aten.unflatten.int(inputs_0, dim=2, sizes=[1, 4, 3])",
                "aten.unsqueeze(unflatten, dim=1)",
                "aten.flatten.using_ints(unsqueeze, start_dim=3, end_dim=5)",
                "aten.unflatten.int(flatten, dim=3, sizes=[6, 2])",
            ],
        ),
        (lambda m, x: x[:, None, :].squeeze(1).flatten(2).unsqueeze(-1), None),
    ],
)
def test_golden(rewrite: Callable, network: type, function: Callable, calls: list[str] | None) -> None:
    rewritten = rewrite(GroupViews(), network(function), (2, 3, 12), dynamic_shapes=SEQUENCE)
    found = rewritten.expressions
    assert calls is None or found == calls
    assert not any("sym_size" in call or "view" in call for call in found)


def test_static_sizes_are_for_normalize_views(rewrite: Callable, network: type) -> None:
    assert not rewrite(GroupViews(), network(lambda m, x: x.view(x.shape[0], 6, 2)), (2, 3, 4)).result.modified


def test_merged_sequence_is_declined(rewrite: Callable, network: type) -> None:
    rewritten = rewrite(GroupViews(), network(lambda m, x: x.flatten(1).sum(1)), (2, 3, 4), dynamic_shapes=SEQUENCE)
    assert not rewritten.result.modified and "it merges or splits a size known at run time" in rewritten.result.notes[0]
