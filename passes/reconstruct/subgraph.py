"""Part of a graph as a function that can be differentiated: from the values of some nodes to the values of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.ir import edit
from qcompiler.passes.reconstruct.twins import TWINS, Dropping

_qc = torch.ops.qc


class Subgraph:
    """What computes ``outputs`` from ``sources`` and constants.

    Everything that depends on constants alone is computed once. Values are freed after their last use where no gradient holds them.
    ``unreached``: inputs of the program that the outputs need besides the sources; a subgraph with any cannot be run.
    """

    def __init__(self, graph: fx.Graph, sources: Iterable[fx.Node], outputs: Sequence[fx.Node]) -> None:
        self.sources, self.outputs = tuple(sources), tuple(outputs)
        needed = _ancestors(self.outputs, frozenset(self.sources))
        ordered = [node for node in graph.nodes if node in needed]
        self.unreached = tuple(node for node in ordered if node.op == "placeholder")
        self.nodes: tuple[fx.Node, ...] = tuple(node for node in ordered if node.op == "call_function")
        self._constants = _constants(ordered)
        self.steps = tuple(node for node in self.nodes if node not in self._constants)
        self._last_use = _last_uses(self.steps, self.outputs)

    def run(
        self, values: Mapping[fx.Node, Tensor], replaced: Mapping[fx.Node, Tensor] | None = None, dropping: Dropping | None = None
    ) -> tuple[Tensor, ...]:
        """The outputs for the given values of the sources; ``replaced`` constants (dequantized weights, biases) take the given values."""
        known: dict[fx.Node, Any] = {**self._constants, **(replaced or {}), **values}
        for node in self.steps:
            known[node] = _call(node, known, dropping)
            for finished in self._last_use.get(node, ()):
                del known[finished]
        return tuple(known[node] for node in self.outputs)


def _call(node: fx.Node, known: Mapping[fx.Node, Any], dropping: Dropping | None) -> Any:
    args, kwargs = map_arg(node.args, known.__getitem__), map_arg(node.kwargs, known.__getitem__)
    twin = TWINS.get(node.target)
    if twin is None:
        return node.target(*args, **kwargs)  # type: ignore[operator]  # a call_function node has a function
    if dropping is not None and node.target is _qc.quantize.default:
        return twin(*args, **kwargs, dropping=dropping)
    return twin(*args, **kwargs)


def _ancestors(outputs: Iterable[fx.Node], sources: frozenset[fx.Node]) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    waiting = [node for node in outputs if node not in sources]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [operand for operand in node.all_input_nodes if operand not in sources]
    return seen


def _constants(ordered: Iterable[fx.Node]) -> dict[fx.Node, Tensor]:
    """The values of the constants and of the calls on constants alone."""
    known: dict[fx.Node, Tensor] = {}
    with torch.no_grad():
        for node in ordered:
            value = edit.constant_value(node)
            if value is not None:
                known[node] = value
            elif node.op == "call_function" and node.all_input_nodes and all(operand in known for operand in node.all_input_nodes):
                known[node] = _call(node, known, None)
    return known


def _last_uses(steps: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """For each step the earlier steps whose values nothing needs after it."""
    own, last = set(steps), {}
    for node in steps:
        for operand in node.all_input_nodes:
            if operand in own and operand not in outputs:
                last[operand] = node
    freed: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for operand, node in last.items():
        freed[node] = (*freed.get(node, ()), operand)
    return freed
