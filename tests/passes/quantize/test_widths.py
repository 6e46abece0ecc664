"""The two widths of values: which belong to the residual stream, and who reads which type."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.capture import capture
from qcompiler.ir.program import Program
from qcompiler.passes.quantize.grouping import ValueGroups, Width, group_values
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline


class Network(nn.Module):
    """``function(self, x)`` with two layers and two norms at hand."""

    def __init__(self, function: Callable[[Network, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.other = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def grouped(function: Callable[[Network, Tensor], Tensor], two_widths: bool = True) -> tuple[Program, ValueGroups]:
    program = capture(Network(function).eval(), torch.zeros(2, 5, 8))
    program = PassManager(parse_pipeline("canonicalize")).run(program)
    return program, group_values(program.graph, two_widths)


def names(values: object) -> set[str]:
    return {node.name for node in values}  # type: ignore[attr-defined]  # nodes


def test_sums_that_lead_to_a_norm_are_wide() -> None:
    _, groups = grouped(lambda m, x: m.second(m.norm(m.first(x) + x)))
    assert names(groups.wide) == {"x", "add"} and names(groups.internal) == {"linear", "linear_1"}
    assert names(groups.narrow) == {"x", "layer_norm"}, "the input is read by a layer too"


def test_a_network_without_norms_has_one_width() -> None:
    _, groups = grouped(lambda m, x: m.second(F.relu(m.first(x) + x)))
    assert not groups.wide


def test_one_width_if_asked_for() -> None:
    _, groups = grouped(lambda m, x: m.second(m.norm(m.first(x) + x)), two_widths=False)
    assert not groups.wide and "add" in names(groups.narrow)


def test_a_norm_that_a_sum_and_a_layer_read_has_both() -> None:
    _, groups = grouped(lambda m, x: (lambda y: m.second(m.other(m.first(y) + y)))(m.norm(x)))
    assert {"layer_norm"} == names(groups.wide) & names(groups.narrow)


def test_moves_pass_the_width_on_and_rows_that_go_to_a_layer_alone_are_narrow() -> None:
    program, groups = grouped(lambda m, x: m.norm((m.first(x) + x).flip(1)) @ m.second(x[:, 1:3]).transpose(1, 2))
    (moved,) = [node for node in groups.wide if node.op == "call_function" and node.args[0].name == "add"]
    assert groups.wide[moved].name == "add" and moved not in groups.narrow
    (rows,) = [node for node in program.graph.nodes if str(node.target) == "aten.slice.Tensor" and node is not moved]
    assert rows in groups.narrow and rows not in groups.wide


def test_readers_take_their_own_width() -> None:
    program, groups = grouped(lambda m, x: (lambda y: m.second(m.other(m.first(y) + y)))(m.norm(x)))
    nodes = {node.name: node for node in program.graph.nodes}
    norm = nodes["layer_norm"]
    assert groups.width_read(norm, nodes["linear"]) is Width.NARROW and groups.width_read(norm, nodes["add"]) is Width.WIDE


def test_tables_are_never_wide() -> None:
    _, groups = grouped(lambda m, x: m.norm(F.gelu(m.first(x)) + x))
    assert "gelu" in names(groups.narrow) - names(groups.wide)


def test_what_an_argmax_reads_has_one_scale() -> None:
    _, groups = grouped(lambda m, x: m.first(x).argmax(-1))
    assert names(groups.wide) == {"linear"}


def test_a_multiple_is_the_same_integers() -> None:
    _, groups = grouped(lambda m, x: m.first(F.gelu(x * 0.25) + x))
    assert names(groups.exact) == {"mul"} and "mul" not in names(groups.narrow)


def test_a_multiple_of_an_accumulator_waits_for_one_rounding() -> None:
    _, groups = grouped(lambda m, x: (x @ x.transpose(1, 2) * 0.25).softmax(-1) @ x)
    assert names(groups.internal) == {"matmul"} and "mul" in names(groups.narrow)


def test_a_product_that_is_scaled_and_added_to_waits_too() -> None:
    bias = torch.randn(5, 5)
    _, groups = grouped(lambda m, x: (x @ x.transpose(1, 2) * 0.25 + bias).softmax(-1) @ x)
    assert names(groups.internal) == {"matmul", "mul"}


def test_scores_are_rounded_before_the_mask() -> None:
    mask = torch.ones(5, 5).tril().bool()
    _, groups = grouped(lambda m, x: F.scaled_dot_product_attention(x, m.first(x), x, attn_mask=mask))
    assert "masked_fill" in names(groups.exact) and "mul" in names(groups.narrow)


def test_a_masked_mean_is_rounded_once() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            weight = mask[..., None].float()
            result: Tensor = (x * weight).sum(1) / weight.sum(1)
            return result

    program = capture(Mean().eval(), (torch.zeros(2, 5, 8), torch.ones(2, 5, dtype=torch.long)))
    groups = group_values(PassManager(parse_pipeline("canonicalize")).run(program).graph)
    assert names(groups.internal) == {"mul", "sum_1"} and names(groups.exact) == {"to", "sum_2"}
    assert names(groups.wide) == {"x", "div"}, "a result that is an output, and the mean keeps the width"
