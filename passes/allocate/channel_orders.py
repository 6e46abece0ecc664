"""Which values have their channels in one order, so that they can only be reordered together, and which constants go with them.

The output channels of a layer may stand in any order, if everything that reads them knows it: a permutation goes into the rows of the
layer's weight and bias, and into the columns of the weights of the layers that read it. In between, ops that work on each channel alone
carry it on; an op that joins two values channel by channel, such as a residual add, makes their orders one:

========================================  ======================================================================
op                                        what becomes of the order
========================================  ======================================================================
linear, convolution (not transposed)      its input's order ends, in the columns of its weight; its output has one of its own
depthwise convolution                     goes on; rows of weight and bias
rows of a constant table                  one of its own, in the columns of the table
functions, sums, products                 goes on; orders of several operands become one; constants take part
layer norm, RMS norm over the channels    goes on; weight and bias
pooling, mean and maximum over others     goes on
reshape, permute, slice, pad, flip,       goes on where the channels stay a dimension of their own, whole
expand, concatenation along others
========================================  ======================================================================

Anything else *pins* it: the channels stay as they are. So do outputs of the program, a reshape that cuts channels into heads, a
concatenation or padding along the channels, a sum with a value that has no such order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.float_ops import ARITHMETIC_OPS, UNARY_OPS
from qcompiler.ir.layers import channel_axis
from qcompiler.ir.sizes import expression

_aten, _qc = torch.ops.aten, torch.ops.qc

LAYERS = (_aten.linear.default, _aten.conv2d.default)
"""Whose output channels can be reordered."""

_POOLS = (_aten.max_pool2d.default, _aten.avg_pool2d.default, _aten.adaptive_avg_pool2d.default)
_NORMS: Mapping[Any, tuple[str, ...]] = {
    _aten.layer_norm.default: ("weight", "bias"),
    _aten.rms_norm.default: ("weight",),
    _qc.l2_normalize.default: (),
}
"""With the names of their constants."""
_REDUCTIONS = (_aten.mean.dim, _aten.sum.dim_IntList, _aten.amax.default)
_RESHAPES = (
    _aten.reshape.default,
    _aten.flatten.using_ints,
    _aten.unflatten.int,
    _aten.unsqueeze.default,
    _aten.squeeze.dims,
)


@dataclass(frozen=True)
class Operand:
    """A constant that ``node`` reads as its argument ``name``, with the channels along dimension ``dim``."""

    node: fx.Node
    name: str
    dim: int


@dataclass(eq=False)
class Order:
    """The order of some values' channels.

    layers: those that make such values, in topological order. operands: what is permuted with them. pinned: why it cannot be changed, one
    clause; empty if it can.
    """

    channels: int
    layers: list[fx.Node] = field(default_factory=list)
    operands: list[Operand] = field(default_factory=list)
    pinned: str = ""


class ChannelOrders:
    """The orders of a FLOAT graph's values."""

    def __init__(self, graph: fx.Graph) -> None:
        self._orders: dict[fx.Node, Order] = {}
        self._axes: dict[fx.Node, int] = {}
        for node in graph.nodes:
            if node.op in ("call_function", "output"):
                _RULES.get(node.target, ChannelOrders._stop)(self, node)

    def of(self, layer: fx.Node) -> Order:
        """The order of what a layer of ``LAYERS`` gives; one that is pinned where its channels were not followed."""
        return self._orders.get(layer) or Order(0, [layer], pinned="its channels were not followed")

    # ---- what rules are made of ------------------------------------------------------------------------------------------------

    def _follow(self, node: fx.Node, order: Order, axis: int) -> None:
        """``node`` has its channels along dimension ``axis`` in this order, if it has as many there."""
        if 0 <= axis < node.meta["val"].ndim and node.meta["val"].shape[axis] == order.channels:
            self._orders[node], self._axes[node] = order, axis
        else:
            self._pin(order, node)

    def _pin(self, order: Order, node: fx.Node) -> None:
        reads = "it is an output of the program" if node.op == "output" else f"'{node.name}' reads its channels as they stand"
        order.pinned = order.pinned or reads

    def _stop(self, node: fx.Node) -> None:
        """``node`` needs its operands as they are."""
        for operand in node.all_input_nodes:
            if operand in self._orders:
                self._pin(self._orders[operand], node)

    def _join(self, one: Order, other: Order) -> Order:
        """Two orders are the same from now on."""
        if one is other:
            return one
        one.layers = sorted([*one.layers, *other.layers])
        one.operands += other.operands
        one.pinned = one.pinned or other.pinned
        for node, order in self._orders.items():
            if order is other:
                self._orders[node] = one
        return one

    def _moved(self, node: fx.Node, find: Callable[[fx.Node, int], int | None]) -> None:
        """An op of one tensor, whose channel dimension becomes what ``find`` says; None: they are not a whole dimension any more."""
        source = node.args[0]
        if not isinstance(source, fx.Node) or source not in self._orders:
            self._stop(node)
            return
        axis = find(node, self._axes[source])
        if axis is None:
            self._stop(node)
        else:
            self._follow(node, self._orders[source], axis)

    # ---- rules -----------------------------------------------------------------------------------------------------------------

    def layer(self, node: fx.Node) -> None:
        source, weight = node.args[0], edit.constant_value(node.args[1])
        bias = edit.argument(node, "bias")
        if weight is None or not isinstance(source, fx.Node) or not (bias is None or edit.is_constant(bias)):
            self._stop(node)
            return
        axis, groups = _channel_axis(node), 1 if node.target is _aten.linear.default else int(edit.argument(node, "groups"))
        rows = [Operand(node, "weight", 0), *([Operand(node, "bias", 0)] if bias is not None else [])]
        if groups == weight.shape[0] > 1 and weight.shape[1] == 1 and self._axes.get(source) == axis:
            order = self._orders[source]
            order.operands += rows
            self._follow(node, order, axis)
            return
        if groups > 1 or self._axes.get(source, axis) != axis:
            self._stop(node)
        elif source in self._orders:
            self._orders[source].operands.append(Operand(node, "weight", 1))
        if groups == 1 and weight.shape[0] > 1:
            self._follow(node, Order(weight.shape[0], [node], rows), axis)

    def table(self, node: fx.Node) -> None:
        weight = edit.constant_value(node.args[0])
        if weight is None:
            self._stop(node)
        else:
            self._follow(node, Order(weight.shape[1], [], [Operand(node, "weight", 1)]), node.meta["val"].ndim - 1)

    def elementwise(self, node: fx.Node) -> None:
        tensors = [operand for operand in node.args if isinstance(operand, fx.Node)]
        axes = {self._axes[operand] - operand.meta["val"].ndim for operand in tensors if operand in self._axes}
        if len(axes) != 1 or len(tensors) < len(node.all_input_nodes):
            self._stop(node)
            return
        (axis,) = axes
        orders = [self._orders[operand] for operand in tensors if operand in self._orders]
        order = orders[0]
        for other in orders[1:]:
            order = self._join(order, other)
        for position, operand in enumerate(node.args):
            if isinstance(operand, fx.Node) and operand not in self._orders and _varies(operand, axis):
                if edit.is_constant(operand):
                    name = node.target._schema.arguments[position].name  # type: ignore[union-attr]  # an op overload
                    order.operands.append(Operand(node, name, axis + operand.meta["val"].ndim))
                else:
                    self._pin(order, node)
        self._follow(node, order, axis + node.meta["val"].ndim)

    def slopes(self, node: fx.Node) -> None:
        """prelu: a slope for all, or one for each channel along dimension 1."""
        source, slopes = node.args[0], edit.constant_value(node.args[1])
        if slopes is None or source not in self._orders or (slopes.numel() > 1 and self._axes[source] != 1):  # type: ignore[index]  # a node
            self._stop(node)
            return
        order = self._orders[source]  # type: ignore[index]  # as above
        if slopes.numel() > 1:
            order.operands.append(Operand(node, "weight", 0))
        self._follow(node, order, self._axes[source])  # type: ignore[index]  # as above

    def norm(self, node: fx.Node) -> None:
        source = node.args[0]
        if not isinstance(source, fx.Node) or source not in self._orders:
            self._stop(node)
            return
        rank, axis = source.meta["val"].ndim, self._axes[source]
        normalized = 1 if node.target is _qc.l2_normalize.default else len(edit.argument(node, "normalized_shape"))
        constants = [name for name in _NORMS[node.target] if edit.argument(node, name) is not None]
        if axis < rank - normalized:
            self._follow(node, self._orders[source], axis)
        elif normalized == 1 and all(edit.is_constant(edit.argument(node, name)) for name in constants):
            self._orders[source].operands += [Operand(node, name, 0) for name in constants]
            self._follow(node, self._orders[source], axis)
        else:
            self._stop(node)

    def pool(self, node: fx.Node) -> None:
        self._moved(node, lambda node, axis: axis if axis < node.meta["val"].ndim - 2 else None)

    def reduce(self, node: fx.Node) -> None:
        """Over other dimensions; what is summed over the channels does not depend on their order."""
        source = node.args[0]
        if isinstance(source, fx.Node) and source in self._orders and self._axes[source] in _dims(node, source):
            return
        self._moved(node, _axis_reduced)

    def reshape(self, node: fx.Node) -> None:
        self._moved(node, _axis_reshaped)

    def permute(self, node: fx.Node) -> None:
        def find(node: fx.Node, axis: int) -> int:
            dims = [dim % node.meta["val"].ndim for dim in edit.argument(node, "dims")]
            return dims.index(axis)

        self._moved(node, find)

    def along_others(self, node: fx.Node) -> None:
        """What changes other dimensions alone."""
        self._moved(node, lambda node, axis: axis if axis not in _changed(node) else None)

    def size(self, node: fx.Node) -> None:
        """Sizes do not depend on the order."""

    def concatenate(self, node: fx.Node) -> None:
        parts: Sequence[fx.Node] = node.args[0]  # type: ignore[assignment]  # aten.cat(Tensor[], int)
        axes = {self._axes.get(part) for part in parts}
        dim = edit.argument(node, "dim") % node.meta["val"].ndim
        if len(axes) != 1 or None in axes or dim in axes:
            self._stop(node)
            return
        order = self._orders[parts[0]]
        for part in parts[1:]:
            order = self._join(order, self._orders[part])
        self._follow(node, order, self._axes[parts[0]])


