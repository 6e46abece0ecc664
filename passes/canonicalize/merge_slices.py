"""``merge-slices``: sums of slices of constants become a slice of their sum.

    (x + slice(c, dim, 0, S)) + slice(d, dim, 0, S) = x + slice(c + d, dim, 0, S)
    (x + v) + slice(d, dim, 0, S)                   = x + slice(v + d, dim, 0, S)        in either order

where v is a constant that is the same along ``dim``, and S a size known at run time (for other sizes ``fold-constants`` has made the
slices already). Token types and positions of a BERT are added so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.passes.canonicalize import patterns
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten


@dataclass(frozen=True)
class Sum:
    """``node`` = (``source`` + ``inner``) + ``outer``, one or both of them slices of constants."""

    node: fx.Node
    source: fx.Node
    inner: fx.Node
    outer: fx.Node


@dataclass(frozen=True)
class MergeSlices(RewritePass[Sum]):
    """Add two slices of constants before they are sliced; slices stand last in a sum."""

    name: ClassVar = "merge-slices"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> Sum | None:
        outer = _with_constant(node)
        inner = _with_constant(outer[0]) if outer is not None and len(outer[0].users) == 1 else None
        if outer is None or inner is None or not (_path(inner[1]) or _path(outer[1])):
            return None
        return Sum(node, inner[0], inner[1], outer[1])

    def check(self, match: Sum) -> str | None:
        first, second = match.inner, match.outer
        if _path(first) and _path(second):
            same = _steps(first) == _steps(second) and _rank(first) == _rank(second)
        else:
            sliced, plain = (first, second) if _path(first) else (second, first)
            same = _is_alike_along(plain, sliced)
        return None if same else "its two constants are sliced differently"

    def rewrite(self, graph_module: fx.GraphModule, match: Sum) -> None:
        site = Site(graph_module, match.node, self.name)
        result = site.constant(f"{match.node.name}_constant", _constant(match.inner) + _constant(match.outer))
        for step in reversed(_path(match.inner) or _path(match.outer)):
            result = site.call(_aten.slice.Tensor, result, *step.args[1:])
        site.replace(site.call(_aten.add.Tensor, match.source, result))


def _with_constant(value: object) -> tuple[fx.Node, fx.Node] | None:
    """x and the constant, or the slice of one, that is added to it, in any order, where x gives the sum its shape."""
    operands = patterns.binary(value, _aten.add.Tensor)
    if operands is None:
        return None
    for source, other in (operands, operands[::-1]):
        if isinstance(source, fx.Node) and isinstance(other, fx.Node) and _is_constant(other):
            return (source, other) if patterns.sizes(source) == patterns.sizes(value) else None  # type: ignore[arg-type]  # a call
    return None


def _is_alike_along(plain: fx.Node, sliced: fx.Node) -> bool:
    """Whether a constant is the same along the dimensions that the other one is sliced along, and needs no more dimensions."""
    shape = list(plain.meta["val"].shape)
    shape = [1] * (_rank(sliced) - len(shape)) + shape
    return len(shape) == _rank(sliced) and all(shape[edit.argument(step, "dim") % len(shape)] == 1 for step in _path(sliced))


def _path(node: fx.Node) -> list[fx.Node]:
    """The slices between ``node`` and what is sliced."""
    path = []
    while edit.is_call(node, _aten.slice.Tensor):
        path.append(node)
        node = node.args[0]  # type: ignore[assignment]  # works on a tensor
    return path


def _steps(node: fx.Node) -> list[tuple[object, ...]]:
    return [step.args[1:] for step in _path(node)]


def _sliced(node: fx.Node) -> fx.Node:
    """What the slices take parts of; without slices the node itself."""
    path = _path(node)
    return path[-1].args[0] if path else node  # type: ignore[return-value]  # a slice works on a tensor


def _is_constant(node: fx.Node) -> bool:
    return edit.constant_value(_sliced(node)) is not None


def _constant(node: fx.Node) -> torch.Tensor:
    value = edit.constant_value(_sliced(node))
    assert value is not None  # _with_constant saw it
    return value


def _rank(node: fx.Node) -> int:
    return int(node.meta["val"].ndim)
