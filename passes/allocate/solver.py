"""Bit allocation as a 0-1 integer linear program (HAWQ-V3, Yao et al., arXiv 2011.10680), solved by HiGHS.

    minimize    sum s[k, o] x[k, o]
    subject to  sum over o of x[k, o] = 1,  x in {0, 1}                              for each class k of tied items
                sum over j of y[k, i, m, j] = x[k, i],
                sum over i of y[k, i, m, j] = x[m, j],  y >= 0                       for each pair (k, m) with a joint cost
                fixed + sum c[k, o] x[k, o] + sum c[k, i, m, j] y[k, i, m, j] <= limit    for each budget

The linearization is exact: with x in {0, 1} each y[k, ., m, .] is a matrix with one row sum and one column sum of 1, and so the product
x[k, i] x[m, j]. Only x needs to be integer. Where one class of a pair has one option left, or the cost is a sum of one part for each, there
is no y.

Such programs have tight relaxations: all but a few x are integer in them. So the relaxation comes first, and rounding it and changing one
or two classes at a time (``moves``) gives an allocation with a sum u. A column with reduced cost r is zero in every solution below
``bound + r``, so that only the *core* of columns with r <= u - bound is left to HiGHS, a few hundred of several thousand (Balas and
Zemel, "An Algorithm for Large Zero-One Knapsack Problems", 1980).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog, milp

from qcompiler.errors import UnknownNameError
from qcompiler.passes.allocate import dynamic_programming, greedy
from qcompiler.passes.allocate.infeasible import explain
from qcompiler.passes.allocate.moves import Moves
from qcompiler.passes.allocate.problem import (
    AllocationError,
    Array,
    Problem,
    Reduced,
    ReducedBudget,
    Solution,
    evaluate,
    fits,
    keeps_budgets,
    reduce,
)

Method = Literal["ilp", "greedy", "dynamic-programming"]
METHODS: tuple[str, ...] = get_args(Method)

# HiGHS keeps a constraint up to 1e-6. An allocation past a limit by that is sought again under a limit that is as much smaller.
_MARGINS = (0.0, 2e-6, 2e-5)
_RELATIVE_GAP = 5e-4
_TIME_LIMIT = 60.0
_SOLVED, _INFEASIBLE = 0, 2  # of scipy's OptimizeResult.status
_SMALLEST = 1e-12


def solve(problem: Problem, method: str = "ilp", time_limit: float = _TIME_LIMIT) -> Solution:
    """The options with the smallest sum of sensitivities under all budgets, up to a share of 5e-4.

    ``greedy`` and ``dynamic-programming`` are there to compare with.

    Raises:
        AllocationError: no allocation keeps all constraints (or ``method`` found none); the message names those that conflict, and the
            nearest feasible limit of each budget among them.
        UnknownNameError: no such method.
    """
    methods: Mapping[str, Callable[[Reduced], list[int] | None]] = {
        "greedy": greedy.solve,
        "dynamic-programming": dynamic_programming.solve,
    }
    if method == "ilp":
        return _solve_ilp(problem, time_limit)
    if method not in methods:
        raise UnknownNameError("solver", method, METHODS)
    reduced = reduce(problem)
    positions = methods[method](reduced)
    if positions is not None:
        return evaluate(problem, reduced.expand(positions), method)
    _solve_ilp(problem, time_limit)  # says why, if there is no allocation at all
    raise AllocationError(f"solver '{method}' found no allocation that keeps the budgets, though there is one: use solver 'ilp'")


def least(problem: Problem, budget: str, time_limit: float = _TIME_LIMIT) -> float | None:
    """The smallest cost of ``budget`` under all other constraints, which is the nearest limit that can be kept; None: there is none."""
    reduced = reduce(problem.without(budgets=[budget]))
    cost = next(item for item in reduce(problem).budgets if item.name == budget)
    program = _LinearProgram(reduced, cost)
    found = program.solve(0.0, time_limit)
    if found is None:
        return None
    return evaluate(problem, reduced.expand(found.positions), "ilp").costs[budget]


def is_feasible(problem: Problem) -> bool:
    """Whether any allocation keeps all constraints."""
    try:
        reduced = reduce(problem)
    except AllocationError:
        return False
    return _LinearProgram(reduced).solve(0.0, _TIME_LIMIT) is not None


def _solve_ilp(problem: Problem, time_limit: float) -> Solution:
    reduced = reduce(problem)
    program = _LinearProgram(reduced)
    for margin in _MARGINS:
        found = program.solve(margin, time_limit)
        if found is None:
            break
        solution = evaluate(problem, reduced.expand(found.positions), "ilp", found.proven, found.gap)
        if keeps_budgets(problem, solution):
            return solution
    raise AllocationError(explain(problem, is_feasible, least))


@dataclass(frozen=True, eq=False)
class _Rows:
    """Linear constraints: a sparse matrix and its right side."""

    matrix: Any
    right: Array


@dataclass(frozen=True)
class _Found:
    """``above``: by how much its objective may be above that of the relaxation."""

    positions: list[int]
    proven: bool
    gap: float
    above: float = 0.0


class _LinearProgram:
    """Columns: x of each class with more than one option, then y of each pair. ``objective``: a budget in place of the sensitivities."""

    def __init__(self, reduced: Reduced, objective: ReducedBudget | None = None) -> None:
        self._reduced = reduced
        self._start: dict[int, int] = {}
        self._columns = 0
        for number, group in enumerate(reduced.classes):
            if len(group.options) > 1:
                self._start[number] = self._columns
                self._columns += len(group.options)
        self._choices = self._columns
        budgets = (*reduced.budgets, *([objective] if objective else ()))
        self._pair_start: dict[tuple[int, int], int] = {}
        for budget in budgets:
            for pair, values in budget.pairs.items():
                if pair not in self._pair_start:
                    self._pair_start[pair] = self._columns
                    self._columns += values.size
        self._seeks_sensitivities = objective is None
        self._objective = self._scaled(self._sensitivities() if objective is None else self._row(objective))

    def _scaled(self, row: Array) -> Array:
        """The objective in units of a sum that can be had, for HiGHS has absolute tolerances; infinite where one choice loses more.

        Sensitivities of 2 and 8 bits differ by orders of magnitude: with all of them in one program, the small ones would drown.
        """
        scale = float(np.abs(row).max(initial=0.0)) or 1.0
        greedy_positions = greedy.solve(self._reduced) if self._seeks_sensitivities else None
        if greedy_positions is None:
            return row / scale
        reached = sum(float(row[start + greedy_positions[number]]) for number, start in self._start.items())
        scale = max(reached, scale * _SMALLEST)
        return np.where(row <= scale * (1.0 + _RELATIVE_GAP), row / scale, np.inf)

    def solve(self, margin: float, time_limit: float) -> _Found | None:
        """None: infeasible. ``margin``: the share by which limits are made smaller."""
        if any(not budget.unary and not budget.pairs and not fits(budget.fixed, budget.limit) for budget in self._reduced.budgets):
            return None
        if not self._start:
            return _Found([0] * len(self._reduced.classes), True, 0.0)
        equalities, limits = self._equalities(), self._limits(margin)
        relaxed = _relax(self._objective, equalities, limits)
        if relaxed is None:
            return None
        found = self._round(relaxed, margin) if self._seeks_sensitivities else None
        if found is not None and found.gap <= _RELATIVE_GAP:
            return found
        core = np.flatnonzero(np.isfinite(self._objective) & (relaxed.reduced_costs <= (np.inf if found is None else found.above)))
        result = self._solve_core(core, equalities, limits, time_limit)
        if result is None or result.x is None:
            if result is not None and found is None:
                raise AllocationError(f"the solver stopped without an allocation ({result.message}): raise its time limit")
            return found
        values = np.zeros(self._columns)
        values[core] = result.x
        return _Found(self._positions(values), result.status == _SOLVED, float(result.mip_gap or 0.0))

    def _round(self, relaxed: _Relaxed, margin: float) -> _Found | None:
        """A good allocation near the relaxation; None where that is not easy."""
        moves = Moves(self._reduced, self._positions(relaxed.values))
        moves.limits = moves.limits - margin * np.where(np.isfinite(moves.limits), np.abs(moves.limits), 0.0)
        if not moves.repair():
            return None
        moves.improve()
        present = sum(self._objective[start + moves.positions[number]] for number, start in self._start.items())
        above = max(float(present) - relaxed.bound, 0.0)
        gap = above / float(present) if present > 0.0 else 0.0
        return _Found(moves.positions.tolist(), gap <= _RELATIVE_GAP, gap, above * (1.0 + _RELATIVE_GAP) + _SMALLEST)

    def _solve_core(self, core: NDArray[np.intp], equalities: _Rows, limits: _Rows, time_limit: float) -> Any:
        """HiGHS over some of the columns, the others being 0; None: infeasible."""
        constraints = [(equalities.matrix[:, core], equalities.right, equalities.right)]
        if limits.right.size:
            constraints.append((limits.matrix[:, core], np.full(limits.right.size, -np.inf), limits.right))
        result = milp(
            self._objective[core],
            integrality=(core < self._choices).astype(int),
            bounds=(0.0, 1.0),
            constraints=constraints,
            options={"mip_rel_gap": _RELATIVE_GAP, "time_limit": time_limit},
        )
        return None if result.status == _INFEASIBLE else result

    def _positions(self, values: Array) -> list[int]:
        positions = [0] * len(self._reduced.classes)
        for number, start in self._start.items():
            positions[number] = int(np.argmax(values[start : start + len(self._reduced.classes[number].options)]))
        return positions

    def _sensitivities(self) -> Array:
        """From the least of each class up, so that the relative gap is one of what can be chosen at all."""
        row = np.zeros(self._columns)
        for number, start in self._start.items():
            values = self._reduced.classes[number].sensitivities
            row[start : start + len(values)] = values - values.min()
        return row

    def _row(self, budget: ReducedBudget) -> Array:
        row = np.zeros(self._columns)
        for number, values in budget.unary.items():
            row[self._start[number] : self._start[number] + values.size] = values
        for pair, values in budget.pairs.items():
            row[self._pair_start[pair] : self._pair_start[pair] + values.size] = values.ravel()
        return row

    def _limits(self, margin: float) -> _Rows:
        rows, limits = [np.zeros((0, self._columns))], []
        for budget in self._reduced.budgets:
            row = self._row(budget)
            scale = float(np.abs(row).max(initial=0.0))
            if scale and np.isfinite(budget.limit):
                rows.append(row[None] / scale)
                limits.append((budget.limit - budget.fixed - margin * abs(budget.limit)) / scale)
        return _Rows(sparse.csc_array(np.concatenate(rows)), np.array(limits))

    def _equalities(self) -> _Rows:
        entries: list[tuple[int, int, float]] = []  # row, column, coefficient
        right: list[float] = []
        for number, start in self._start.items():
            entries += [(len(right), start + at, 1.0) for at in range(len(self._reduced.classes[number].options))]
            right.append(1.0)
        for pair, start in self._pair_start.items():
            self._tie_pair(pair, start, entries, right)
        rows, columns, values = zip(*entries, strict=True)
        return _Rows(sparse.csc_array((values, (rows, columns)), shape=(len(right), self._columns)), np.array(right))

    def _tie_pair(self, pair: tuple[int, int], start: int, entries: list[tuple[int, int, float]], right: list[float]) -> None:
        counts = [len(self._reduced.classes[number].options) for number in pair]
        places = np.arange(counts[0] * counts[1]).reshape(counts)
        for number, lines in zip(pair, (places, places.T), strict=True):
            for at, line in enumerate(lines):
                entries += [(len(right), start + int(place), 1.0) for place in line]
                entries.append((len(right), self._start[number] + at, -1.0))
                right.append(0.0)


@dataclass(frozen=True, eq=False)
class _Relaxed:
    """The optimum of the linear relaxation, where it is, and the reduced costs of the columns."""

    bound: float
    values: Array
    reduced_costs: Array


def _relax(objective: Array, equalities: _Rows, limits: _Rows) -> _Relaxed | None:
    """None: infeasible."""
    more = {"A_ub": limits.matrix, "b_ub": limits.right} if limits.right.size else {}
    possible = np.isfinite(objective)
    bounds = np.stack([np.zeros(objective.size), np.where(possible, np.inf, 0.0)], axis=1)
    costs = np.where(possible, objective, 0.0)
    for method in ("highs-ipm", "highs-ds"):
        result: Any = linprog(costs, A_eq=equalities.matrix, b_eq=equalities.right, bounds=bounds, method=method, **more)
        if result.status == _INFEASIBLE:
            return None
        if result.status == _SOLVED:
            return _Relaxed(float(result.fun), result.x, np.maximum(result.lower.marginals, 0.0))
    raise AllocationError(f"the linear relaxation could not be solved ({result.message}): loosen the budgets")
