"""Allocation by dynamic programming over one budget: the multiple-choice knapsack, its costs rounded to units.

    best[c] = least sum of sensitivities of the classes so far at a cost of at most c units

Costs of pairs are taken in as long as each pair has a class of its own (a weight) and one that several pairs may share (the value that the
layers read): for each option of the shared class its pairs are independent of each other. Where the roundings add up to more than the
limit, the best allocation of so many units less is read from the same table. With ``RESOLUTION`` units it may miss the best allocation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.passes.allocate.moves import Moves
from qcompiler.passes.allocate.problem import AllocationError, Array, Reduced, ReducedBudget, fits

RESOLUTION = 10_000


def solve(reduced: Reduced) -> list[int] | None:
    """The position of the option of each class; None where rounded costs leave no allocation.

    Raises:
        AllocationError: there is not exactly one budget, or its pairs form no stars.
    """
    if len(reduced.budgets) != 1:
        raise AllocationError(f"dynamic programming takes one budget, not {len(reduced.budgets)}: use solver 'ilp'")
    (budget,) = reduced.budgets
    stars = _stars(reduced, budget)
    floor = budget.fixed + sum(star.least for star in stars)
    if not fits(floor, budget.limit):
        return None
    unit = max(budget.limit - floor, 0.0) / RESOLUTION or 1.0
    best: Array = np.zeros(RESOLUTION + 1)
    steps: list[_Fold] = []
    for star in stars:
        fold = _Fold(star, best, unit)
        best = fold.best
        steps.append(fold)
    return _read_back(reduced, budget, steps, unit)


def _read_back(reduced: Reduced, budget: ReducedBudget, steps: Sequence[_Fold], unit: float) -> list[int] | None:
    """The best allocation of at most so many units that its exact cost keeps the limit."""
    most = RESOLUTION
    while most >= 0:
        positions = [0] * len(reduced.classes)
        left = most
        for fold in reversed(steps):
            if left < 0 or not np.isfinite(fold.best[left]):
                return None
            left = fold.read_back(left, positions)
        total = float(Moves(reduced, positions).totals[0])
        if fits(total, budget.limit):
            return positions
        most -= max(1, int((total - budget.limit) / unit))
    return None


@dataclass(frozen=True, eq=False)
class _Leaf:
    """A class with the cost of each option for each option of the star's centre, [centre options, options]."""

    number: int
    costs: Array
    sensitivities: Array


@dataclass(frozen=True, eq=False)
class _Star:
    """A class and those whose joint costs with it are all that they have; costs of the centre itself: [options]."""

    number: int
    costs: Array
    sensitivities: Array
    leaves: tuple[_Leaf, ...]

    def floor(self, at: int) -> float:
        return float(self.costs[at] + sum(leaf.costs[at].min() for leaf in self.leaves))

    @property
    def least(self) -> float:
        return min(self.floor(at) for at in range(len(self.costs)))


class _Fold:
    """One star taken into the table, and what was chosen for each cost."""

    def __init__(self, star: _Star, before: Array, unit: float) -> None:
        self._star, self._unit = star, unit
        self._tables: list[list[NDArray[np.int16]]] = []  # for each option of the centre, for each leaf: its option for each cost
        results = []
        for at in range(len(star.costs)):
            table = _shifted(before, self._centre_units(at)) + star.sensitivities[at]
            chosen = []
            for leaf in star.leaves:
                table, option = self._with_leaf(table, leaf, at)
                chosen.append(option)
            self._tables.append(chosen)
            results.append(table)
        stacked = np.stack(results)
        self._centre: NDArray[np.intp] = stacked.argmin(0)
        self.best: Array = stacked.min(0)

    def read_back(self, left: int, positions: list[int]) -> int:
        """Write the choices for a cost of ``left`` units; gives the units that are left for the stars before."""
        at = int(self._centre[left])
        positions[self._star.number] = at
        for leaf, chosen in zip(reversed(self._star.leaves), reversed(self._tables[at]), strict=True):
            option = int(chosen[left])
            positions[leaf.number] = option
            left -= int(self._leaf_units(leaf, at)[option])
        return left - self._centre_units(at)

    def _with_leaf(self, table: Array, leaf: _Leaf, at: int) -> tuple[Array, NDArray[np.int16]]:
        units = self._leaf_units(leaf, at)
        results = np.stack([_shifted(table, int(count)) + lost for count, lost in zip(units, leaf.sensitivities, strict=True)])
        return results.min(0), results.argmin(0).astype(np.int16)

    def _centre_units(self, at: int) -> int:
        """The centre carries what its option costs with the cheapest leaves, above the cheapest of all."""
        return _units(np.array([self._star.floor(at) - self._star.least]), self._unit)[0]

    def _leaf_units(self, leaf: _Leaf, at: int) -> list[int]:
        return _units(leaf.costs[at] - leaf.costs[at].min(), self._unit)


def _units(costs: Array, unit: float) -> list[int]:
    """More than the table holds is as good as infinite."""
    return [min(RESOLUTION + 1, round(float(cost / unit))) for cost in costs]


def _shifted(table: Array, units: int) -> Array:
    """``table[c - units]``, infinite where that is negative."""
    if units > RESOLUTION:
        return np.full_like(table, np.inf)
    return np.concatenate([np.full(units, np.inf), table[: table.size - units]])


def _stars(reduced: Reduced, budget: ReducedBudget) -> list[_Star]:
    """Each class that is second in a pair, or in none, is a centre; the first of a pair is its leaf."""
    centres = {other for _, other in budget.pairs}
    leaves: dict[int, list[_Leaf]] = {}
    for (one, other), values in budget.pairs.items():
        if one in centres or any(leaf.number == one for found in leaves.values() for leaf in found):
            names = reduced.classes[one].names
            raise AllocationError(
                f"dynamic programming needs pairs that share one side only, and {names[0]} is in several: use solver 'ilp'"
            )
        costs = values.T + budget.unary.get(one, np.zeros(values.shape[0]))
        leaves.setdefault(other, []).append(_Leaf(one, costs, reduced.classes[one].sensitivities))
    inside = {leaf.number for found in leaves.values() for leaf in found}
    return [
        _Star(number, _alone(budget, number, len(group.options)), group.sensitivities, tuple(leaves.get(number, ())))
        for number, group in enumerate(reduced.classes)
        if number not in inside
    ]


def _alone(budget: ReducedBudget, number: int, options: int) -> Array:
    return np.asarray(budget.unary.get(number, np.zeros(options)), dtype=np.float64)
