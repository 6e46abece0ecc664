"""``merge-slices``: sums of slices of constants become a slice of their sum.

    (x + slice(c, dim, 0, S)) + slice(d, dim, 0, S) = x + slice(c + d, dim, 0, S)

where S is a size known at run time (for other sizes ``fold-constants`` has made the slices already). Token types and positions of a
BERT are added so.
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
    """``node`` = (``source`` + ``inner``) + ``outer``, both slices of constants."""

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
        outer = _with_slice(node)
        inner = _with_slice(outer[0]) if outer is not None and len(outer[0].users) == 1 else None
        return None if outer is None or inner is None else Sum(node, inner[0], inner[1], outer[1])

    def check(self, match: Sum) -> str | None:
        if _steps(match.inner) != _steps(match.outer) or _rank(match.inner) != _rank(match.outer):
            return "its two constants are sliced differently"
        return None

    def rewrite(self, graph_module: fx.GraphModule, match: Sum) -> None:
        site = Site(graph_module, match.node, self.name)
        result = site.constant(f"{match.node.name}_constant", _constant(match.inner) + _constant(match.outer))
        for step in reversed(_path(match.inner)):
            result = site.call(_aten.slice.Tensor, result, *step.args[1:])
        site.replace(site.call(_aten.add.Tensor, match.source, result))


def _with_slice(value: object) -> tuple[fx.Node, fx.Node] | None:
    """x and the slice of ``x + slice(constant)``, in any order, where x gives the sum its shape."""
    operands = patterns.binary(value, _aten.add.Tensor)
    if operands is None:
        return None
    for source, other in (operands, operands[::-1]):
        if isinstance(source, fx.Node) and isinstance(other, fx.Node) and _path(other) and _is_constant(other):
            return (source, other) if patterns.sizes(source) == patterns.sizes(value) else None  # type: ignore[arg-type]  # a call
    return None


def _path(node: fx.Node) -> list[fx.Node]:
    """The slices between ``node`` and what is sliced."""
    path = []
    while edit.is_call(node, _aten.slice.Tensor):
        path.append(node)
        node = node.args[0]  # type: ignore[assignment]  # works on a tensor
    return path


def _steps(node: fx.Node) -> list[tuple[object, ...]]:
    return [step.args[1:] for step in _path(node)]


def _is_constant(node: fx.Node) -> bool:
    return edit.constant_value(_path(node)[-1].args[0]) is not None


def _constant(node: fx.Node) -> torch.Tensor:
    value = edit.constant_value(_path(node)[-1].args[0])
    assert value is not None  # _with_slice saw it
    return value


def _rank(node: fx.Node) -> int:
    return int(node.meta["val"].ndim)
