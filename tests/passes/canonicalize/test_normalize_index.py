from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from qcompiler.passes.canonicalize.normalize_index import NormalizeIndex

IDS = torch.ones(2, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: F.embedding(x, m.table, padding_idx=0),
        lambda m, x: m.table[x],
        lambda m, x: F.embedding(x, m.table, scale_grad_by_freq=True),
    ],
)
def test_rows_of_a_table(rewrite: Callable, network: type, function: Callable) -> None:
    rewritten = rewrite(NormalizeIndex(), network(function, table=torch.randn(3, 4)), IDS)
    assert rewritten.expressions == ["aten.embedding(table, inputs_0)"]


def test_rows_of_a_quantized_table(rewrite: Callable, network: type) -> None:
    model = network(lambda m, x: torch.ops.qc.dequantize(m.table, [0.5], [1], -1, 8, True)[x], table=torch.ones(3, 4, dtype=torch.int8))
    assert rewrite(NormalizeIndex(), model, IDS).expressions[-1] == "aten.embedding(dequantize, inputs_0)"


def test_positions_of_maxima(rewrite: Callable, network: type) -> None:
    rewritten = rewrite(NormalizeIndex(), network(lambda m, x: (x.argmax(-1), *x.max(-1, keepdim=True))), (2, 3, 4))
    assert rewritten.lines == [
        "argmax_1 = aten.argmax(inputs_0, dim=2, keepdim=False)",
        "amax = aten.amax(inputs_0, dim=[2], keepdim=True)",
        "argmax_2 = aten.argmax(inputs_0, dim=2, keepdim=True)",
    ]


def test_other_indexing_is_declined(rewrite: Callable, network: type) -> None:
    rewritten = rewrite(NormalizeIndex(), network(lambda m, x: m.table[:, x], table=torch.randn(3, 4)), IDS, dynamic_batch=False)
    assert not rewritten.result.modified
