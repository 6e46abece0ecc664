from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.capture import capture
from qcompiler.ir.program import Program
from qcompiler.passes.quantize.grouping import ValueGroups, group_values


class Network(nn.Module):
    """``function(self, x)`` with two convolutions and a linear layer at hand."""

    def __init__(self, function: Callable[[Network, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def grouped(function: Callable[[Network, Tensor], Tensor]) -> tuple[Program, dict[str, str], set[str]]:
    """The program, its representatives and its internal values, by name."""
    program = capture(Network(function).eval(), torch.zeros(2, 4, 6, 6))
    groups: ValueGroups = group_values(program.graph)
    representatives = {node.name: owner.name for node, owner in groups.narrow.items()}
    return program, representatives, {node.name for node in groups.internal}


def test_only_the_value_after_an_activation_is_rounded() -> None:
    _, representatives, internal = grouped(lambda m, x: m.second(F.relu(m.first(x))).exp())
    assert "conv2d" in internal and representatives["relu"] == "relu"
    assert representatives["conv2d_1"] == "conv2d_1", "exp is a table of rounded integers, no bound"


def test_an_activation_whose_input_has_another_reader_shares_its_parameters() -> None:
    _, representatives, internal = grouped(lambda m, x: (lambda y: F.relu(y) * y)(m.first(x)))
    assert not internal & {"conv2d", "relu"}
    assert representatives["relu"] == representatives["conv2d"] == "conv2d"


def test_bounds_of_bounds_are_all_fused() -> None:
    _, representatives, internal = grouped(lambda m, x: m.second(F.relu(m.first(x)).clamp(max=3.0)))
    assert {"conv2d", "relu"} <= internal and representatives["clamp"] == "clamp"


def test_a_convolution_that_is_only_added_stays_in_int32() -> None:
    _, representatives, internal = grouped(lambda m, x: m.second(F.relu(m.first(x) + x)))
    assert {"conv2d", "add"} <= internal and representatives["relu"] == "relu"


def test_of_two_convolutions_that_are_added_the_later_one_stays() -> None:
    _, representatives, internal = grouped(lambda m, x: F.relu(m.first(x) + m.second(x)).exp())
    assert "conv2d_1" in internal and representatives["conv2d"] == "conv2d"


def test_a_value_added_to_itself_is_rounded() -> None:
    _, representatives, _ = grouped(lambda m, x: (lambda y: y + y)(m.first(x)))
    assert "conv2d" in representatives


def test_an_accumulator_that_addition_broadcasts_is_rounded() -> None:
    _, representatives, _ = grouped(lambda m, x: m.first(x.mean((2, 3), keepdim=True)) + x)
    assert "conv2d" in representatives


def test_logits_stay_accumulators() -> None:
    _, representatives, internal = grouped(lambda m, x: m.linear(x.mean((2, 3))))
    assert "linear" in internal and "mean" in representatives


def test_an_output_after_an_activation_is_rounded() -> None:
    _, representatives, internal = grouped(lambda m, x: F.relu(m.first(x)))
    assert representatives["relu"] == "relu" and internal == {"conv2d"}


def test_moved_values_share() -> None:
    _, representatives, _ = grouped(lambda m, x: m.second(F.max_pool2d(m.first(x), 2).permute(0, 1, 3, 2)))
    assert representatives["max_pool2d"] == representatives["permute"] == "conv2d"


def test_inputs_of_a_concatenation_take_its_parameters_where_nobody_else_reads_them() -> None:
    _, representatives, _ = grouped(lambda m, x: torch.cat([F.relu(m.first(x)), F.max_pool2d(m.second(x), 3, 1, 1), x], 1).exp())
    assert representatives["relu"] == representatives["conv2d_1"] == representatives["max_pool2d"] == "cat"
    assert representatives["x"] == "x", "the input of the program keeps its own"


def test_concatenations_of_concatenations_all_take_the_last_parameters() -> None:
    def function(m: Network, x: Tensor) -> Tensor:
        inner = torch.cat([m.first(x), m.second(x)], 1)
        return torch.cat([inner, x.exp()], 1).tanh()

    program = capture(Network(function).eval(), torch.zeros(2, 4, 6, 6))
    groups = group_values(program.graph)
    representatives = {node.name: owner.name for node, owner in groups.narrow.items()}
    assert {representatives[name] for name in ("conv2d", "conv2d_1", "cat", "cat_1", "exp")} == {"cat_1"}


def test_what_has_no_integer_form_is_told() -> None:
    program = capture(Network(lambda m, x: torch.maximum(m.first(x), x)).eval(), torch.zeros(2, 4, 6, 6))
    assert [node.name for node in group_values(program.graph).without_integer_form] == ["maximum"]
