"""The residual stream: all values that hold the same channels, what makes them and what reads them. Found by structure alone.

A linear map M of the channels, the same at every position, can be merged into the graph where every value that holds the channels is
replaced by M x at once. From any value of the stream the graph is followed both ways:

=====================================  =================================================================================
op                                     part
=====================================  =================================================================================
sum, difference, concatenation of      all operands and the result hold the channels
positions
reshape, permute, slice, pad by zeros  operand and result hold them, along an axis that may change place
mean and sum over positions, average
pooling, product with a number or a
mask over positions, quotient likewise
RMSNorm without weight, L2 norm        likewise for an orthogonal M, which leaves lengths alone: R x / |R x| = R (x / |x|)
layer that makes a value, embedding,   end: M is merged into the output channels, columns, or the constant
constant that is added
layer that reads a value               end: M^-1 is merged into the input channels (an invertible M)
LayerNorm that reads a value           end, for the M that subtracts the mean: it does so itself
=====================================  =================================================================================

Anything else is a reason why not: the first that says so is what the user is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.layers import as_layer, is_layer
from qcompiler.ir.provenance import provenance_of

_aten, _qc = torch.ops.aten, torch.ops.qc

Size = int | torch.SymInt

SUMS = (_aten.add.Tensor, _aten.sub.Tensor)
NORMS = (_aten.layer_norm.default, _aten.rms_norm.default, _qc.l2_normalize.default)

_SHAPES = frozenset(
    {
        _aten.reshape.default,
        _aten.flatten.using_ints,
        _aten.unflatten.int,
        _aten.squeeze.dims,
        _aten.unsqueeze.default,
    }
)


@dataclass(frozen=True)
class Constant:
    """A constant that ``user`` adds to the stream: the argument's name; the channels' axis from the last dimension."""

    user: fx.Node
    argument: str
    axis: int


@dataclass
class Stream:
    """``values``: each value and the axis of its channels, from the last dimension; the ends by kind; ``reasons``: why not."""

    channels: int
    values: dict[fx.Node, int] = field(default_factory=dict)
    makers: dict[fx.Node, None] = field(default_factory=dict)
    tables: dict[fx.Node, None] = field(default_factory=dict)
    constants: list[Constant] = field(default_factory=list)
    readers: dict[fx.Node, None] = field(default_factory=dict)
    layer_norms: dict[fx.Node, None] = field(default_factory=dict)
    reasons: dict[str, None] = field(default_factory=dict)

    @property
    def why_not(self) -> str | None:
        return next(iter(self.reasons), None)

    @property
    def name(self) -> str:
        """By the first layer or table that makes it."""
        first = next(iter((*self.tables, *self.makers, *self.values)))
        return f"stream of {self.channels} channels from {place(first)}"


def place(node: fx.Node) -> str:
    """A node by name and line: ``'add_6' (vit.py:103)``."""
    location = provenance_of(node).location
    return f"'{node.name}' ({location})" if location else f"'{node.name}'"


def stream_of(value: fx.Node, axis: int, *, centring: bool) -> Stream:
    """The stream that ``value`` belongs to, whose channels run along ``axis`` from the last dimension.

    ``centring``: for the map that subtracts the mean of the channels, else for an orthogonal one.
    """
    search = _Search(Stream(_size(value.meta["val"].shape[axis])), centring)
    search.enter(value, axis)
    search.run()
    order = {node: position for position, node in enumerate(value.graph.nodes)}
    found = search.stream
    for ends in (found.values, found.makers, found.tables, found.readers, found.layer_norms):
        _sort(ends, order)
    found.constants.sort(key=lambda constant: order[constant.user])
    return found


def _sort(ends: dict[fx.Node, Any], order: dict[fx.Node, int]) -> None:
    items = sorted(ends.items(), key=lambda item: order[item[0]])
    ends.clear()
    ends.update(items)


@dataclass
class _Search:
    """Both ways through the graph from each value that is reached."""

    stream: Stream
    centring: bool
    pending: list[fx.Node] = field(default_factory=list)

    def enter(self, node: fx.Node, axis: int) -> None:
        known = self.stream.values.get(node)
        if known is None:
            self.stream.values[node] = axis
            self.pending.append(node)
        elif known != axis:
            self._refuse(f"{place(node)} has two axes of channels")

    def run(self) -> None:
        while self.pending:
            node = self.pending.pop()
            axis = self.stream.values[node]
            self._origin(node, axis)
            for user in edit.users_of(node):
                self._reader(user, node, axis)

    def _refuse(self, reason: str) -> None:
        self.stream.reasons[reason] = None

    # ---- what makes a value ------------------------------------------------------------------------------------------------------

    def _origin(self, node: fx.Node, axis: int) -> None:
        if is_layer(node):
            self._layer_end(node, axis, self.stream.makers, "makes")
        elif edit.is_call(node, _aten.embedding.default) and axis == -1 and edit.is_constant(node.args[0]):
            self.stream.tables[node] = None
        elif node.op == "call_function" and self._passes(node):
            self._operands(node, axis)
        elif node.op == "placeholder":
            self._refuse("it is an input of the program")
        else:
            why = ", a norm whose scale is part of the stream" if edit.is_call(node, *NORMS[:2]) else ""
            self._refuse(f"{place(node)} makes it{why}")

    def _passes(self, node: fx.Node) -> bool:
        if node.target in NORMS:
            return not self.centring and is_bare_norm(node)
        return node.target in _AXES

    def _layer_end(self, node: fx.Node, axis: int, ends: dict[fx.Node, None], verb: str) -> None:
        layer = as_layer(node)
        if layer is None or layer.axis != axis:
            self._refuse(f"{place(node)} {verb} it without constant weights along the channels")
        elif layer.weight.shape[0] != 1:
            self._refuse(f"{place(node)} {verb} it in groups of channels")
        else:
            ends[node] = None

    def _operands(self, node: fx.Node, axis: int) -> None:
        for name, operand in _operands(node):
            if edit.is_constant(operand):
                self.stream.constants.append(Constant(node, name, axis))
                continue
            found = [each for each in range(-operand.meta["val"].dim(), 0) if self._axis(node, operand, each) == axis]
            if len(found) == 1:
                self.enter(operand, found[0])
            else:
                self._refuse(f"{place(node)} makes it from '{operand.name}', which has other channels")
        if node.target in SUMS and not isinstance(edit.argument(node, "other"), fx.Node):
            self._refuse(f"{place(node)} adds a number")

    # ---- what reads a value ------------------------------------------------------------------------------------------------------

    def _reader(self, user: fx.Node, node: fx.Node, axis: int) -> None:
        if edit.is_call(user, _aten.sym_size.int):
            return
        if is_layer(user) and user.args[0] is node:
            self._layer(user, axis)
        elif edit.is_call(user, _aten.layer_norm.default) and self.centring and axis == -1:
            self.stream.layer_norms[user] = None
        elif user.op == "call_function" and self._passes(user):
            self._result(user, node, axis)
        else:
            self._refuse("it is an output of the program" if user.op == "output" else f"{place(user)} reads it")

    def _layer(self, user: fx.Node, axis: int) -> None:
        if self.centring:
            self._refuse(f"{place(user)} reads it without a norm")
        else:
            self._layer_end(user, axis, self.stream.readers, "reads")

    def _result(self, user: fx.Node, node: fx.Node, axis: int) -> None:
        result = self._axis(user, node, axis)
        if result is None:
            self._refuse(f"{place(user)} reads it across channels")
        else:
            self.enter(user, result)

    def _axis(self, node: fx.Node, operand: fx.Node, axis: int) -> int | None:
        """Where the channels of an operand are in the result; None where they are not."""
        if _size(operand.meta["val"].shape[axis]) != self.stream.channels:
            return None
        if node.target in NORMS:
            return axis if axis == -1 else None
        return _AXES[node.target](node, operand, axis)


def axis_of_operand(node: fx.Node, operand: fx.Node, axis: int) -> int | None:
    """Where the channels along ``axis`` of a moved value are in what was moved; None where the op does more, or they are elsewhere."""
    if node.target not in _AXES or node.target in SUMS:
        return None
    size, rank = node.meta["val"].shape[axis], operand.meta["val"].dim()
    candidates = [each for each in range(-rank, 0) if operand.meta["val"].shape[each] == size]
    found = [each for each in candidates if _AXES[node.target](node, operand, each) == axis]
    return found[0] if len(found) == 1 else None


def is_bare_norm(node: fx.Node) -> bool:
    """RMSNorm over the last dimension without weight, L2 normalization: they commute with rotations."""
    if node.target is _qc.l2_normalize.default:
        return True
    return (
        node.target is _aten.rms_norm.default
        and edit.argument(node, "weight") is None
        and len(edit.argument(node, "normalized_shape")) == 1
    )


def _operands(node: fx.Node) -> Iterator[tuple[str, fx.Node]]:
    """The tensors whose channels an op passes on, by the names of its arguments."""
    if node.target is _aten.cat.default:
        yield from (("tensors", operand) for operand in node.args[0])  # type: ignore[union-attr,misc]  # a list of nodes
        return
    names = (
        ("self", "other")
        if node.target in SUMS
        else ("x",)
        if node.target is _qc.l2_normalize.default
        else _FIRST.get(node.target, ("self",))
    )
    for name in names:
        operand = edit.argument(node, name)
        if isinstance(operand, fx.Node):
            yield name, operand


_FIRST: dict[Any, tuple[str, ...]] = {_aten.rms_norm.default: ("input",)}


# ---- where the channels go, one function a kind of op -----------------------------------------------------------------------------------


def _same(node: fx.Node, operand: fx.Node, axis: int) -> int | None:
    return axis


def _reshaped(node: fx.Node, operand: fx.Node, axis: int) -> int | None:
    """The dimension of the same size with as many elements behind it."""
    old, new = ([_size(size) for size in each.meta["val"].shape] for each in (operand, node))
    behind = _product(old[axis:][1:])
    return next((each for each in range(-len(new), 0) if new[each] == old[axis] and _product(new[each:][1:]) == behind), None)


def _permuted(node: fx.Node, operand: fx.Node, axis: int) -> int | None:
    dims = edit.argument(node, "dims")
    rank = len(dims)
    return [dim % rank for dim in dims].index(axis % rank) - rank


def _along_others(node: fx.Node, operand: fx.Node, axis: int) -> int | None:
    """Slices, flips, concatenations: not along the channels."""
    rank = node.meta["val"].dim()
    dims = edit.argument(node, "dims" if node.target is _aten.flip.default else "dim")
    touched = {dim % rank for dim in (dims if isinstance(dims, list | tuple) else [dims])}
    return None if axis % rank in touched else axis


def _padded(node: fx.Node, operand: fx.Node, axis: int) -> int | None:
    pad = edit.argument(node, "pad")
    before_after = pad[2 * (-axis - 1) : 2 * -axis]
    return axis if not any(before_after) and edit.argument(node, "value") == 0 else None


def _expanded(node: fx.Node, operand: fx.Node, axis: int) -> int | None:
    return axis if _size(node.meta["val"].shape[axis]) == _size(operand.meta["val"].shape[axis]) else None


def _reduced(node: fx.Node, operand: fx.Node, axis: int) -> int | None:
    rank = operand.meta["val"].dim()
    gone = {dim % rank for dim in edit.argument(node, "dim")}
    if axis % rank in gone or not gone:
        return None
    return axis if edit.argument(node, "keepdim") else axis + sum(dim > axis % rank for dim in gone)


def _pooled(node: fx.Node, operand: fx.Node, axis: int) -> int | None:
    return axis if axis == -3 else None


def _scaled(node: fx.Node, operand: fx.Node, axis: int) -> int | None:
    """By a number, or by something that is the same for all channels."""
    if node.args[0] is not operand:
        return None
    factor = node.args[1]
    if isinstance(factor, fx.Node):
        shape = factor.meta["val"].shape
        return axis if factor is not operand and (len(shape) < -axis or _size(shape[axis]) == 1) else None
    return axis


_AXES: dict[Any, Callable[[fx.Node, fx.Node, int], int | None]] = {
    **dict.fromkeys(SUMS, _expanded),
    **dict.fromkeys(_SHAPES, _reshaped),
    _aten.permute.default: _permuted,
    **dict.fromkeys((_aten.slice.Tensor, _aten.flip.default, _aten.cat.default), _along_others),
    _aten.constant_pad_nd.default: _padded,
    _aten.expand.default: _expanded,
    **dict.fromkeys((_aten.mean.dim, _aten.sum.dim_IntList), _reduced),
    **dict.fromkeys((_aten.avg_pool2d.default, _aten.adaptive_avg_pool2d.default), _pooled),
    **dict.fromkeys((_aten.mul.Tensor, _aten.div.Tensor), _scaled),
}


def _size(size: Size) -> int:
    """A size, or what stands for it: -1 for a symbol, which is no number of channels."""
    return size if isinstance(size, int) else -1


def _product(sizes: list[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
