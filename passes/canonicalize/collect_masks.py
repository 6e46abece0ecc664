"""``collect-masks``: whatever is added to or put into the scores before a softmax becomes one bias and one mask.

    softmax(masked_fill(scores + bias, drop, -inf))

Read from the softmax upwards, each of these is taken in, in any order and number, as long as nobody else reads it:

    1. x + c, c a constant: entries 64 and more below the largest of their row leave the element out, the others are bias
    2. masked_fill(x, drop, n), where(keep, x, n), where(drop, n, x) with n <= -64
    3. x + m, m a mask in floats: where(keep, 0, n), where(drop, n, 0), masked_fill(0, drop, n), or a to(x) + b of a mask of
       zeros and ones, where one of b and a + b is 0 and the other at most -64; also behind movement that repeats elements or
       inserts dimensions. In case b - b to(x) with an integer x, x must hold zeros and ones alone, as the model supposes itself.

exp(-64) is 2e-28, so that an element which gets -64 contributes nothing beside others; the only difference is in rows that keep
nothing, where softmax(x - 10000) is that of x, and the form with -inf has no value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.passes.canonicalize import patterns
from qcompiler.passes.canonicalize.patterns import LEAVES_OUT, MOVES_OF_MASKS
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

_WHERE = frozenset({_aten.where.self, _aten.where.ScalarSelf, _aten.where.ScalarOther, _aten.where.Scalar})

# Makes the boolean that says what to leave out.
Drop = Callable[[Site], fx.Node]


@dataclass
class Scores:
    """What the softmax ``node`` reads: ``base``, constants added to it, and masks. ``steps``: how many ops wrote it so far."""

    node: fx.Node
    base: fx.Node
    bias: list[torch.Tensor] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    steps: int = 0


@dataclass(frozen=True)
class CollectMasks(RewritePass[Scores]):
    """One bias and one boolean mask for each softmax."""

    name: ClassVar = "collect-masks"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> Scores | None:
        if not edit.is_call(node, _aten.softmax.int) or not _is_over_last(node):
            return None
        source = node.args[0]
        assert isinstance(source, fx.Node)  # softmax works on a tensor
        scores = _collected(node, source)
        return None if scores.steps == 0 or _is_canonical(source) else scores

    def rewrite(self, graph_module: fx.GraphModule, match: Scores) -> None:
        site = Site(graph_module, match.node, self.name)
        result = match.base
        for bias in _sum(match.bias):
            result = site.call(_aten.add.Tensor, result, site.constant(f"{match.node.name}_bias", bias))
        if match.drops:
            drop, *others = [make(site) for make in match.drops]
            for other in others:
                drop = site.call(_aten.bitwise_or.Tensor, drop, other)
            result = site.call(_aten.masked_fill.Scalar, result, drop, -math.inf)
        site.replace(site.call(_aten.softmax.int, result, -1))


def is_mask(node: fx.Node) -> bool:
    """Whether a value in floats is 0 where it keeps an element of a softmax, and -64 or less where it leaves it out."""
    return _mask(node) is not None


def _is_over_last(node: fx.Node) -> bool:
    return edit.argument(node, "dim") in (-1, node.meta["val"].ndim - 1)


def _is_canonical(source: fx.Node) -> bool:
    """Whether the softmax reads ``[masked_fill(] [add(] base [, constant)] [, drop, -inf)]`` with a constant that is bias alone."""
    if edit.is_call(source, _aten.masked_fill.Scalar) and edit.argument(source, "value") == -math.inf:
        source = source.args[0]  # type: ignore[assignment]  # works on a tensor
    constant = edit.constant_value(source.args[1]) if edit.is_call(source, _aten.add.Tensor) else None
    if constant is not None and not bool(_left_out(constant).any()):
        source = source.args[0]  # type: ignore[assignment]  # as above
    return _step(source) is None


def _collected(node: fx.Node, source: fx.Node) -> Scores:
    scores = Scores(node, source)
    while len(scores.base.users) == 1:
        step = _step(scores.base)
        if step is None:
            break
        below, bias, drop = step
        if patterns.sizes(below) != patterns.sizes(scores.base):
            break  # the mask gives the scores their shape
        scores.base = below
        scores.bias += [] if bias is None else [bias]
        scores.drops += [] if drop is None else [drop]
        scores.steps += 1
    return scores


def _step(node: fx.Node) -> tuple[fx.Node, torch.Tensor | None, Drop | None] | None:
    """What is below one op, and what the op adds: a bias, or a mask, or both."""
    if edit.is_call(node, _aten.masked_fill.Scalar):
        source, drop, value = node.args[:3]
        return (source, None, _existing(drop)) if value <= LEAVES_OUT else None  # type: ignore[operator,return-value]  # a number
    if node.target in _WHERE:
        return _step_of_where(node)
    operands = patterns.binary(node, _aten.add.Tensor)
    if operands is None:
        return None
    first, second = operands
    constant = edit.constant_value(second)
    if constant is not None and isinstance(first, fx.Node):
        return _step_of_constant(first, constant)
    for below, other in ((first, second), (second, first)):
        mask = _mask(other) if isinstance(below, fx.Node) and isinstance(other, fx.Node) else None
        if mask is not None:
            return below, None, mask  # type: ignore[return-value]  # it is a node
    return None


def _step_of_where(node: fx.Node) -> tuple[fx.Node, None, Drop] | None:
    condition, first, second = node.args[:3]
    if isinstance(first, fx.Node) and _leaves_out(second):
        return first, None, _negated(condition)
    if isinstance(second, fx.Node) and _leaves_out(first):
        return second, None, _existing(condition)
    return None


def _step_of_constant(source: fx.Node, constant: torch.Tensor) -> tuple[fx.Node, torch.Tensor | None, Drop | None] | None:
    """Case 1. A constant that leaves nothing out is bias alone."""
    drop = _left_out(constant)
    bias = torch.where(drop, torch.zeros_like(constant), constant)
    mask: Drop | None = None
    if bool(drop.any()):
        mask = lambda site: site.constant(f"{site.node.name}_drop", drop)  # noqa: E731  # one of several ways to make a mask
    return source, (bias if bool(bias.any()) else None), mask


def _left_out(constant: torch.Tensor) -> torch.Tensor:
    if constant.ndim == 0 or constant.numel() == 0:
        return torch.zeros_like(constant, dtype=torch.bool)
    return constant <= constant.amax(-1, keepdim=True).clamp(max=0) + LEAVES_OUT


def _sum(constants: list[torch.Tensor]) -> list[torch.Tensor]:
    """At most one constant: the sum of all."""
    if not constants:
        return []
    total = constants[0]
    for other in constants[1:]:
        total = total + other
    return [total.contiguous()]


def _value(operand: object) -> float | None:
    """A number, or the one number that a constant holds everywhere."""
    if isinstance(operand, int | float):
        return float(operand)
    while edit.is_call(operand, _aten.slice.Tensor, _aten.expand.default):
        operand = operand.args[0]  # type: ignore[attr-defined]  # a call is a node
    constant = edit.constant_value(operand)
    if constant is None or constant.numel() == 0 or bool((constant != constant.flatten()[0]).any()):
        return None
    return float(constant.flatten()[0])


def _leaves_out(operand: object) -> bool:
    value = _value(operand)
    return value is not None and value <= LEAVES_OUT


def _is_zero(operand: object) -> bool:
    return _value(operand) == 0


def _existing(mask: Any) -> Drop:
    return lambda site: mask


def _negated(mask: Any) -> Drop:
    return lambda site: site.call(_aten.logical_not.default, mask)


def _mask(node: fx.Node) -> Drop | None:
    """Case 3: what a mask in floats leaves out; None if ``node`` is none."""
    if node.target in MOVES_OF_MASKS:
        return _moved_mask(node)
    if node.target in _WHERE:
        condition, first, second = node.args[:3]
        if _is_zero(first) and _leaves_out(second):
            return _negated(condition)
        return _existing(condition) if _leaves_out(first) and _is_zero(second) else None
    if edit.is_call(node, _aten.masked_fill.Scalar) and _leaves_out(node.args[2]):
        source, condition = node.args[:2]
        return _existing(condition) if _is_zero(source) or _fills_its_ones(source, condition) else None
    return _affine_mask(node)


def _moved_mask(node: fx.Node) -> Drop | None:
    source = node.args[0]
    inner = _mask(source) if isinstance(source, fx.Node) else None
    if inner is None:
        return None
    return lambda site: site.call(node.target, inner(site), *node.args[1:], **node.kwargs)  # type: ignore[arg-type]  # an op overload


def _fills_its_ones(source: object, condition: object) -> bool:
    """Whether y of zeros and ones is filled where it is not zero: ``y.masked_fill(y.bool(), n)``."""
    if not edit.is_call(condition, _aten.ne.Scalar) or condition.args != (source, 0):  # type: ignore[attr-defined]  # a call is a node
        return False
    affine = _affine(source)
    return affine is not None and affine[1:] in ((-1.0, 1.0), (1.0, 0.0))


def _affine_mask(node: fx.Node) -> Drop | None:
    affine = _affine(node)
    if affine is None:
        return None
    mask, factor, offset = affine
    where_zero, where_one = offset, factor + offset
    if where_one == 0 and where_zero <= LEAVES_OUT:
        return lambda site: _is(site, mask, False)
    if where_zero == 0 and where_one <= LEAVES_OUT:
        return lambda site: _is(site, mask, True)
    return None


def _is(site: Site, mask: fx.Node, one: bool) -> fx.Node:
    """Where a mask of booleans, or of zeros and ones, is one."""
    if mask.meta["val"].dtype == torch.bool:
        return mask if one else site.call(_aten.logical_not.default, mask)
    return site.call(_aten.ne.Scalar if one else _aten.eq.Scalar, mask, 0)


def _affine(value: object) -> tuple[fx.Node, float, float] | None:
    """x, a and b of ``a x.to(float) + b`` with an integer or boolean x."""
    factor, offset = 1.0, 0.0
    while isinstance(value, fx.Node):
        if edit.is_call(value, _aten.to.dtype) and not value.args[0].meta["val"].is_floating_point():  # type: ignore[union-attr]  # a tensor
            return value.args[0], factor, offset  # type: ignore[return-value]  # as above
        sum_, product = patterns.plus_number(value), patterns.times_number(value)
        if sum_ is not None:
            value, offset = sum_[0], offset + factor * sum_[1]
        elif product is not None:
            value, factor = product[0], factor * product[1]
        else:
            return None
    return None