def _channel_axis(layer: fx.Node) -> int:
    return int(layer.meta["val"].ndim) + channel_axis(layer)


def _varies(operand: fx.Node, axis: int) -> bool:
    """Whether a value has more than one element along a dimension, which is counted from the last one."""
    shape = operand.meta["val"].shape
    return -axis <= len(shape) and shape[axis] != 1


def _dims(node: fx.Node, source: fx.Node) -> set[int]:
    """Over which dimensions a reduction runs: all of them where none is named."""
    rank, dims = source.meta["val"].ndim, edit.argument(node, "dim")
    return {dim % rank for dim in (dims if isinstance(dims, list | tuple) else [dims])} if dims else set(range(rank))


def _axis_reduced(node: fx.Node, axis: int) -> int:
    source = node.args[0]
    assert isinstance(source, fx.Node)  # a reduction works on a tensor
    return axis if edit.argument(node, "keepdim") else axis - sum(dim < axis for dim in _dims(node, source))


def _axis_reshaped(node: fx.Node, axis: int) -> int | None:
    """The dimension of the result that has the same size and as many elements before it."""
    source = node.args[0]
    assert isinstance(source, fx.Node)  # a reshape works on a tensor
    old, new = ([expression(size) for size in each.meta["val"].shape] for each in (source, node))
    same = (own for own, size in enumerate(new) if size == old[axis] and math.prod(new[:own]) == math.prod(old[:axis]))
    return next(same, None)


