"""The front of sensitivity against one budget: the best allocation for each of several limits, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qcompiler.errors import QCompilerError
from qcompiler.passes.allocate.problem import Problem, Solution, evaluate
from qcompiler.passes.allocate.solver import least, solve


def pareto_front(
    problem: Problem, budget: str, limits: Sequence[float] | None = None, *, points: int = 16, method: str = "ilp"
) -> tuple[Solution, ...]:
    """The solutions for rising limits of ``budget``, those left out that cost more than another and lose no less.

    Args:
        problem: its other budgets, ties and pins hold for every point.
        budget: the one whose limit varies.
        limits: the limits; None: ``points`` of them, evenly from the least possible cost to that of the least sensitive allocation.

    Raises:
        UnknownNameError: the problem has no such budget.
        AllocationError: no allocation keeps the constraints at any of the limits.
    """
    found: list[Solution] = []
    for limit in sorted(_limits(problem, budget, points) if limits is None else limits):
        solution = solve(problem.with_limit(budget, limit), method)
        if not found or solution.objective < found[-1].objective:
            found.append(solution)
    return tuple(found)


def _limits(problem: Problem, budget: str, points: int) -> list[float]:
    if points < 2:
        raise QCompilerError(f"a front needs two points at least, got {points}")
    problem.budget(budget)
    unlimited = problem.with_limit(budget, float("inf"))
    smallest = least(unlimited, budget)
    relaxed = solve(replace(unlimited, budgets=tuple(item for item in unlimited.budgets if item.name != budget)))
    largest = evaluate(problem, relaxed.chosen, relaxed.method).costs[budget]
    if smallest is None:
        raise QCompilerError(f"no allocation keeps the constraints besides '{budget}'")
    return [float(limit) for limit in np.linspace(smallest, max(smallest, largest), points)]
