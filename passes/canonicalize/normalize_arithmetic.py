"""``normalize-arithmetic``: sums and products in one form, the constant last.

With c a number or a constant tensor, a and b computed values, k the factor ``alpha`` of torch's add and sub:

    1. x - k c           = x + (-k c)                 sub, add with alpha, their Scalar forms
    2. c + x, c * x      = x + c, x * c
    3. c - k x           = (-k x) + c                 sub, rsub
    4. x / c             = x * (1 / c)
    5. c / x             = reciprocal(x) * c
    6. a + k b, a - k b  = a + (k b), a - (k b)
    7. (x + c) + d       = x + (c + d),   (x * c) * d = x * (c * d)      where nobody else reads the inner value
    8. x * x, square(x)  = x ** 2,   x + x = x * 2

A constant tensor with one element becomes a number. Numbers are combined in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

Constant = int | float | torch.Tensor

_SUMS: Mapping[object, int] = {
    _aten.add.Tensor: 1,
    _aten.add.Scalar: 1,
    _aten.sub.Tensor: -1,
    _aten.sub.Scalar: -1,
}
_PRODUCTS = frozenset({_aten.mul.Tensor, _aten.mul.Scalar})
_QUOTIENTS = frozenset({_aten.div.Tensor, _aten.div.Scalar})
_COMBINE: Mapping[object, Callable[[Constant, Constant], Constant]] = {
    _aten.add.Tensor: lambda first, second: first + second,
    _aten.mul.Tensor: lambda first, second: first * second,
}


@dataclass(frozen=True)
class NormalizeArithmetic(RewritePass[fx.Node]):
    """Subtraction and division by constants become addition and multiplication; chains of constants become one."""

    name: ClassVar = "normalize-arithmetic"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> fx.Node | None:
        known = node.target in _SUMS or node.target in _PRODUCTS | _QUOTIENTS | {_aten.rsub.Scalar, _aten.square.default}
        if node.op != "call_function" or not known or not node.meta["val"].dtype.is_floating_point:
            return None
        return None if _is_canonical(node) else node

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> None:
        site = Site(graph_module, match, self.name)
        site.replace(_rewritten(site, match))


def _is_canonical(node: fx.Node) -> bool:
    if node.target not in (_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor) or node.kwargs or len(node.args) != 2:
        return False
    first, second = node.args
    if isinstance(second, fx.Node) and _constant(second) is None:
        return _constant(first) is None and (first is not second or edit.is_call(node, _aten.sub.Tensor, _aten.div.Tensor))
    if edit.is_call(node, _aten.sub.Tensor, _aten.div.Tensor) or _needs_number(node, second):
        return False
    return _inner_constant(node) is None


def _rewritten(site: Site, node: fx.Node) -> fx.Node:
    if edit.is_call(node, _aten.square.default):
        return site.call(_aten.pow.Tensor_Scalar, node.args[0], 2)
    if edit.is_call(node, _aten.rsub.Scalar):
        return _sum(site, node.args[1], node.args[0], -edit.argument(node, "alpha"))
    first, second = node.args[:2]
    if node.target in _SUMS:
        return _sum(site, first, second, _SUMS[node.target] * edit.argument(node, "alpha"))
    if node.target in _PRODUCTS:
        return _product(site, first, second)
    return _quotient(site, first, second)


def _sum(site: Site, first: object, second: object, factor: float) -> fx.Node:
    """first + factor * second."""
    constant = _constant(second)
    if constant is not None:
        return _with_constant(site, _aten.add.Tensor, first, factor * constant)
    constant = _constant(first)
    if constant is not None:
        return _with_constant(site, _aten.add.Tensor, _scaled(site, second, factor), constant)
    if first is second:
        return _scaled(site, first, 1 + factor)
    if factor < 0:
        return site.call(_aten.sub.Tensor, first, _scaled(site, second, -factor))
    return site.call(_aten.add.Tensor, first, _scaled(site, second, factor))


def _scaled(site: Site, value: object, factor: float) -> fx.Node:
    assert isinstance(value, fx.Node)  # _constant said that it is no constant
    return value if factor == 1 else site.call(_aten.mul.Tensor, value, factor)


def _product(site: Site, first: object, second: object) -> fx.Node:
    if first is second:
        return site.call(_aten.pow.Tensor_Scalar, first, 2)
    constant, value = (_constant(first), second) if _constant(second) is None else (_constant(second), first)
    return site.call(_aten.mul.Tensor, first, second) if constant is None else _with_constant(site, _aten.mul.Tensor, value, constant)


def _quotient(site: Site, first: object, second: object) -> fx.Node:
    constant = _constant(second)
    if constant is not None:
        return _with_constant(site, _aten.mul.Tensor, first, 1 / constant)
    constant = _constant(first)
    if constant is not None:
        return _with_constant(site, _aten.mul.Tensor, site.call(_aten.reciprocal.default, second), constant)
    return site.call(_aten.div.Tensor, first, second)


def _with_constant(site: Site, target: edit.Target, value: object, constant: Constant) -> fx.Node:
    """``target(value, constant)``, taking in the constant of ``value`` where that is the same op (case 7)."""
    if isinstance(value, fx.Node) and edit.is_call(value, target) and len(value.users) == 1:
        inner = _constant(value.args[1])
        if inner is not None:
            value, constant = value.args[0], _COMBINE[target](inner, constant)
    number = _as_number(site.node, constant)
    if number is not None:
        return site.call(target, value, number)
    assert isinstance(constant, torch.Tensor)  # _as_number gives a number for every number
    return site.call(target, value, site.constant(f"{site.node.name}_constant", constant.to(site.node.meta["val"].dtype)))


def _inner_constant(node: fx.Node) -> Constant | None:
    """The constant of the argument, where case 7 applies."""
    inner = node.args[0]
    if not isinstance(inner, fx.Node) or not edit.is_call(inner, node.target) or len(inner.users) != 1 or len(inner.args) != 2:  # type: ignore[arg-type]  # an op overload
        return None
    return _constant(inner.args[1])


def _needs_number(node: fx.Node, operand: object) -> bool:
    """Whether the constant operand is a tensor that should be a number, or is not of the result's type."""
    constant = _constant(operand)
    if not isinstance(constant, torch.Tensor):
        return False
    return _as_number(node, constant) is not None or operand.meta["val"].dtype != node.meta["val"].dtype  # type: ignore[attr-defined]  # a tensor's node


def _as_number(node: fx.Node, constant: Constant) -> int | float | None:
    """The constant as a number, unless broadcasting it gives the result its rank."""
    if not isinstance(constant, torch.Tensor):
        return constant
    operands = [source.meta["val"].ndim for source in node.all_input_nodes if source.op != "get_attr"]
    fits = constant.numel() == 1 and constant.ndim <= max(operands, default=0)
    return float(constant) if fits else None


def _constant(operand: object) -> Constant | None:
    """A number as it is; a constant tensor in float64."""
    if isinstance(operand, int | float):
        return operand
    value = edit.constant_value(operand)
    return None if value is None else value.double()
