"""Which values are rounded to few bits, which stay exact inside a fused computation, and which share their parameters.

A value is *internal* if it is never rounded itself, because the one op that reads it goes on in int32:

1. the reader bounds it (relu, clamp), so that only the value after the activation is rounded;
2. it is the accumulator of a convolution or linear layer and the reader adds another value of the same shape: one rounding for
   both. Of two such accumulators the later one stays in int32; the other has to lie in memory and is rounded;
3. it is the accumulator of a layer with weights and is an output of the program: logits lose nothing and need no statistics.

Every other value is rounded, and has a *representative*: the value whose statistics decide its parameters.

4. What an op with role MOVE gives, or a bound that could not be fused, has the representative of its input.
5. An input of a concatenation has the representative of the result, if nothing else reads the input or the values that it was
   moved from: concatenation is then a copy. Other inputs keep their own and are requantized.
6. Any other value represents itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from qcompiler.passes.quantize.rules import ADDABLE, SUMS, WEIGHT_AXIS, Role, moved_value, role_of


@dataclass(frozen=True)
class ValueGroups:
    """``representative``: each rounded value and the value that decides for it; ``internal``: the values that are not rounded."""

    representative: Mapping[fx.Node, fx.Node]
    internal: frozenset[fx.Node]
    without_integer_form: tuple[fx.Node, ...]


def is_float_value(node: fx.Node) -> bool:
    """Whether the node computes or takes in a float tensor (constants are not values)."""
    value = node.meta.get("val")
    return node.op in ("placeholder", "call_function") and isinstance(value, torch.Tensor) and value.is_floating_point()


def group_values(graph: fx.Graph) -> ValueGroups:
    """Sort the float values of a FLOAT graph by the rules above."""
    values = [node for node in graph.nodes if is_float_value(node)]
    order = {node: position for position, node in enumerate(graph.nodes)}
    internal: set[fx.Node] = set()
    for node in values:
        if _is_internal(node, internal, order):
            internal.add(node)
    rounded = [node for node in values if node not in internal]
    parent = {node: _parent(node, internal) for node in rounded}
    _join_concatenations(rounded, parent)
    unknown = tuple(node for node in values if role_of(node) is None)
    return ValueGroups({node: _root(node, parent) for node in rounded}, frozenset(internal), unknown)


def _is_internal(node: fx.Node, internal: set[fx.Node], order: Mapping[fx.Node, int]) -> bool:
    if node.op == "placeholder" or len(node.users) != 1:
        return False
    (user,) = node.users
    role = role_of(node)
    if role_of(user) is Role.CLAMP:  # rule 1
        return role in (Role.ACCUMULATE, Role.ROUND) or (role is Role.CLAMP and node.args[0] in internal)
    if user.target in SUMS:  # rule 2
        return _stays_for_sum(node, user, order)
    return user.op == "output" and node.target in WEIGHT_AXIS  # rule 3


def _stays_for_sum(node: fx.Node, user: fx.Node, order: Mapping[fx.Node, int]) -> bool:
    candidates = [operand for operand in user.args[:2] if isinstance(operand, fx.Node) and _may_stay(operand, user)]
    return user.args[0] is not user.args[1] and bool(candidates) and max(candidates, key=order.__getitem__) is node


def _may_stay(operand: fx.Node, user: fx.Node) -> bool:
    same_shape = operand.meta["val"].shape == user.meta["val"].shape
    return operand.target in ADDABLE and role_of(operand) is Role.ACCUMULATE and len(operand.users) == 1 and same_shape


def _parent(node: fx.Node, internal: set[fx.Node]) -> fx.Node:
    role = role_of(node)
    shares = role is Role.MOVE or (role is Role.CLAMP and node.args[0] not in internal)
    source = moved_value(node) if shares else None
    return source if source is not None and is_float_value(source) else node


def _join_concatenations(rounded: list[fx.Node], parent: dict[fx.Node, fx.Node]) -> None:
    """Rule 5; the last concatenation first, so that concatenations of concatenations all get the last one's parameters."""
    for join in reversed([node for node in rounded if role_of(node) is Role.JOIN]):
        inputs = join.args[0]
        for value in inputs if isinstance(inputs, list | tuple) else ():
            owner = _sole_owner(value, parent) if isinstance(value, fx.Node) and value in parent else None
            if owner is not None:
                parent[owner] = join


def _sole_owner(value: fx.Node, parent: Mapping[fx.Node, fx.Node]) -> fx.Node | None:
    """The value that the moves up to ``value`` started from; None where any of them has another reader, or at an input."""
    while len(value.users) == 1:
        if parent[value] is value:
            return None if value.op == "placeholder" else value
        value = parent[value]
    return None


def _root(node: fx.Node, parent: Mapping[fx.Node, fx.Node]) -> fx.Node:
    while parent[node] is not node:
        node = parent[node]
    return node
