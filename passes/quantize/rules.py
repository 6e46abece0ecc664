"""How each op takes part in quantization, as data: one line an op.

====================  =========================================================================================
role                  meaning
====================  =========================================================================================
``ACCUMULATE``        integer sums (of products, of a Hadamard transform): the result is exact in int32, at a scale known from the inputs
``ROUND``             computed from few bits and rounded at once: sums of two values, tables, normalizations
``CLAMP``             bounds its input; fused into the rounding of the op before it where nobody else reads that
``SCALE``             a positive number times the input: the same integers, or the same accumulator, at another scale
``MASK``              leaves elements out of a softmax: the integers stay, the mask goes beside them
``MOVE``              moves or selects values: the result has the parameters of the input
``JOIN``              concatenation: an input that nobody else reads gets the parameters of the result
``EXACT``             whole numbers (casts of integers, their sums) and rows of constant tables: nothing is rounded
====================  =========================================================================================

An op that is not here has no integer form. It is left in float, between a dequantize and a quantize, with a note; lowering will
decline it unless the user allows it as a float island.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

import qcompiler.ir.float_ops  # noqa: F401  # registers qc::l2_normalize
from qcompiler.ir import edit, elementwise

_aten, _qc = torch.ops.aten, torch.ops.qc


class Role(enum.Enum):
    """See the module's table."""

    ACCUMULATE = enum.auto()
    ROUND = enum.auto()
    CLAMP = enum.auto()
    SCALE = enum.auto()
    MASK = enum.auto()
    MOVE = enum.auto()
    JOIN = enum.auto()
    EXACT = enum.auto()


# Ops with a constant weight -> the axis of the weight that runs over output channels.
WEIGHT_AXIS: dict[Any, int] = {_aten.conv2d.default: 0, _aten.linear.default: 0, _aten.conv_transpose2d.input: 1}

# An int32 accumulator of these may be added to another value before it is rounded (``qc::add``).
ADDABLE = frozenset({_aten.conv2d.default, _aten.linear.default, _aten.matmul.default})

# Constants of these go into tables and multipliers; they are no operands in few bits.
CONSUMES_CONSTANTS = frozenset({_aten.prelu.default, _aten.layer_norm.default, _aten.rms_norm.default})

SUMS = frozenset({_aten.add.Tensor, _aten.sub.Tensor})

# What they read and, where a sum reads it, what they give belongs to the residual stream.
NORMALIZATIONS = frozenset({_aten.layer_norm.default, _aten.rms_norm.default, _qc.l2_normalize.default})

# Read a value of the residual stream as it is: no product with a weight follows.
REDUCTIONS = frozenset({_aten.mean.dim, _aten.sum.dim_IntList})

ROLES: dict[Any, Role] = {
    **dict.fromkeys(WEIGHT_AXIS, Role.ACCUMULATE),
    _aten.mul.Tensor: Role.ACCUMULATE,
    _aten.matmul.default: Role.ACCUMULATE,
    _qc.hadamard.default: Role.ACCUMULATE,
    _aten.avg_pool2d.default: Role.ACCUMULATE,
    _aten.adaptive_avg_pool2d.default: Role.ACCUMULATE,
    **dict.fromkeys(REDUCTIONS, Role.ACCUMULATE),
    **dict.fromkeys(SUMS, Role.ROUND),
    _aten.prelu.default: Role.ROUND,
    _aten.softmax.int: Role.ROUND,
    **dict.fromkeys(NORMALIZATIONS, Role.ROUND),
    **dict.fromkeys(elementwise.CLAMPS, Role.CLAMP),
    _aten.masked_fill.Scalar: Role.MASK,
    _aten.max_pool2d.default: Role.MOVE,
    _aten.amax.default: Role.MOVE,
    _aten.reshape.default: Role.MOVE,
    _aten.permute.default: Role.MOVE,
    _aten.slice.Tensor: Role.MOVE,
    _aten.constant_pad_nd.default: Role.MOVE,
    _aten.expand.default: Role.MOVE,
    _aten.flip.default: Role.MOVE,
    _aten.unflatten.int: Role.MOVE,
    _aten.flatten.using_ints: Role.MOVE,
    _aten.unsqueeze.default: Role.MOVE,
    _aten.squeeze.dims: Role.MOVE,
    _aten.cat.default: Role.JOIN,
}


