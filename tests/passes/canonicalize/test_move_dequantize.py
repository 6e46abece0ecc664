from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from qcompiler.passes.canonicalize.move_dequantize import MoveDequantize

qc = torch.ops.qc
ONE = ([0.5], [3], -1, 8, True)
ROWS = ([0.5, 0.25], [0, 1], 0, 8, True)


def total(x: torch.Tensor) -> torch.Tensor:
    return torch.sum(x, list(range(x.ndim)))


def weight() -> torch.Tensor:
    return torch.arange(-4, 4, dtype=torch.int8).reshape(2, 4)


@pytest.mark.parametrize(
    ("move", "axis"),
    [
        (lambda w: w.t(), 1),
        (lambda w: w.reshape(2, 2, 2), 0),
        (lambda w: w.unsqueeze(0).permute(0, 2, 1), 2),
        (lambda w: w[:, 1:3], 0),
    ],
)
def test_weights_take_their_scales_along(rewrite: Callable, network: Callable, move: Callable, axis: int) -> None:
    model = network(lambda m, x: x + total(move(qc.dequantize(m.w, *ROWS))), w=weight())
    found = rewrite(MoveDequantize(), model, (1, 1))
    (dequantize,) = (line for line in found.expressions if line.startswith("qc.dequantize"))
    assert f"axis={axis}" in dequantize
    assert set(found.ops) == {"qc", "sum", "add"}


def test_scales_that_do_not_follow(rewrite: Callable, network: Callable) -> None:
    model = network(lambda m, x: x + total(qc.dequantize(m.w, *ROWS).reshape(8)), w=weight())
    found = rewrite(MoveDequantize(), model, (1, 1))
    assert not found.result.modified and "the scales of the constant do not follow" in found.result.notes[0]


@pytest.mark.parametrize(
    "move",
    [
        lambda q: q.reshape(-1, 32),
        lambda q: F.pad(q, [1, 0], value=5),
        lambda q: F.max_pool2d(q.float(), 2).to(torch.int8),
    ],
)
def test_integers_that_move_become_reals(rewrite: Callable, network: Callable, move: Callable) -> None:
    model = network(lambda m, x: qc.dequantize(move(qc.quantize(x, *ONE)), *ONE))
    found = rewrite(MoveDequantize(), model, (1, 2, 4, 4))
    assert found.expressions[1].startswith("qc.dequantize(quantize") and "to.dtype" not in str(found.expressions)


def test_integers_at_outputs(rewrite: Callable, network: Callable) -> None:
    found = rewrite(MoveDequantize(), network(lambda m, x: qc.quantize(x, *ONE).flatten(1)), (1, 2, 4))
    assert [line.partition("(")[0] for line in found.expressions] == [
        "qc.quantize",
        "qc.dequantize",
        "aten.flatten.using_ints",
        "qc.quantize",
    ]


def test_rows_of_integers_become_reals(rewrite: Callable, network: Callable) -> None:
    ids = torch.ones(1, 5, dtype=torch.int64)
    found = rewrite(MoveDequantize(), network(lambda m, x: qc.dequantize(m.w[x], *ONE), w=weight()), ids)
    assert [line.partition("(")[0] for line in found.expressions] == ["qc.dequantize", "aten.index.Tensor"]
