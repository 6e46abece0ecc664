"""Why no allocation keeps all constraints: a smallest set of those that conflict, and how far each budget is from one that can be kept.

A deletion filter (Chinneck, "Feasibility and Infeasibility in Optimization", 2008): constraints are dropped one after the other; one
without which the rest is still infeasible stays dropped. What is left conflicts, and any one of them dropped resolves it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qcompiler.passes.allocate.problem import Budget, Problem

Feasible = Callable[[Problem], bool]
Least = Callable[[Problem, str], float | None]


@dataclass(frozen=True)
class Conflict:
    """Constraints of which each is needed for the conflict."""

    budgets: tuple[str, ...]
    pins: tuple[str, ...]
    ties: tuple[tuple[str, ...], ...]


def find_conflict(problem: Problem, feasible: Feasible) -> Conflict:
    """The conflict in an infeasible problem; pins and ties are tried first, so that budgets are named where there is a choice."""
    without_any = [problem.without(ties=problem.ties), problem.without(ties=problem.ties, pins=problem.pins)]
    for smaller in without_any:  # mostly it is the budgets: hundreds of ties and pins are not tried one by one then
        problem = problem if feasible(smaller) else smaller
    for tie in problem.ties:
        smaller = problem.without(ties=[tie])
        problem = problem if feasible(smaller) else smaller
    for pin in tuple(problem.pins):
        smaller = problem.without(pins=[pin])
        problem = problem if feasible(smaller) else smaller
    for budget in problem.budgets:
        smaller = problem.without(budgets=[budget.name])
        problem = problem if feasible(smaller) else smaller
    return Conflict(tuple(budget.name for budget in problem.budgets), tuple(problem.pins), problem.ties)


def explain(problem: Problem, feasible: Feasible, least: Least) -> str:
    """One line: what conflicts, and for each budget in it the nearest limit that can be kept beside all other constraints."""
    conflict = find_conflict(problem, feasible)
    others = [*(f"pin of {name} to {problem.pins[name]}" for name in conflict.pins), *(_tie(tie) for tie in conflict.ties)]
    named = [problem.budget(name) for name in conflict.budgets]
    if len(named) == 1 and not others:
        (budget,) = named
        nearest = least(problem.without(budgets=[item.name for item in problem.budgets if item is not budget]), budget.name)
        minimum = f"the minimum of {budget.shown_limit(nearest)}" if nearest is not None else "every possible cost"
        return f"{_limit(budget)} is below {minimum}: {_way_out(problem, named, least)}"
    parts = [*map(_limit, named), *others]
    return f"no allocation keeps these together: {'; '.join(parts)}: {_way_out(problem, named, least)}"


def _way_out(problem: Problem, budgets: list[Budget], least: Least) -> str:
    ways = []
    for budget in budgets:
        nearest = least(problem, budget.name)
        if nearest is not None:
            ways.append(f"raise {budget.name} to {budget.shown_limit(nearest)}")
    return " or ".join(ways) if ways else "drop one of them"


def _limit(budget: Budget) -> str:
    return f"budget {budget.name} = {budget.shown(budget.limit)}"


def _tie(tie: tuple[str, ...]) -> str:
    return f"tie of {', '.join(tie)}"