def role_of(node: fx.Node) -> Role | None:
    """The role of a call; an input of the program is rounded at the border; None for what has no integer form."""
    if node.op == "placeholder":
        return Role.ROUND
    if is_whole(node) or _is_row_of_table(node):
        return Role.EXACT
    special = _SPECIAL.get(node.target)
    if special is not None:
        return special(node)
    return Role.ROUND if elementwise.is_function(node) else ROLES.get(node.target)


def moved_value(node: fx.Node) -> fx.Node | None:
    """The value whose elements an op with role MOVE gives; None for an item of another op's results.

    ``adaptive_max_pool2d`` gives the maxima and their positions, so that its first item is what moves.
    """
    source = node.args[0]
    if node.target is operator.getitem:
        is_maxima = edit.is_call(source, _aten.adaptive_max_pool2d.default) and node.args[1] == 0
        source = source.args[0] if is_maxima else None  # type: ignore[union-attr]  # a call is a node
    return source if isinstance(source, fx.Node) else None


def is_whole(node: object) -> bool:
    """Whether a float value holds whole numbers at scale 1 for sure: integers as floats, their sums, bounds and moves.

    A mask and a number of tokens are such. They are computed in integers from the start.
    """
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    if node.target is _aten.to.dtype:
        source = node.args[0]
        return isinstance(source, fx.Node) and not source.meta["val"].is_floating_point() and node.meta["val"].is_floating_point()
    keeps = node.target in (_aten.sum.dim_IntList, *elementwise.CLAMPS) or ROLES.get(node.target) is Role.MOVE
    return keeps and is_whole(node.args[0])


def mask_of(node: fx.Node) -> fx.Node | None:
    """The mask, as whole numbers, that a product multiplies a value by; None for any other product."""
    wholes = [operand for operand in node.args[:2] if is_whole(operand)] if node.target is _aten.mul.Tensor else []
    return wholes[0] if wholes and isinstance(wholes[0], fx.Node) else None


def _is_row_of_table(node: fx.Node) -> bool:
    """An embedding with constant rows, or what only moves a constant."""
    if edit.is_call(node, _aten.embedding.default):
        return edit.constant_value(node.args[0]) is not None
    moves = ROLES.get(node.target) is Role.MOVE
    source = node.args[0] if moves else None
    return isinstance(source, fx.Node) and (edit.constant_value(source) is not None or _is_row_of_table(source))


def _of_product(node: fx.Node) -> Role | None:
    if elementwise.is_scaling(node):
        return Role.SCALE
    if elementwise.is_function(node):
        return Role.ROUND
    if node.target is _aten.div.Tensor:
        return Role.ACCUMULATE if is_whole(node.args[1]) else None
    return Role.ACCUMULATE


def _of_layer(node: fx.Node) -> Role | None:
    """None for a product of two activations."""
    return Role.ACCUMULATE if edit.constant_value(node.args[1]) is not None else None


def _of_item(node: fx.Node) -> Role | None:
    return Role.MOVE if moved_value(node) is not None else None


def _of_mask(node: fx.Node) -> Role | None:
    """Elements are left out by minus infinity; any other number is none of a mask."""
    return Role.MASK if node.args[2] == float("-inf") else None


_SPECIAL: dict[Any, Callable[[fx.Node], Role | None]] = {
    **dict.fromkeys(WEIGHT_AXIS, _of_layer),
    _aten.mul.Tensor: _of_product,
    _aten.div.Tensor: _of_product,
    _aten.masked_fill.Scalar: _of_mask,
    operator.getitem: _of_item,
}
