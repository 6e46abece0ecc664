"""Groups of output channels in the allocation problem."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.errors import QCompilerError
from qcompiler.passes.allocate.groups import channel_bits, channel_groups, split
from qcompiler.passes.allocate.problem import Budget, Cost, Problem, Variable
from qcompiler.passes.allocate.solver import solve

SALIENCE = np.array([[1.0, 100.0, 2.0, 50.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]])
BITS = (4, 8)


def layer(limit: float) -> Problem:
    """One layer that costs its bits, beside another."""
    variables = (Variable("w", BITS, (10.0, 0.1)), Variable("v", BITS, (0.5, 0.0)))
    costs = (Cost(("w",), np.array(BITS, dtype=float)), Cost(("v",), np.array(BITS, dtype=float)))
    return Problem(variables, (Budget("size", limit, costs),))


def test_groups_hold_all_channels_the_most_salient_first() -> None:
    groups = channel_groups(SALIENCE, 3)
    assert [group.channels.tolist() for group in groups] == [[1, 3], [0, 2], [4, 5]]
    assert np.sum([group.shares for group in groups], axis=0) == pytest.approx([1.0, 1.0])
    assert groups[0].shares == pytest.approx([150.0 / 154.0, 1.0])
    assert sum(group.size for group in groups) == pytest.approx(1.0)


def test_groups_follow_a_given_order_and_differ_by_a_channel_at_most() -> None:
    groups = channel_groups(SALIENCE, 4, np.arange(6))
    assert [group.channels.tolist() for group in groups] == [[0, 1], [2, 3], [4], [5]]


def test_channels_that_lose_nothing_share_by_their_number() -> None:
    assert [group.shares.tolist() for group in channel_groups(np.zeros((1, 3)), 2)] == [[pytest.approx(2 / 3)], [pytest.approx(1 / 3)]]


def test_only_salient_channels_get_more_bits() -> None:
    groups = channel_groups(SALIENCE, 3)
    whole = solve(layer(10.0))
    parts = solve(split(layer(10.0), {"w": groups}))
    assert whole.chosen["w"] == 4  # 8 do not fit
    assert channel_bits(parts.chosen, "w", groups) == (4, 8, 4, 8, 4, 4)
    assert parts.objective < 0.2 * whole.objective and parts.costs["size"] <= 10.0


def test_with_equal_options_the_parts_are_the_whole() -> None:
    groups = channel_groups(SALIENCE, 2)
    parts = solve(split(Problem(layer(99.0).variables, layer(99.0).budgets, pins={"w": 4}), {"w": groups}))
    whole = solve(Problem(layer(99.0).variables, layer(99.0).budgets, pins={"w": 4}))
    assert parts.objective == pytest.approx(whole.objective) and parts.costs["size"] == pytest.approx(whole.costs["size"])


def test_a_tie_holds_for_all_groups() -> None:
    tied = Problem(layer(12.0).variables, layer(12.0).budgets, (("v", "w"),))
    found = solve(split(tied, {"w": channel_groups(SALIENCE, 2)}))
    assert len(set(found.chosen.values())) == 1


def test_a_pair_of_items_that_are_both_split_costs_the_same() -> None:
    cost = Cost(("w", "v"), np.array([[16.0, 32.0], [32.0, 64.0]]))
    variables = (Variable("w", BITS, (1.0, 0.5)), Variable("v", BITS, (1.0, 0.5)))
    problem = Problem(variables, (Budget("bops", 99.0, (cost,)),), pins={"w": 4, "v": 8})
    groups = {"w": channel_groups(SALIENCE, 3), "v": channel_groups(SALIENCE, 2)}
    assert solve(split(problem, groups)).costs["bops"] == pytest.approx(solve(problem).costs["bops"])


def test_bytes_of_a_group_are_whole() -> None:
    whole = Problem((Variable("w", (4,), (1.0,)),), (Budget("size", 99.0, (Cost(("w",), np.array([7.0])),), "bytes"),))
    assert solve(split(whole, {"w": channel_groups(SALIENCE[:1], 2)})).costs["size"] == 8.0  # 3.5 each
    even = channel_groups(np.ones((1, 7)), 7)
    assert solve(split(whole, {"w": even})).costs["size"] == 7.0  # a seventh of 7 each, up to rounding


def test_more_groups_than_channels_is_a_mistake() -> None:
    with pytest.raises(QCompilerError, match="6 channels cannot be split into 7 groups"):
        channel_groups(SALIENCE, 7)
    with pytest.raises(QCompilerError, match="not negative"):
        channel_groups(-SALIENCE, 2)
