"""Ranges of data movement, which is executed on the intervals themselves, of masks, conversions and sizes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx
from torch.fx.node import map_arg

from qcompiler.ir.edit import argument
from qcompiler.ir.ranges.bounds import Bounds, Known, filled, settled
from qcompiler.ir.types import IntegerRange

_aten = torch.ops.aten

_MOST_ELEMENTS = 1 << 24  # of one value, when data movement is executed on its intervals


def mask(node: fx.Node, known: Known) -> Bounds:
    """0 and 1."""
    return filled(node, IntegerRange(0, 1))


def cast(node: fx.Node, known: Known) -> Bounds:
    """Integers keep their values, which ``bounds_of`` proves to fit; to bool everything but 0 is 1."""
    x = known[argument(node, "self")]
    return filled(node, IntegerRange(0, 1)) if node.meta["val"].dtype is torch.bool else x


def size(node: fx.Node, known: Known) -> Bounds:
    """Sizes are no values; what they shape has its own rule."""
    return Bounds(torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64))


def movement(node: fx.Node, known: Known) -> Bounds:
    """Every element of the result is one of an operand's (or the padding), so the op itself moves the intervals."""
    operands = _tensor_operands(node)
    if len(operands) < len(node.all_input_nodes):  # a size among the arguments is known at run time only
        return _united_operands(node, known)
    whole = [[1 if isinstance(size, torch.SymInt) else size for size in operand.meta["val"].shape] for operand in operands]
    uniform = all(known[operand].low.numel() == 1 for operand in operands) and node.target is not _aten.constant_pad_nd.default
    if uniform or any(torch.Size(sizes).numel() > _MOST_ELEMENTS for sizes in whole):
        return _united_operands(node, known)
    low = {operand: known[operand].low.expand(sizes) for operand, sizes in zip(operands, whole, strict=True)}
    high = {operand: known[operand].high.expand(sizes) for operand, sizes in zip(operands, whole, strict=True)}
    try:
        return settled(node, Bounds(_executed(node, low), _executed(node, high)))
    except RuntimeError:  # a view that splits a batch into samples and something else cannot be taken of one sample
        return _united_operands(node, known)


def _united_operands(node: fx.Node, known: Known) -> Bounds:
    first, *others = _tensor_operands(node)
    union = known[first].range
    for operand in others:
        union = union.union(known[operand].range)
    if node.target is _aten.constant_pad_nd.default:
        value = int(argument(node, "value"))
        union = union.union(IntegerRange(value, value))
    return filled(node, union)


def _tensor_operands(node: fx.Node) -> list[fx.Node]:
    return [operand for operand in node.all_input_nodes if isinstance(operand.meta["val"], torch.Tensor)]


def _executed(node: fx.Node, values: Mapping[fx.Node, torch.Tensor]) -> torch.Tensor:
    assert callable(node.target)  # bounds_of found a rule for it
    result = node.target(*map_arg(node.args, values.__getitem__), **map_arg(node.kwargs, values.__getitem__))
    assert isinstance(result, torch.Tensor)
    return result
