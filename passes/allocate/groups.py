"""Groups of output channels as items: a weight whose channels differ in salience is split, and each group gets bits of its own (MixLLM).

In the problem alone: the sensitivity of a layer times the share of a group in it, at each of its options, and the layer's costs times the
group's share of the channels. Exact where a metric is a sum over output channels, and for costs that are proportional to channels, as
average bits and bit operations are; bytes are rounded up. Source: Zheng, Song and Liu, "MixLLM: LLM Quantization with Global
Mixed-precision between Output-features and Highly-efficient System Design", 2024, arXiv 2412.14590.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.allocation import BUDGETS
from qcompiler.errors import QCompilerError
from qcompiler.passes.allocate.problem import TOLERANCE, Array, Budget, Cost, Problem, Variable


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Output channels that get bits together, ``size``: their share of the layer's channels, ``shares``: of its sensitivity, [options]."""

    channels: NDArray[np.intp]
    shares: Array
    size: float


Groups = Mapping[str, Sequence[ChannelGroup]]
"""Of items by name, in the problem before they are split."""


def channel_groups(salience: Array, count: int, order: NDArray[np.intp] | None = None) -> tuple[ChannelGroup, ...]:
    """``count`` groups of as many channels as can be.

    Args:
        salience: what each channel adds to the sensitivity of the layer at each option, [options, channels], not negative.
        count: at most as many as there are channels.
        order: in which channels follow one another, all of them; None: by their salience at the first option, the most salient ones first.

    Raises:
        QCompilerError: there are too few channels, or a salience is negative.
    """
    channels = salience.shape[1]
    if not 1 <= count <= channels:
        raise QCompilerError(f"{channels} channels cannot be split into {count} groups")
    if bool((salience < 0.0).any()) or not np.isfinite(salience).all():
        raise QCompilerError("the salience of a channel must be finite and not negative")
    ordered = np.argsort(-salience[0], kind="stable") if order is None else order
    totals = salience.sum(1)
    groups = []
    for part in np.array_split(ordered, count):
        size = part.size / channels
        shares = np.where(totals > 0.0, salience[:, part].sum(1) / np.where(totals > 0.0, totals, 1.0), size)
        groups.append(ChannelGroup(np.sort(part), shares, size))
    return tuple(groups)


def split(problem: Problem, groups: Groups) -> Problem:
    """The problem with each item of ``groups`` replaced by one item for each group, called ``item[0]``, ``item[1]``, ...

    A pin of the item pins all of its groups; a tie ties all of them.
    """
    variables = tuple(part for variable in problem.variables for part in _split_variable(variable, groups))
    budgets = tuple(
        replace(budget, costs=tuple(part for cost in budget.costs for part in _split_cost(budget, cost, groups)))
        for budget in problem.budgets
    )
    ties = tuple(tuple(part for name in tie for part in _names(name, groups)) for tie in problem.ties)
    pins = {part: option for name, option in problem.pins.items() for part in _names(name, groups)}
    return Problem(variables, budgets, ties, pins)


def group_name(item: str, number: int) -> str:
    """The name of a group's item."""
    return f"{item}[{number}]"


def channel_bits(chosen: Mapping[str, int], item: str, groups: Sequence[ChannelGroup]) -> tuple[int, ...]:
    """The bits of each output channel, by the options chosen for the groups."""
    bits = np.zeros(sum(group.channels.size for group in groups), dtype=np.int64)
    for number, group in enumerate(groups):
        bits[group.channels] = chosen[group_name(item, number)]
    return tuple(bits.tolist())


def _names(item: str, groups: Groups) -> list[str]:
    return [group_name(item, number) for number in range(len(groups[item]))] if item in groups else [item]


def _split_variable(variable: Variable, groups: Groups) -> list[Variable]:
    if variable.name not in groups:
        return [variable]
    lost = np.array(variable.sensitivities)
    return [
        replace(variable, name=name, sensitivities=tuple((group.shares * lost).tolist()))
        for name, group in zip(_names(variable.name, groups), groups[variable.name], strict=True)
    ]


def _split_cost(budget: Budget, cost: Cost, groups: Groups) -> list[Cost]:
    parts = [cost]
    for position, item in enumerate(cost.items):
        if item in groups:
            parts = [
                Cost((*part.items[:position], name, *part.items[position + 1 :]), group.size * part.values)
                for part in parts
                for name, group in zip(_names(item, groups), groups[item], strict=True)
            ]
    if len(parts) == 1 or budget.unit != BUDGETS["size"]:
        return parts
    return [replace(part, values=np.ceil(part.values * (1.0 - TOLERANCE))) for part in parts]