def _changed(node: fx.Node) -> Iterable[int]:
    """The dimensions along which a slice, a padding, a flip or an expansion does something."""
    rank = node.meta["val"].ndim
    if node.target is _aten.slice.Tensor:
        return {edit.argument(node, "dim") % rank}
    if node.target is _aten.flip.default:
        return {dim % rank for dim in edit.argument(node, "dims")}
    if node.target is _aten.expand.default:
        source = node.args[0]
        assert isinstance(source, fx.Node)  # an expansion works on a tensor
        return range(rank) if source.meta["val"].ndim != rank else ()
    pad = edit.argument(node, "pad")
    return {rank - 1 - position // 2 for position, amount in enumerate(pad) if amount != 0}


_RULES: dict[Any, Callable[[ChannelOrders, fx.Node], None]] = {
    **dict.fromkeys(LAYERS, ChannelOrders.layer),
    **dict.fromkeys(UNARY_OPS | (ARITHMETIC_OPS - {_aten.prelu.default}), ChannelOrders.elementwise),
    **dict.fromkeys(_POOLS, ChannelOrders.pool),
    **dict.fromkeys(_NORMS, ChannelOrders.norm),
    **dict.fromkeys(_REDUCTIONS, ChannelOrders.reduce),
    **dict.fromkeys(_RESHAPES, ChannelOrders.reshape),
    _aten.prelu.default: ChannelOrders.slopes,
    _aten.embedding.default: ChannelOrders.table,
    _aten.permute.default: ChannelOrders.permute,
    _aten.slice.Tensor: ChannelOrders.along_others,
    _aten.flip.default: ChannelOrders.along_others,
    _aten.expand.default: ChannelOrders.along_others,
    _aten.constant_pad_nd.default: ChannelOrders.along_others,
    _aten.cat.default: ChannelOrders.concatenate,
    _aten.sym_size.int: ChannelOrders.size,
}
