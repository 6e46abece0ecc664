"""``raise-softmax``: softmax that was written out becomes ``aten.softmax``, over the last dimension.

softmax(x) = exp(x) / sum(exp(x))

1. exp(x) / sum(exp(x)), where the same exp(x) stands above and below
2. softmax(x - amax(x)) = softmax(x): what a row has in common cancels; sum and maximum may have lost their dimension if views put it
   back
3. softmax(x, dim) = permute(softmax(permute(x), -1)) for another dimension than the last
4. its argument ``dtype`` is left out where it is the type at hand
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

_SOFTMAX = _aten.softmax.int


@dataclass(frozen=True)
class Softmax:
    """``node`` is the softmax of ``source`` over ``dim``."""

    node: fx.Node
    source: fx.Node
    dim: int


@dataclass(frozen=True)
class RaiseSoftmax(RewritePass[Softmax]):
    """One op for softmax, over the last dimension."""

    name: ClassVar = "raise-softmax"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> Softmax | None:
        if edit.is_call(node, _SOFTMAX):
            return _given(node)
        return _written_out(node)

    def rewrite(self, graph_module: fx.GraphModule, match: Softmax) -> None:
        site = Site(graph_module, match.node, self.name)
        rank = match.source.meta["val"].ndim
        order = [*(dim for dim in range(rank) if dim != match.dim), match.dim]
        if match.dim == rank - 1:
            site.replace(site.call(_SOFTMAX, match.source, -1))
            return
        rows = site.call(_SOFTMAX, site.call(_aten.permute.default, match.source, order), -1)
        site.replace(site.call(_aten.permute.default, rows, [order.index(dim) for dim in range(rank)]))


def _given(node: fx.Node) -> Softmax | None:
    """Cases 2 to 4 of a softmax that is one op already."""
    source = node.args[0]
    assert isinstance(source, fx.Node)  # softmax works on a tensor
    dim = edit.argument(node, "dim") % source.meta["val"].ndim
    below = _without_maximum(source, dim)
    canonical = len(node.args) == 2 and not node.kwargs and edit.argument(node, "dim") == -1
    return None if canonical and below is source else Softmax(node, below, dim)


def _written_out(node: fx.Node) -> Softmax | None:
    quotient = patterns.binary(node, _aten.div.Tensor)
    exponential = patterns.node_of(quotient[0], _aten.exp.default) if quotient is not None else None
    if quotient is None or exponential is None:
        return None
    total = patterns.reduced(quotient[1], _aten.sum.dim_IntList, exponential)
    if total is None or total[0] is not exponential or len(total[1]) != 1:
        return None
    source, dim = exponential.args[0], total[1][0]
    assert isinstance(source, fx.Node)  # exp works on a tensor
    return Softmax(node, _without_maximum(source, dim), dim)


def _without_maximum(source: fx.Node, dim: int) -> fx.Node:
    """x of ``x - amax(x, dim)``, else the value itself."""
    difference = patterns.binary(source, _aten.sub.Tensor)
    if difference is None:
        return source
    value, largest = difference
    maximum = patterns.reduced(largest, _aten.amax.default, value) if isinstance(value, fx.Node) else None
    return value if maximum == (value, [dim]) else source  # type: ignore[return-value]  # then it is a node
