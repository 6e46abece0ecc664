"""Groups of output channels in the allocation problem."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.errors import QCompilerError
from qcompiler.passes.allocate.groups import channel_bits, channel_groups, split
from qcompiler.passes.allocate.problem import Budget, Cost, Problem, Variable
from qcompiler.passes.allocate.solver import solve

SALIENCE = np.array([1.0, 100.0, 2.0, 50.0, 0.0, 1.0])
BITS = (4, 8)


def layer(limit: float) -> Problem:
    """One layer that costs its bits, beside another."""
    variables = (Variable("w", BITS, (10.0, 0.1)), Variable("v", BITS, (0.5, 0.0)))
    costs = (Cost(("w",), np.array(BITS, dtype=float)), Cost(("v",), np.array(BITS, dtype=float)))
    return Problem(variables, (Budget("size", limit, costs),))


def test_groups_hold_all_channels_the_most_salient_first() -> None:
    groups = channel_groups(SALIENCE, 3)
    assert [group.channels.tolist() for group in groups] == [[1, 3], [0, 2], [4, 5]]
    assert sum(group.sensitivity for group in groups) == pytest.approx(1.0)
    assert sum(group.size for group in groups) == pytest.approx(1.0)


def test_only_salient_channels_get_more_bits() -> None:
    groups = channel_groups(SALIENCE, 3)
    whole = solve(layer(10.0))
    parts = solve(split(layer(10.0), "w", groups))
    assert whole.chosen["w"] == 4  # 8 do not fit
    assert channel_bits(parts.chosen, "w", groups).tolist() == [4, 8, 4, 8, 4, 4]
    assert parts.objective < 0.2 * whole.objective and parts.costs["size"] <= 10.0


def test_with_equal_options_the_parts_are_the_whole() -> None:
    groups = channel_groups(SALIENCE, 2)
    parts = solve(split(Problem(layer(99.0).variables, layer(99.0).budgets, pins={"w": 4}), "w", groups))
    whole = solve(Problem(layer(99.0).variables, layer(99.0).budgets, pins={"w": 4}))
    assert parts.objective == pytest.approx(whole.objective) and parts.costs["size"] == pytest.approx(whole.costs["size"])


def test_a_tie_holds_for_all_groups() -> None:
    tied = Problem(layer(12.0).variables, layer(12.0).budgets, (("v", "w"),))
    found = solve(split(tied, "w", channel_groups(SALIENCE, 2)))
    assert len(set(found.chosen.values())) == 1


def test_more_groups_than_channels_is_a_mistake() -> None:
    with pytest.raises(QCompilerError, match="6 channels cannot be split into 7 groups"):
        channel_groups(SALIENCE, 7)
    with pytest.raises(QCompilerError, match="not negative"):
        channel_groups(-SALIENCE, 2)
