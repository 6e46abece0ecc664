"""``raise-l2-normalize``: division of a row by its Euclidean length becomes ``qc::l2_normalize``.

l2_normalize(x, eps) = x / max(sqrt(sum(x²)), eps)

1. x / clamp(linalg_vector_norm(x, 2), eps) as ``torch.nn.functional.normalize`` gives it, its ``expand`` included
2. x / norm without a limit: eps = 0
3. sqrt(sum(x²)) for the norm, and x * rsqrt(sum(x²))
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

_aten, _qc = torch.ops.aten, torch.ops.qc


@dataclass(frozen=True)
class Normalized:
    """``node`` is ``source`` divided by its length over ``dims``."""

    node: fx.Node
    source: fx.Node
    dims: list[int]
    epsilon: float


@dataclass(frozen=True)
class RaiseL2Normalize(RewritePass[Normalized]):
    """One op for division by the Euclidean norm of the last dimension."""

    name: ClassVar = "raise-l2-normalize"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> Normalized | None:
        quotient, product = patterns.binary(node, _aten.div.Tensor), patterns.binary(node, _aten.mul.Tensor)
        if quotient is not None:
            return _by_length(node, *quotient)
        for source, factor in (product, product[::-1]) if product is not None else ():
            found = _by_sum(node, source, patterns.power(factor, -0.5), 0.0)
            if found is not None:
                return found
        return None

    def check(self, match: Normalized) -> str | None:
        if patterns.is_last(match.source, match.dims):
            return None
        return f"it normalizes over dimensions {match.dims}: permute the last one to be normalized"

    def rewrite(self, graph_module: fx.GraphModule, match: Normalized) -> None:
        site = Site(graph_module, match.node, self.name)
        site.replace(site.call(_qc.l2_normalize.default, match.source, match.epsilon))


def _by_length(node: fx.Node, source: object, length: object) -> Normalized | None:
    epsilon = 0.0
    while edit.is_call(length, _aten.expand.default, _aten.expand_as.default):
        length = length.args[0]  # type: ignore[attr-defined]  # a call is a node
    clamp = patterns.node_of(length, _aten.clamp.default)
    if clamp is not None:
        low, high = edit.argument(clamp, "min"), edit.argument(clamp, "max")
        if low is None or high is not None or low < 0:
            return None
        epsilon, length = float(low), clamp.args[0]
    norm = patterns.node_of(length, _aten.linalg_vector_norm.default)
    if norm is None:
        return _by_sum(node, source, patterns.power(length, 0.5), epsilon)
    dims = edit.argument(norm, "dim")
    if norm.args[0] is not source or edit.argument(norm, "ord") != 2 or not edit.argument(norm, "keepdim") or dims is None:
        return None
    assert isinstance(source, fx.Node)  # it is what the norm works on
    return Normalized(node, source, sorted(dim % source.meta["val"].ndim for dim in dims), epsilon)


def _by_sum(node: fx.Node, source: object, squares: object, epsilon: float) -> Normalized | None:
    if not isinstance(source, fx.Node):
        return None
    total = patterns.reduced(squares, _aten.sum.dim_IntList, source)
    if total is None or patterns.power(total[0], 2) is not source:
        return None
    return Normalized(node, source, total[1], epsilon)
