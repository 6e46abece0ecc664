"""How each op takes part in quantization, as data: one line an op.

====================  =========================================================================================
role                  meaning
====================  =========================================================================================
``ACCUMULATE``        integer sums of products: the result is exact in int32, at a scale known from the inputs
``ROUND``             computed from 8-bit integers and rounded at once: sums of two values, tables
``CLAMP``             bounds its input; fused into the rounding of the op before it where nobody else reads that
``MOVE``              moves or selects values: the result has the parameters of its input
``JOIN``              concatenation: an input that nobody else reads gets the parameters of the result
====================  =========================================================================================

An op that is not here has no integer form. It is left in float, between a dequantize and a quantize, with a note; lowering will
decline it.
"""

from __future__ import annotations

import enum
import operator
from typing import Any

import torch
from torch import fx

from qcompiler.ir import edit, elementwise

_aten = torch.ops.aten


class Role(enum.Enum):
    """See the module's table."""

    ACCUMULATE = enum.auto()
    ROUND = enum.auto()
    CLAMP = enum.auto()
    MOVE = enum.auto()
    JOIN = enum.auto()


# Ops with a constant weight -> the axis of the weight that runs over output channels.
WEIGHT_AXIS: dict[Any, int] = {_aten.conv2d.default: 0, _aten.linear.default: 0, _aten.conv_transpose2d.input: 1}

# An int32 accumulator of these may be added to another value before it is rounded (``qc::add``).
ADDABLE = frozenset({_aten.conv2d.default, _aten.linear.default})

# Constants of these go into tables and multipliers; they are no operands in 8 bits.
CONSUMES_CONSTANTS = frozenset({_aten.prelu.default, _aten.layer_norm.default})

SUMS = frozenset({_aten.add.Tensor, _aten.sub.Tensor})

ROLES: dict[Any, Role] = {
    **dict.fromkeys(WEIGHT_AXIS, Role.ACCUMULATE),
    _aten.mul.Tensor: Role.ACCUMULATE,
    _aten.matmul.default: Role.ACCUMULATE,
    _aten.avg_pool2d.default: Role.ACCUMULATE,
    _aten.adaptive_avg_pool2d.default: Role.ACCUMULATE,
    _aten.mean.dim: Role.ACCUMULATE,
    _aten.sum.dim_IntList: Role.ACCUMULATE,
    **dict.fromkeys(SUMS, Role.ROUND),
    _aten.prelu.default: Role.ROUND,
    _aten.softmax.int: Role.ROUND,
    _aten.layer_norm.default: Role.ROUND,
    **dict.fromkeys(elementwise.CLAMPS, Role.CLAMP),
    _aten.max_pool2d.default: Role.MOVE,
    _aten.amax.default: Role.MOVE,
    _aten.reshape.default: Role.MOVE,
    _aten.permute.default: Role.MOVE,
    _aten.slice.Tensor: Role.MOVE,
    _aten.constant_pad_nd.default: Role.MOVE,
    _aten.expand.default: Role.MOVE,
    _aten.flip.default: Role.MOVE,
    _aten.cat.default: Role.JOIN,
}


def role_of(node: fx.Node) -> Role | None:
    """The role of a call; an input of the program is rounded at the border; None for what has no integer form."""
    if node.op == "placeholder" or elementwise.is_function(node):
        return Role.ROUND
    if node.target is operator.getitem:
        return Role.MOVE if moved_value(node) is not None else None
    if node.target in WEIGHT_AXIS and edit.constant_value(node.args[1]) is None:
        return None  # a product of two activations
    return ROLES.get(node.target)


def moved_value(node: fx.Node) -> fx.Node | None:
    """The value whose elements an op with role MOVE gives; None for an item of another op's results.

    ``adaptive_max_pool2d`` gives the maxima and their positions, so that its first item is what moves.
    """
    source = node.args[0]
    if node.target is operator.getitem:
        is_maxima = edit.is_call(source, _aten.adaptive_max_pool2d.default) and node.args[1] == 0
        source = source.args[0] if is_maxima else None  # type: ignore[union-attr]  # a call is a node
    return source if isinstance(source, fx.Node) else None
