"""The allocation problem: items that each take one of several options, at a sensitivity, under budgets. Nothing here knows a graph.

    minimize    sum over items i of s_i(o_i)
    subject to  sum over costs c of budget b of c(o_i) or c(o_i, o_j)  <=  limit of b      for each budget b
                o_i = o_j for tied items,  o_i as pinned

A cost may depend on a *pair*: the latency and the bit operations of a layer depend on the bits of its weight and on those of the value
that it reads, which several layers may read. Options are numbers of bits; a tie holds between equal numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import QCompilerError, UnknownNameError

Array: TypeAlias = NDArray[np.float64]

# Sums of costs are compared with a limit up to this share of it: float64 sums depend on their order.
TOLERANCE = 1e-9


class AllocationError(QCompilerError):
    """No allocation keeps the constraints; the message names those that conflict and the nearest feasible budgets."""


@dataclass(frozen=True)
class Variable:
    """An item with its options (bits) and the sensitivity of each: what the result loses if that option is chosen."""

    name: str
    options: tuple[int, ...]
    sensitivities: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.options or len(set(self.options)) != len(self.options):
            raise QCompilerError(f"item '{self.name}' needs one or more different options, got {self.options}")
        if len(self.options) != len(self.sensitivities) or not np.isfinite(self.sensitivities).all():
            raise QCompilerError(f"item '{self.name}' needs one finite sensitivity for each of its options {self.options}")


@dataclass(frozen=True, eq=False)
class Cost:
    """What the options of one item, or of two together, cost: ``values`` is [options] or [options of the first, options of the second].

    Without items it is a number: a cost that no choice changes.
    """

    items: tuple[str, ...]
    values: Array


@dataclass(frozen=True, eq=False)
class Budget:
    """``sum of costs <= limit``. ``unit``: of both, for messages."""

    name: str
    limit: float
    costs: tuple[Cost, ...]
    unit: str = ""

    def total(self, chosen: Mapping[str, int], position: Mapping[str, Mapping[int, int]]) -> float:
        """What the chosen options cost together; ``position`` gives the place of an option among those of an item."""
        return float(sum(cost.values[tuple(position[name][chosen[name]] for name in cost.items)] for cost in self.costs))

    def shown(self, amount: float) -> str:
        """An amount with its unit."""
        return f"{amount:.6g}{self._unit}"

    def shown_limit(self, amount: float) -> str:
        """As ``shown``, rounded up: a limit that can be kept."""
        step = 10.0 ** (np.floor(np.log10(amount)) - 5) if amount > 0.0 else 1.0
        rounded = float(f"{amount:.6g}")
        return f"{rounded if rounded >= amount else rounded + step:.6g}{self._unit}"

    @property
    def _unit(self) -> str:
        return f" {self.unit}" if self.unit else ""


@dataclass(frozen=True)
class Problem:
    """Items, budgets, ties (each a tuple of items that take equal options) and pins (item -> option)."""

    variables: tuple[Variable, ...]
    budgets: tuple[Budget, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    pins: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        options = {variable.name: variable.options for variable in self.variables}
        if len(options) != len(self.variables):
            raise QCompilerError("two items have one name")
        for name in (*self.pins, *(name for tie in self.ties for name in tie)):
            if name not in options:
                raise UnknownNameError("item", name, options)
        for name, option in self.pins.items():
            if option not in options[name]:
                allowed = ", ".join(map(str, options[name]))
                raise AllocationError(f"{name} is pinned to {option}, which is not among its options: {allowed}")
        for budget in self.budgets:
            for cost in budget.costs:
                _check_cost(budget, cost, options)

    def without(self, *, budgets: Iterable[str] = (), ties: Iterable[tuple[str, ...]] = (), pins: Iterable[str] = ()) -> Problem:
        """The problem with some constraints dropped."""
        dropped_budgets, dropped_ties, dropped_pins = set(budgets), set(ties), set(pins)
        return replace(
            self,
            budgets=tuple(budget for budget in self.budgets if budget.name not in dropped_budgets),
            ties=tuple(tie for tie in self.ties if tie not in dropped_ties),
            pins={name: option for name, option in self.pins.items() if name not in dropped_pins},
        )

    def with_limit(self, budget: str, limit: float) -> Problem:
        """The problem with another limit of one budget."""
        return replace(self, budgets=tuple(replace(item, limit=limit) if item.name == budget else item for item in self.budgets))

    def budget(self, name: str) -> Budget:
        """The budget of that name."""
        found = {item.name: item for item in self.budgets}
        if name not in found:
            raise UnknownNameError("budget", name, found)
        return found[name]


@dataclass(frozen=True)
class Solution:
    """The option of each item, the sum of sensitivities, what it costs of each budget, and the limits that it was found under.

    ``proven``: no other allocation has a smaller sum (up to ``gap``, the share by which the bound is lower).
    """

    chosen: Mapping[str, int]
    objective: float
    costs: Mapping[str, float]
    limits: Mapping[str, float]
    method: str
    proven: bool = False
    gap: float = 0.0


def evaluate(problem: Problem, chosen: Mapping[str, int], method: str, proven: bool = False, gap: float = 0.0) -> Solution:
    """The solution that the chosen options are, with its exact sums."""
    position = {variable.name: {option: at for at, option in enumerate(variable.options)} for variable in problem.variables}
    objective = sum(variable.sensitivities[position[variable.name][chosen[variable.name]]] for variable in problem.variables)
    costs = {budget.name: budget.total(chosen, position) for budget in problem.budgets}
    limits = {budget.name: budget.limit for budget in problem.budgets}
    return Solution(dict(chosen), float(objective), costs, limits, method, proven, gap)


def keeps_budgets(problem: Problem, solution: Solution) -> bool:
    """Whether every sum of costs is at most its limit, up to the rounding of sums."""
    return all(fits(solution.costs[budget.name], budget.limit) for budget in problem.budgets)


def fits(amount: float, limit: float) -> bool:
    """``amount <= limit`` up to the rounding of sums."""
    return amount <= limit + TOLERANCE * abs(limit)


@dataclass(frozen=True, eq=False)
class Class:
    """Items that take one option together: their names, what is left of their options, the sums of their sensitivities."""

    names: tuple[str, ...]
    options: tuple[int, ...]
    sensitivities: Array


@dataclass(frozen=True, eq=False)
class ReducedBudget:
    """A budget over classes: ``fixed + sum unary[class][option] + sum pair[first, second][option, option] <= limit``."""

    name: str
    limit: float
    fixed: float
    unary: Mapping[int, Array]
    pairs: Mapping[tuple[int, int], Array]


@dataclass(frozen=True, eq=False)
class Reduced:
    """The problem without ties and pins, each folded into the classes; classes with one option cost a fixed amount."""

    classes: tuple[Class, ...]
    budgets: tuple[ReducedBudget, ...]

    def expand(self, positions: Sequence[int]) -> dict[str, int]:
        """The option of each item where class k takes its option number ``positions[k]``."""
        return {name: group.options[at] for group, at in zip(self.classes, positions, strict=True) for name in group.names}


def reduce(problem: Problem) -> Reduced:
    """Tied items become one class with the options that all of them have; pins leave one option.

    Raises:
        AllocationError: tied items have no option in common, or are pinned to different ones.
    """
    variables = {variable.name: variable for variable in problem.variables}
    classes = tuple(_make_class(names, variables, problem.pins) for names in _tied(problem))
    class_of = {name: number for number, group in enumerate(classes) for name in group.names}
    return Reduced(classes, tuple(_reduce_budget(budget, classes, class_of, variables) for budget in problem.budgets))


def _check_cost(budget: Budget, cost: Cost, options: Mapping[str, Sequence[int]]) -> None:
    for name in cost.items:
        if name not in options:
            raise UnknownNameError(f"item of budget '{budget.name}':", name, options)
    shape = tuple(len(options[name]) for name in cost.items)
    if len(shape) > 2 or cost.values.shape != shape or not np.isfinite(cost.values).all():
        place = f"budget '{budget.name}', {', '.join(cost.items)}"
        raise QCompilerError(f"{place}: needs a finite cost for each option, {list(shape)}, got {list(cost.values.shape)}")


def _tied(problem: Problem) -> list[tuple[str, ...]]:
    """The items in sets that must be equal, in the order of their first item."""
    parent = {variable.name: variable.name for variable in problem.variables}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for tie in problem.ties:
        for name in tie[1:]:
            parent[root(name)] = root(tie[0])
    sets: dict[str, list[str]] = {}
    for name in parent:
        sets.setdefault(root(name), []).append(name)
    return [tuple(names) for names in sets.values()]


def _make_class(names: tuple[str, ...], variables: Mapping[str, Variable], pins: Mapping[str, int]) -> Class:
    options = [option for option in variables[names[0]].options if all(option in variables[name].options for name in names)]
    if not options:
        listed = "; ".join(f"{name}: {', '.join(map(str, variables[name].options))}" for name in names)
        raise AllocationError(f"tied items have no option in common ({listed}): untie them or allow more bits")
    pinned = {name: pins[name] for name in names if name in pins}
    if len(set(pinned.values())) > 1:
        listed = ", ".join(f"{name} to {option}" for name, option in pinned.items())
        raise AllocationError(f"tied items are pinned to different options ({listed}): pin them alike or untie them")
    for name, option in pinned.items():
        if option not in options:
            raise AllocationError(f"{name} is pinned to {option}, which items tied to it do not have: untie them or pin it otherwise")
        options = [option]
    sensitivities = sum(np.array([_sensitivity(variables[name], option) for option in options]) for name in names)
    return Class(names, tuple(options), np.asarray(sensitivities, dtype=np.float64))


def _sensitivity(variable: Variable, option: int) -> float:
    return variable.sensitivities[variable.options.index(option)]


def _reduce_budget(
    budget: Budget, classes: Sequence[Class], class_of: Mapping[str, int], variables: Mapping[str, Variable]
) -> ReducedBudget:
    fixed = 0.0
    unary: dict[int, Array] = {}
    pairs: dict[tuple[int, int], Array] = {}

    def add(key: tuple[int, ...], values: Array) -> None:
        if len(key) == 1:
            unary[key[0]] = unary.get(key[0], 0.0) + values
        else:
            pairs[key[0], key[1]] = pairs.get((key[0], key[1]), 0.0) + values

    for cost in budget.costs:
        numbers = tuple(class_of[name] for name in cost.items)
        rows = [
            [variables[name].options.index(option) for option in classes[number].options]
            for name, number in zip(cost.items, numbers, strict=True)
        ]
        values = np.asarray(cost.values, dtype=np.float64)[np.ix_(*rows)]
        if len(numbers) == 2 and numbers[0] == numbers[1]:
            numbers, values = numbers[:1], np.diagonal(values).copy()
        kept = tuple(axis for axis, number in enumerate(numbers) if len(classes[number].options) > 1)
        values = values.reshape([values.shape[axis] for axis in kept])
        if not kept:
            fixed += float(values)
        else:
            add(tuple(numbers[axis] for axis in kept), values)
    for key in [key for key, values in pairs.items() if _is_separable(values)]:
        values = pairs.pop(key)
        add(key[:1], values[:, 0])
        add(key[1:], values[0] - values[0, 0])
    return ReducedBudget(budget.name, budget.limit, fixed, unary, pairs)


def _is_separable(values: Array) -> bool:
    """Whether ``values[i, j]`` is a sum of something for i and something for j."""
    rest: Any = values - values[:, :1] - values[:1] + values[0, 0]
    return bool(np.abs(rest).max() <= TOLERANCE * np.abs(values).max())
