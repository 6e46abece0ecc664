"""``normalize-mask``: comparisons and logic of integers and booleans in one form.

With x a value, n a number, a and b booleans:

    1. eq(x, constant of one element) = eq(x, n)                 likewise ne, gt, ge, lt, le; constants on the left change sides
    2. x.to(bool) = ne(x, 0)
    3. not (x == n) = x != n, and so on for each comparison of integers; not not a = a
    4. logical_and, ``&`` = bitwise_and;  logical_or, ``|`` = bitwise_or;  ``~`` = logical_not
    5. a & True = a,  a | False = a  for a constant that is the same everywhere (or a slice of one)
    6. masked_fill(x, mask, constant of one element) = masked_fill(x, mask, n)
    7. conversions in any spelling = to.dtype
    8. masked_fill(x, constant of nothing but False, n) = x
    9. not expand(a) = expand(not a), likewise for other movement
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.float_ops import COMPARISON_OPS
from qcompiler.ir.types import Stage
from qcompiler.passes.canonicalize import patterns
from qcompiler.pipeline.contract import Exact
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

_WITH_NUMBER: Mapping[object, edit.Target] = {
    _aten.eq.Tensor: _aten.eq.Scalar,
    _aten.ne.Tensor: _aten.ne.Scalar,
    _aten.gt.Tensor: _aten.gt.Scalar,
    _aten.ge.Tensor: _aten.ge.Scalar,
    _aten.lt.Tensor: _aten.lt.Scalar,
    _aten.le.Tensor: _aten.le.Scalar,
}
# c < x is x > c
_MIRRORED: Mapping[object, edit.Target] = {
    _aten.eq.Tensor: _aten.eq.Scalar,
    _aten.ne.Tensor: _aten.ne.Scalar,
    _aten.gt.Tensor: _aten.lt.Scalar,
    _aten.ge.Tensor: _aten.le.Scalar,
    _aten.lt.Tensor: _aten.gt.Scalar,
    _aten.le.Tensor: _aten.ge.Scalar,
}
_OPPOSITE: Mapping[object, edit.Target] = {
    _aten.eq.Scalar: _aten.ne.Scalar,
    _aten.ne.Scalar: _aten.eq.Scalar,
    _aten.gt.Scalar: _aten.le.Scalar,
    _aten.le.Scalar: _aten.gt.Scalar,
    _aten.lt.Scalar: _aten.ge.Scalar,
    _aten.ge.Scalar: _aten.lt.Scalar,
}
_LOGIC: Mapping[object, edit.Target] = {
    _aten.logical_and.default: _aten.bitwise_and.Tensor,
    _aten.__and__.Tensor: _aten.bitwise_and.Tensor,
    _aten.logical_or.default: _aten.bitwise_or.Tensor,
    _aten.__or__.Tensor: _aten.bitwise_or.Tensor,
    _aten.bitwise_not.default: _aten.logical_not.default,
}
# The constant that changes nothing.
_NEUTRAL: Mapping[object, bool] = {_aten.bitwise_and.Tensor: True, _aten.bitwise_or.Tensor: False}
_CONVERSIONS = frozenset({_aten.to.dtype_layout, _aten.to.device, _aten.type_as.default, _aten._to_copy.default})


@dataclass(frozen=True)
class NormalizeMask(RewritePass[fx.Node]):
    """Few ops for masks and conversions, each in one form."""

    name: ClassVar = "normalize-mask"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> fx.Node | None:
        if node.op != "call_function":
            return None
        return node if any(applies(node) for applies, _ in _CASES) else None

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> None:
        site = Site(graph_module, match, self.name)
        rewrite = next(rewrite for applies, rewrite in _CASES if applies(match))
        site.replace(rewrite(site, match))


def _is_comparison_with_constant(node: fx.Node) -> bool:
    return node.target in _WITH_NUMBER and any(_number(operand, node) is not None for operand in node.args[:2])


def _compare_with_number(site: Site, node: fx.Node) -> fx.Node:
    first, second = node.args[:2]
    number = _number(second, node)
    if number is not None:
        return site.call(_WITH_NUMBER[node.target], first, number)
    return site.call(_MIRRORED[node.target], second, _number(first, node))


def _number(operand: object, node: fx.Node) -> Any:
    """The one element of a constant that does not give the result its rank."""
    constant = edit.constant_value(operand)
    ranks = [source.meta["val"].ndim for source in node.all_input_nodes if source is not operand]
    return constant.item() if constant is not None and constant.numel() == 1 and constant.ndim <= max(ranks, default=0) else None


def _dtype(value: object) -> torch.dtype:
    return value.meta["val"].dtype  # type: ignore[attr-defined,no-any-return]  # a tensor's node


def _is_conversion_to_bool(node: fx.Node) -> bool:
    return edit.is_call(node, _aten.to.dtype) and _dtype(node) == torch.bool


def _to_bool(site: Site, node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)  # a conversion works on a tensor
    return source if _dtype(source) == torch.bool else site.call(_aten.ne.Scalar, source, 0)


def _is_simple_negation(node: fx.Node) -> bool:
    if not edit.is_call(node, _aten.logical_not.default):
        return False
    inner = node.args[0]
    if edit.is_call(inner, *COMPARISON_OPS):
        return not _dtype(inner.args[0]).is_floating_point  # type: ignore[union-attr]  # a call is a node; of NaN neither holds
    return edit.is_call(inner, _aten.logical_not.default) and _dtype(inner.args[0]) == torch.bool  # type: ignore[union-attr]


def _negated(site: Site, node: fx.Node) -> fx.Node:
    inner = node.args[0]
    assert isinstance(inner, fx.Node)  # _is_simple_negation saw it
    if edit.is_call(inner, _aten.logical_not.default):
        return inner.args[0]  # type: ignore[return-value]  # works on a tensor
    return site.call(_OPPOSITE[inner.target], *inner.args)


def _negates_movement(node: fx.Node) -> bool:
    moved = node.args[0] if edit.is_call(node, _aten.logical_not.default) else None
    return isinstance(moved, fx.Node) and moved.target in patterns.MOVES_OF_MASKS and _dtype(moved) == torch.bool


def _move_negation(site: Site, node: fx.Node) -> fx.Node:
    moved = node.args[0]
    assert isinstance(moved, fx.Node)  # _negates_movement saw it
    negated = site.call(_aten.logical_not.default, moved.args[0])
    return site.call(moved.target, negated, *moved.args[1:], **moved.kwargs)  # type: ignore[arg-type]  # an op overload


def _is_logic(node: fx.Node) -> bool:
    return node.target in _LOGIC and all(_dtype(source) == torch.bool for source in node.all_input_nodes)


def _as_bitwise(site: Site, node: fx.Node) -> fx.Node:
    return site.call(_LOGIC[node.target], *node.args)


def _has_neutral(node: fx.Node) -> bool:
    return node.target in _NEUTRAL and any(_everywhere(operand) is _NEUTRAL[node.target] for operand in node.args)


def _everywhere(operand: object) -> bool | None:
    """The boolean that a constant, or a slice of one, holds everywhere."""
    while edit.is_call(operand, _aten.slice.Tensor, _aten.expand.default):
        operand = operand.args[0]  # type: ignore[attr-defined]  # a call is a node
    constant = edit.constant_value(operand)
    if constant is None or constant.dtype != torch.bool or constant.numel() == 0:
        return None
    return bool(constant.flatten()[0]) if bool((constant == constant.flatten()[0]).all()) else None


def _without_neutral(site: Site, node: fx.Node) -> fx.Node:
    """The other operand, which ``expand`` brings to the shape of both."""
    first, second = node.args
    other = second if _everywhere(first) is _NEUTRAL[node.target] else first
    assert isinstance(other, fx.Node)  # logic of tensors
    return other if patterns.sizes(other) == patterns.sizes(node) else _expanded(site, other, node)


def _expanded(site: Site, value: fx.Node, like: fx.Node) -> fx.Node:
    """``value`` repeated to the shape of ``like``."""
    rank, shape = value.meta["val"].ndim, like.meta["val"].shape
    sizes: list[Any] = []
    for position, size in enumerate(shape):
        own = position - len(shape) + rank
        same = own >= 0 and str(value.meta["val"].shape[own]) == str(size)
        sizes.append(-1 if same else patterns.size_of(site, size))
    return site.call(_aten.expand.default, value, sizes)


def _fills_with_tensor(node: fx.Node) -> bool:
    return edit.is_call(node, _aten.masked_fill.Tensor) and edit.constant_value(node.args[2]) is not None


def _fill_with_number(site: Site, node: fx.Node) -> fx.Node:
    value = edit.constant_value(node.args[2])
    assert value is not None  # _fills_with_tensor saw it
    return site.call(_aten.masked_fill.Scalar, node.args[0], node.args[1], value.item())


def _fills_nothing(node: fx.Node) -> bool:
    if not edit.is_call(node, _aten.masked_fill.Scalar) or patterns.sizes(node) != patterns.sizes(node.args[0]):  # type: ignore[arg-type]  # a tensor
        return False
    return _everywhere(node.args[1]) is False


def _unfilled(site: Site, node: fx.Node) -> fx.Node:
    return node.args[0]  # type: ignore[return-value]  # masked_fill works on a tensor


def _is_other_conversion(node: fx.Node) -> bool:
    return node.target in _CONVERSIONS and _dtype(node) != _dtype(node.args[0])


def _convert(site: Site, node: fx.Node) -> fx.Node:
    return site.call(_aten.to.dtype, node.args[0], _dtype(node))


_CASES: tuple[tuple[Callable[[fx.Node], bool], Callable[[Site, fx.Node], fx.Node]], ...] = (
    (_is_comparison_with_constant, _compare_with_number),
    (_is_conversion_to_bool, _to_bool),
    (_is_simple_negation, _negated),
    (_negates_movement, _move_negation),
    (_is_logic, _as_bitwise),
    (_has_neutral, _without_neutral),
    (_fills_with_tensor, _fill_with_number),
    (_fills_nothing, _unfilled),
    (_is_other_conversion, _convert),
)
