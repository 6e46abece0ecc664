"""The small passes of stage QDQ: merge-dequantize, fold-dequantize, drop-rounding, hoist-quantize, fold-bias, sign-sixteen-bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from qcompiler.passes.canonicalize.drop_rounding import DropRounding
from qcompiler.passes.canonicalize.fold_bias import FoldBias
from qcompiler.passes.canonicalize.fold_dequantize import FoldDequantize
from qcompiler.passes.canonicalize.hoist_quantize import HoistQuantize
from qcompiler.passes.canonicalize.merge_dequantize import MergeDequantize
from qcompiler.passes.canonicalize.normalize_views import NormalizeViews
from qcompiler.passes.canonicalize.remove_identities import RemoveIdentities
from qcompiler.passes.canonicalize.sign_sixteen_bits import SignSixteenBits

qc = torch.ops.qc
ONE, OTHER = ([0.5], [3], -1, 8, True), ([0.25], [3], -1, 8, True)
BIAS = ([0.125], [0], -1, 32, True)


def test_equal_dequantizes_are_one(rewrite: Callable, network: Callable) -> None:
    def function(m: object, x: torch.Tensor) -> torch.Tensor:
        q = qc.quantize(x, *ONE)
        return qc.dequantize(q, *ONE) * torch.sigmoid(qc.dequantize(q, *ONE)) + qc.dequantize(q, *OTHER)

    assert sum("qc.dequantize" in line for line in rewrite(MergeDequantize(), network(function), (1, 4)).lines) == 2


def test_numbers_and_parameters_become_reals(rewrite: Callable, network: Callable) -> None:
    def function(m: object, x: torch.Tensor) -> torch.Tensor:
        gamma = qc.dequantize(m.gamma, *ONE)
        return F.layer_norm(x, [4], gamma) / qc.dequantize(m.number, *ONE) + qc.dequantize(m.term, *ONE)

    members = {
        "gamma": torch.arange(4, dtype=torch.int8),
        "number": torch.tensor(9, dtype=torch.int8),
        "term": torch.ones(4, dtype=torch.int8),
    }
    found = rewrite(FoldDequantize(), network(function, **members), (1, 4))
    assert [line for line in found.expressions if "qc." in line] == [
        "qc.dequantize(term, scale=[0.5], zero_point=[3], axis=-1, bits=8, signed=True)"
    ]


@pytest.mark.parametrize(
    ("move", "dropped"),
    [
        (lambda x: x.reshape(-1, 8).permute(0, 1), True),
        (lambda x: F.pad(x, [0, 1]), True),
        (lambda x: F.pad(x, [0, 1], value=1.0), False),
        (lambda x: torch.relu(x), False),
        (lambda x: torch.cat([x, x], 1), False),
    ],
)
def test_roundings_that_change_nothing(rewrite: Callable, network: Callable, move: Callable, dropped: bool) -> None:
    def function(m: object, x: torch.Tensor) -> torch.Tensor:
        moved = move(qc.dequantize(qc.quantize(x, *ONE), *ONE))
        return qc.dequantize(qc.quantize(moved, *ONE), *ONE) * 2

    found = rewrite(DropRounding(), network(function), (1, 2, 4), before=[RemoveIdentities(), NormalizeViews()])
    assert sum("qc.quantize" in line for line in found.lines) == (1 if dropped else 2)


def test_roundings_to_other_steps_stay(rewrite: Callable, network: Callable) -> None:
    def function(m: object, x: torch.Tensor) -> torch.Tensor:
        return qc.dequantize(qc.quantize(qc.dequantize(qc.quantize(x, *ONE), *ONE), *OTHER), *OTHER)

    assert not rewrite(DropRounding(), network(function), (1, 4)).result.modified


def test_class_tokens_are_integers(rewrite: Callable, network: Callable) -> None:
    def function(m: object, x: torch.Tensor) -> torch.Tensor:
        token = qc.dequantize(qc.quantize(m.token.expand(x.shape[0], 1, 4), *ONE), *ONE)
        return torch.cat([token, x], 1)

    found = rewrite(HoistQuantize(), network(function, token=torch.randn(1, 1, 4)), (1, 2, 4))
    assert not any("qc.quantize" in line for line in found.lines)
    assert any(constant.dtype is torch.int8 for constant in found.program.graph_module.buffers())


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_sums_after_layers_are_biases(rewrite: Callable, network: Callable, shape: tuple[int, ...]) -> None:
    def function(m: object, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, qc.dequantize(m.w, *ONE)) + qc.dequantize(m.b, *BIAS)

    members = {"w": torch.ones(3, 4, dtype=torch.int8), "b": torch.arange(3, dtype=torch.int32).reshape(shape)}
    assert "add" not in rewrite(FoldBias(), network(function, **members), (1, 4)).ops


def test_sums_of_other_shapes_stay(rewrite: Callable, network: Callable) -> None:
    def function(m: object, x: torch.Tensor) -> torch.Tensor:
        layer = F.conv2d(x, qc.dequantize(m.w, *ONE))
        return layer + qc.dequantize(m.b, *BIAS)

    members = {"w": torch.ones(2, 3, 1, 1, dtype=torch.int8), "b": torch.arange(2, dtype=torch.int32)}
    assert not rewrite(FoldBias(), network(function, **members), (1, 3, 2, 2)).result.modified


def test_sixteen_bits_get_a_sign(rewrite: Callable, network: Callable) -> None:
    kind = ([0.25], [40000], -1, 16, False)
    found = rewrite(SignSixteenBits(), network(lambda m, x: qc.dequantize(qc.quantize(x, *kind), *kind)), (1, 4))
    assert all("zero_point=[7232], axis=-1, bits=16, signed=True" in line for line in found.lines)


def test_sixteen_bits_at_outputs_stay(rewrite: Callable, network: Callable) -> None:
    assert not rewrite(SignSixteenBits(), network(lambda m, x: qc.quantize(x, [0.25], [40000], -1, 16, False)), (1, 4)).result.modified


@pytest.mark.parametrize("quantized", [False, True])
def test_a_table_is_quantized_before_its_rows_are_chosen(rewrite: Callable, network: Callable, quantized: bool) -> None:
    """Of a table in integers too, whose scale for each column no sum could take."""
    columns = ([0.5, 0.25], [0, 0], 1, 8, True)

    def function(m: object, x: torch.Tensor) -> torch.Tensor:
        table = qc.dequantize(m.table, *columns) if quantized else m.table
        return qc.dequantize(qc.quantize(F.embedding(x, table).unsqueeze(1), *ONE), *ONE)

    table = torch.tensor([[-3, 2], [1, 4]], dtype=torch.int8) if quantized else torch.tensor([[-1.6, 0.5], [0.6, 1.0]])
    found = rewrite(HoistQuantize(), network(function, table=table), torch.ones(1, 3, dtype=torch.int64))
    assert [line.partition("(")[0] for line in found.expressions] == ["aten.embedding", "aten.unsqueeze", "qc.dequantize"]


def test_rows_of_a_table_are_on_its_steps(rewrite: Callable, network: Callable) -> None:
    def function(m: object, x: torch.Tensor) -> torch.Tensor:
        return qc.dequantize(qc.quantize(F.embedding(x, qc.dequantize(m.table, *ONE)), *ONE), *ONE) + 1

    found = rewrite(DropRounding(), network(function, table=torch.ones(2, 4, dtype=torch.int8)), torch.ones(1, 3, dtype=torch.int64))
    assert [line.partition("(")[0] for line in found.expressions] == ["qc.dequantize", "aten.embedding", "aten.add.Tensor"]
