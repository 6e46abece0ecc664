"""Which values are rounded, to which of two widths, which stay exact inside a fused computation, and which share their parameters.

A value is *internal* if it is never rounded itself, because the one op that reads it goes on in int32:

1. the reader bounds it (relu, clamp), so that only the value after the activation is rounded;
2. it is an accumulator and the reader adds another value of the same shape: one rounding for both. Of two such accumulators the later
   one stays in int32; the other has to lie in memory and is rounded;
3. it is the accumulator of a layer with weights and is an output of the program: logits lose nothing and need no statistics;
4. the reader only changes its scale;
5. it is a product with a mask that is then summed, a sum that is then divided by a count of tokens.

*Exact* values need no rounding either: whole numbers (masks, counts), rows of constant tables, a change of scale of a value that is
rounded already, a score with its mask.

Every other value is rounded. Its width is what its readers need. What a normalization reads, the sums that lead there, and normalized
values that a sum reads are the residual stream: they are *wide*. Ops that multiply read *narrow* values. A value with readers of both
kinds is rounded twice: to the wide type, and from there to the narrow one. A reduction reads whichever there is, an output the wide one.

For each width a value has a *representative*, the value whose statistics decide its parameters:

6. What an op with role MOVE gives, or a bound that could not be fused, has the representative of its input.
7. An input of a concatenation has the representative of the result, if nothing else reads the input or the values that it was
   moved from: concatenation is then a copy. Other inputs keep their own and are requantized.
8. Any other value represents itself.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.elementwise import is_function
from qcompiler.passes.quantize.rules import (
    ADDABLE,
    NORMALIZATIONS,
    REDUCTIONS,
    SUMS,
    WEIGHT_AXIS,
    Role,
    is_whole,
    mask_of,
    moved_value,
    role_of,
)

_aten, _qc = torch.ops.aten, torch.ops.qc


class Width(enum.Enum):
    """Of a rounded value: NARROW for ops that multiply, WIDE for the residual stream."""

    NARROW = enum.auto()
    WIDE = enum.auto()


Widths = Mapping[fx.Node, frozenset[Width]]

_NARROW, _WIDE = frozenset({Width.NARROW}), frozenset({Width.WIDE})


@dataclass(frozen=True)
class ValueGroups:
    """``narrow`` and ``wide``: each value that is rounded to that width, and the value that decides for it.

    ``internal``: values that are not rounded; ``exact``: values that need no rounding, but for a narrow one where ``narrow`` has them;
    ``widths``: what the readers of each value take.
    """

    narrow: Mapping[fx.Node, fx.Node]
    wide: Mapping[fx.Node, fx.Node]
    internal: frozenset[fx.Node]
    exact: frozenset[fx.Node]
    widths: Widths
    without_integer_form: tuple[fx.Node, ...]

    def width_read(self, value: fx.Node, reader: fx.Node) -> Width:
        """Which of the types of ``value`` the op ``reader`` takes."""
        wanted = _wanted(value, reader, self.widths)
        if wanted is not None and wanted in self.widths[value]:
            return wanted
        return Width.WIDE if Width.WIDE in self.widths[value] else Width.NARROW


def is_float_value(node: fx.Node) -> bool:
    """Whether the node computes or takes in a float tensor (constants are not values)."""
    value = node.meta.get("val")
    return node.op in ("placeholder", "call_function") and isinstance(value, torch.Tensor) and value.is_floating_point()


def group_values(graph: fx.Graph, two_widths: bool = True, islands: frozenset[fx.Node] = frozenset()) -> ValueGroups:
    """Sort the float values of a FLOAT graph by the rules above.

    ``two_widths``: without it all values are narrow. ``islands``: ops that stay in float whether they have an integer form or not.
    """
    values = [node for node in graph.nodes if is_float_value(node)]
    roles = {node: None if node in islands else role_of(node) for node in values}
    internal = _internal_values(graph, roles)
    exact = _exact_values(roles, internal)
    widths = _widths(roles, _capable(roles)) if two_widths else dict.fromkeys(values, _NARROW)
    rounded = [node for node in values if node not in internal and node not in exact]
    again = [node for node in exact if widths[node] == _NARROW | _WIDE and _is_wide_when_exact(node)]
    order = {node: position for position, node in enumerate(values)}
    narrow = _parents(sorted([*rounded, *again], key=order.__getitem__), Width.NARROW, roles, internal, widths)
    wide = _parents(rounded, Width.WIDE, roles, internal, widths)
    return ValueGroups(
        narrow={node: _root(node, narrow) for node in narrow},
        wide={node: _root(node, wide) for node in wide},
        internal=frozenset(internal),
        exact=frozenset(exact),
        widths=widths,
        without_integer_form=tuple(node for node in values if roles[node] is None),
    )


Roles = Mapping[fx.Node, Role | None]


# ---- internal and exact values ----------------------------------------------------------------------------------------------------


def _internal_values(graph: fx.Graph, roles: Roles) -> set[fx.Node]:
    order = {node: position for position, node in enumerate(graph.nodes)}
    internal: set[fx.Node] = set()
    for node in roles:
        if node.op != "placeholder" and len(node.users) == 1 and _is_internal(node, roles, internal, order):
            internal.add(node)
    return internal


def _is_internal(node: fx.Node, roles: Roles, internal: set[fx.Node], order: Mapping[fx.Node, int]) -> bool:
    (user,) = node.users
    if roles.get(user) is Role.CLAMP:  # rule 1
        return _waits(node, roles, internal)
    if roles.get(user) is Role.SCALE:  # rule 4
        return _waits(node, roles, internal)
    if user.target in SUMS and roles.get(user) is Role.ROUND:  # rule 2
        return _stays_for_sum(node, user, roles, internal, order)
    if user.op == "output":  # rule 3
        return node.target in WEIGHT_AXIS and roles[node] is Role.ACCUMULATE
    return _stays_for_mean(node, user, roles)  # rule 5


def _waits(node: fx.Node, roles: Roles, internal: set[fx.Node]) -> bool:
    """Whether the node is a computation whose rounding can wait for its reader."""
    through = roles[node] in (Role.CLAMP, Role.SCALE) and node.args[0] in internal
    return through or roles[node] in (Role.ACCUMULATE, Role.ROUND)


def _stays_for_sum(node: fx.Node, user: fx.Node, roles: Roles, internal: set[fx.Node], order: Mapping[fx.Node, int]) -> bool:
    operands = [operand for operand in user.args[:2] if isinstance(operand, fx.Node)]
    candidates = [operand for operand in operands if operand in roles and _may_stay(operand, user, roles)]
    return user.args[0] is not user.args[1] and bool(candidates) and max(candidates, key=order.__getitem__) is node


def _may_stay(operand: fx.Node, user: fx.Node, roles: Roles) -> bool:
    same_shape = operand.meta["val"].shape == user.meta["val"].shape
    return len(operand.users) == 1 and same_shape and _is_addable(operand, roles)


def _is_addable(operand: fx.Node, roles: Roles) -> bool:
    if roles.get(operand) is Role.SCALE:
        source = operand.args[0]
        return isinstance(source, fx.Node) and len(source.users) == 1 and _is_addable(source, roles)
    product = operand.target is _aten.mul.Tensor and edit.constant_value(operand.args[1]) is not None
    return roles.get(operand) is Role.ACCUMULATE and (operand.target in ADDABLE or product)


def _stays_for_mean(node: fx.Node, user: fx.Node, roles: Roles) -> bool:
    if user.target is _aten.sum.dim_IntList and roles.get(user) is Role.ACCUMULATE:
        return roles[node] is Role.ACCUMULATE and mask_of(node) is not None
    divided = user.target is _aten.div.Tensor and roles.get(user) is Role.ACCUMULATE and user.args[0] is node
    return divided and node.target is _aten.sum.dim_IntList and roles[node] is Role.ACCUMULATE


def _exact_values(roles: Roles, internal: set[fx.Node]) -> set[fx.Node]:
    exact: set[fx.Node] = set()
    for node, role in roles.items():
        scaled = role is Role.SCALE and node.args[0] not in internal
        moved = role is Role.MOVE and node.args[0] in exact
        if role in (Role.EXACT, Role.MASK) or scaled or moved:
            exact.add(node)
    return exact


# ---- widths -----------------------------------------------------------------------------------------------------------------------


def _capable(roles: Roles) -> set[fx.Node]:
    """The values that can be had in the wide type: not tables and probabilities, whose integers are few."""
    capable: set[fx.Node] = set()
    wide = (Role.ACCUMULATE, Role.JOIN, Role.EXACT, None)
    for node, role in roles.items():
        through = role in (Role.MOVE, Role.CLAMP, Role.SCALE) and node.args[0] in capable
        rounds = role is Role.ROUND and (node.op == "placeholder" or node.target in SUMS | NORMALIZATIONS and not is_function(node))
        if through or rounds or role in wide:
            capable.add(node)
    return capable


def _widths(roles: Roles, capable: set[fx.Node]) -> dict[fx.Node, frozenset[Width]]:
    """What the readers of each value want, the last value first; narrow where none of them minds.

    Where there is a residual stream the outputs of the program belong to it: nothing is lost at the border.
    """
    has_stream = any(node.target in NORMALIZATIONS for node in roles)
    widths: dict[fx.Node, frozenset[Width]] = {}
    for node in reversed(list(roles)):
        wanted = {_wanted(node, reader, widths) for reader in node.users} - {None}
        if has_stream and any(reader.op == "output" for reader in node.users):
            wanted.add(Width.WIDE)
        widths[node] = frozenset(width for width in wanted if width) if node in capable else _NARROW
        if not widths[node]:
            widths[node] = _NARROW
    return {node: widths[node] for node in roles}


def _wanted(value: fx.Node, reader: fx.Node, widths: Widths) -> Width | None:
    """The width in which an op wants an operand; None where it takes either."""
    if reader.op == "output":
        return Width.WIDE if value.target in (*NORMALIZATIONS, _aten.div.Tensor) else None
    if reader.target in NORMALIZATIONS or reader.target in (_aten.argmax.default, _qc.hadamard.default):
        return Width.WIDE  # a Hadamard transform spreads outliers, which must come through to it
    result = Width.WIDE if Width.WIDE in widths.get(reader, ()) else None
    if reader.target is _aten.mul.Tensor and edit.constant_value(reader.args[1]) is not None:
        return result
    if reader.target in REDUCTIONS or mask_of(reader) is not None or edit.is_call(reader, _aten.div.Tensor):
        return result
    passes_on = reader.target in SUMS or role_of(reader) in _PASSING or _is_gate_before_hadamard(reader)
    return Width.WIDE if passes_on and result else Width.NARROW


def _is_gate_before_hadamard(reader: fx.Node) -> bool:
    """A product of two values whose outliers a transform spreads: they come out of its operands."""
    return reader.target is _aten.mul.Tensor and all(user.target is _qc.hadamard.default for user in reader.users)


_PASSING = (Role.MOVE, Role.JOIN, Role.CLAMP, Role.SCALE, Role.MASK, Role.EXACT)


def _is_wide_when_exact(node: fx.Node) -> bool:
    """Whether an exact value takes the wide type from its operand: rows of int8 tables and whole numbers have their own."""
    while role_of(node) in (Role.MOVE, Role.SCALE):
        source = node.args[0]
        assert isinstance(source, fx.Node)  # what these roles mean
        node = source
    return role_of(node) is not Role.EXACT or (not is_whole(node) and not edit.is_call(node, _aten.embedding.default))


# ---- representatives --------------------------------------------------------------------------------------------------------------


def _parents(values: Sequence[fx.Node], width: Width, roles: Roles, internal: set[fx.Node], widths: Widths) -> dict[fx.Node, fx.Node]:
    """For each value of that width the value that it has its parameters from, or itself."""
    parent: dict[fx.Node, fx.Node] = {}
    for node in values:
        if width in widths[node]:
            source = _source(node, roles, internal) if width is Width.WIDE or widths[node] == _NARROW else None
            parent[node] = source if source is not None and source in parent else node
    _join_concatenations(parent, width, roles, widths)
    return parent


def _source(node: fx.Node, roles: Roles, internal: set[fx.Node]) -> fx.Node | None:
    shares = roles[node] is Role.MOVE or (roles[node] is Role.CLAMP and node.args[0] not in internal)
    return moved_value(node) if shares else None


def _join_concatenations(parent: dict[fx.Node, fx.Node], width: Width, roles: Roles, widths: Widths) -> None:
    """Rule 7; the last concatenation first, so that concatenations of concatenations all get the last one's parameters."""
    for join in reversed([node for node in parent if roles[node] is Role.JOIN]):
        if width is Width.NARROW and widths[join] != _NARROW:
            continue  # it reads its inputs in the wide type
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
