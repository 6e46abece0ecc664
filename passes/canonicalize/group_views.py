"""``group-views``: views of values with several symbolic sizes, without a symbol among the arguments.

Where only the batch is symbolic, a view is ``reshape(x, [-1, …])`` (``normalize-views``). With a symbolic sequence length too, a view
is taken apart into steps, each on neighbouring dimensions of static size, that leave symbolic dimensions where they are:

    [B, S, 384] -> [B, S, 12, 32]      unflatten(x, 2, [12, 32])
    [B, S, 12, 32] -> [B, S, 384]      flatten(x, 2, 3)
    [B, S] -> [B, 1, 1, S]             unsqueeze(unsqueeze(x, 1), 1)
    [B, 1, S] -> [B, S]                squeeze(x, [1])

A view that merges or splits a symbolic size has no such form and is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.passes.canonicalize import patterns
from qcompiler.passes.canonicalize.normalize_views import RESHAPES
from qcompiler.pipeline.contract import Exact
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

Size = int | str
Step = tuple[edit.Target, tuple[Any, ...]]
# How many neighbouring sizes become how many.
Group = tuple[list[Size], list[Size]]


@dataclass(frozen=True)
class View:
    """``node`` gives the elements of ``source`` in another shape; ``steps`` from one to the other, None where there are none."""

    node: fx.Node
    source: fx.Node
    steps: list[Step] | None


@dataclass(frozen=True)
class GroupViews(RewritePass[View]):
    """Write views of values with several symbolic sizes as steps on static sizes."""

    name: ClassVar = "group-views"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> View | None:
        if node.op != "call_function" or node.target not in RESHAPES:
            return None
        source = node.args[0]
        assert isinstance(source, fx.Node)  # views work on a tensor
        if max(patterns.symbols(source), patterns.symbols(node)) < 2:
            return None
        steps = _steps(_sizes(source), _sizes(node))
        canonical = steps is not None and len(steps) == 1 and (node.target, node.args[1:]) == steps[0] and not node.kwargs
        return None if canonical else View(node, source, steps)

    def check(self, match: View) -> str | None:
        before, after = (", ".join(patterns.sizes(each)) for each in (match.source, match.node))
        return f"it merges or splits a size known at run time: [{before}] to [{after}]" if match.steps is None else None

    def rewrite(self, graph_module: fx.GraphModule, match: View) -> None:
        site = Site(graph_module, match.node, self.name)
        result = match.source
        for target, arguments in match.steps or ():
            result = site.call(target, result, *arguments)
        site.replace(result)


def _sizes(node: fx.Node) -> list[Size]:
    return [size if isinstance(size, int) else str(size) for size in node.meta["val"].shape]


def _steps(before: list[Size], after: list[Size]) -> list[Step] | None:
    groups = _groups(before, after)
    return None if groups is None else list(_step_of_groups(groups))


def _groups(before: list[Size], after: list[Size]) -> list[Group] | None:
    """Both shapes in parts of equal sizes, from the left."""
    groups: list[Group] = []
    before, after = list(before), list(after)
    while before or after:
        if before and after and before[0] == after[0]:
            groups.append(([before.pop(0)], [after.pop(0)]))
        elif before and before[0] == 1 and (not after or isinstance(after[0], str)):
            groups.append(([before.pop(0)], []))
        elif after and after[0] == 1 and (not before or isinstance(before[0], str)):
            groups.append(([], [after.pop(0)]))
        else:
            group = _static_group(before, after)
            if group is None:
                return None
            groups.append(group)
    return groups


def _static_group(before: list[Size], after: list[Size]) -> Group | None:
    """The shortest leading parts with as many elements, taken off; None where a symbol is in the way."""
    left: list[Size] = []
    right: list[Size] = []
    while not left or _count(left) != _count(right):
        smaller, rest = (left, before) if not left or (right and _count(left) < _count(right)) else (right, after)
        if not rest or isinstance(rest[0], str):
            return None
        smaller.append(rest.pop(0))
    return left, right


def _count(sizes: list[Size]) -> int:
    return math.prod(size for size in sizes if isinstance(size, int)) if sizes else 0


def _step_of_groups(groups: list[Group]) -> Iterator[Step]:
    position = 0
    for before, after in groups:
        if not after:
            yield _aten.squeeze.dims, ([position],)
        elif not before:
            yield _aten.unsqueeze.default, (position,)
        else:
            if len(before) > 1:
                yield _aten.flatten.using_ints, (position, position + len(before) - 1)
            if len(after) > 1:
                yield _aten.unflatten.int, (position, list(after))
        position += len(after)
