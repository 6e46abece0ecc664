"""What quantization and lowering need to know about ops of one tensor: which of them bound a value, which are a function of it.

An op that only bounds (relu, clamp) becomes the limits of the rounding before it. Any other function of 8-bit integers is a table
of 256 entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.float_ops import ARITHMETIC_OPS, UNARY_OPS

_aten = torch.ops.aten

CLAMPS = frozenset({_aten.relu.default, _aten.clamp.default})


def clamp_bounds(node: fx.Node) -> tuple[float, float]:
    """The limits of a bounding op, which may be infinite: relu gives (0, inf)."""
    if node.target is _aten.relu.default:
        return 0.0, math.inf
    low, high = edit.argument(node, "min"), edit.argument(node, "max")
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


def is_function(node: fx.Node) -> bool:
    """Whether the node is a function of its first argument alone, element by element, and no mere bound.

    Arithmetic with a number counts: ``x * 2``, ``x + 3``, but not ``x + y``.
    """
    if node.target in ARITHMETIC_OPS:
        return isinstance(node.args[0], fx.Node) and not isinstance(node.args[1], fx.Node)
    return node.target in UNARY_OPS and node.target not in CLAMPS


def is_scaling(node: fx.Node) -> bool:
    """Whether the node multiplies one tensor by a positive number, or divides it by one."""
    if node.target not in (_aten.mul.Tensor, _aten.div.Tensor) or len(node.args) < 2:
        return False
    number = node.args[1]
    return isinstance(node.args[0], fx.Node) and isinstance(number, int | float) and 0 < number < math.inf


def scaling_factor(node: fx.Node) -> float:
    """The number of such a node."""
    number = float(node.args[1])  # type: ignore[arg-type]  # what is_scaling asks for
    return number if node.target is _aten.mul.Tensor else 1.0 / number


def scalar_function(node: fx.Node) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of such a node; tables evaluate it in float64."""
    target, rest, named = node.target, node.args[1:], node.kwargs

    def function(x: torch.Tensor) -> torch.Tensor:
        return target(x, *rest, **named)  # type: ignore[operator,no-any-return]  # fx types targets as str | Callable

    return function
