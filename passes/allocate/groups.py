"""Groups of output channels as items: a weight whose channels differ in salience is split, and each group gets bits of its own (MixLLM).

In the problem alone: the share of a group in the sensitivity of the layer times the layer's sensitivity, and its share of the channels
times the layer's costs. Exact where a metric is a sum over output channels and costs are proportional to channels, as bytes and bit
operations are. Source: Zheng, Song and Liu, "MixLLM: LLM Quantization with Global Mixed-precision between Output-features and
Highly-efficient System Design", 2024, arXiv 2412.14590.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import QCompilerError
from qcompiler.passes.allocate.problem import Array, Budget, Cost, Problem, Variable


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Output channels that get bits together, and their shares of the sensitivity and of the channels of the layer."""

    channels: NDArray[np.intp]
    sensitivity: float
    size: float


def channel_groups(salience: Array, count: int) -> tuple[ChannelGroup, ...]:
    """``count`` groups of as many channels as can be, the most salient ones first.

    Args:
        salience: what each channel adds to the sensitivity of the layer at few bits, [channels], not negative.
        count: at most as many as there are channels.

    Raises:
        QCompilerError: there are too few channels, or a salience is negative.
    """
    if not 1 <= count <= salience.size:
        raise QCompilerError(f"{salience.size} channels cannot be split into {count} groups")
    total = float(salience.sum())
    if bool((salience < 0.0).any()) or not np.isfinite(total):
        raise QCompilerError("the salience of a channel must be finite and not negative")
    ordered = np.argsort(-salience, kind="stable")
    parts = np.array_split(ordered, count)
    return tuple(
        ChannelGroup(np.sort(part), float(salience[part].sum()) / total if total else part.size / salience.size, part.size / salience.size)
        for part in parts
    )


def split(problem: Problem, item: str, groups: Sequence[ChannelGroup]) -> Problem:
    """The problem with ``item`` replaced by one item for each group, called ``item[0]``, ``item[1]``, ...

    A pin of the item pins all of its groups; a tie ties all of them.
    """
    names = [group_name(item, number) for number in range(len(groups))]
    variables: list[Variable] = []
    for variable in problem.variables:
        if variable.name != item:
            variables.append(variable)
            continue
        for name, group in zip(names, groups, strict=True):
            sensitivities = tuple(group.sensitivity * lost for lost in variable.sensitivities)
            variables.append(replace(variable, name=name, sensitivities=sensitivities))
    budgets = tuple(_split_budget(budget, item, names, groups) for budget in problem.budgets)
    ties = tuple(tuple(each for name in tie for each in (names if name == item else [name])) for tie in problem.ties)
    pins = {each: option for name, option in problem.pins.items() for each in (names if name == item else [name])}
    return Problem(tuple(variables), budgets, ties, pins)


def group_name(item: str, number: int) -> str:
    """The name of a group's item."""
    return f"{item}[{number}]"


def channel_bits(chosen: Mapping[str, int], item: str, groups: Sequence[ChannelGroup]) -> NDArray[np.int64]:
    """The bits of each output channel, [channels], by the options chosen for the groups."""
    bits = np.zeros(sum(group.channels.size for group in groups), dtype=np.int64)
    for number, group in enumerate(groups):
        bits[group.channels] = chosen[group_name(item, number)]
    return bits


def _split_budget(budget: Budget, item: str, names: Sequence[str], groups: Sequence[ChannelGroup]) -> Budget:
    costs: list[Cost] = []
    for cost in budget.costs:
        if item not in cost.items:
            costs.append(cost)
            continue
        for name, group in zip(names, groups, strict=True):
            costs.append(Cost(tuple(name if each == item else each for each in cost.items), group.size * cost.values))
    return replace(budget, costs=tuple(costs))
