"""``raise-rms-norm``: root mean square normalization that was written out becomes ``aten.rms_norm``.

Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, section 3, for rows of N values, with eps > 0:

    rms_norm(x, eps, w) = x / sqrt(mean(x²) + eps) * w

    1. x * rsqrt(mean(x²) + eps),    x / sqrt(mean(x²) + eps),    (x * w) / sqrt(mean(x²) + eps)
    2. rms_norm(x) * w for a constant w of N values: takes the weight in
    3. a given rms_norm without eps gets the number that torch uses, the float32 epsilon 2^-23
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.passes.canonicalize import patterns
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten


@dataclass(frozen=True)
class Norm:
    """``node`` is the RMSNorm of ``source``."""

    node: fx.Node
    source: fx.Node
    epsilon: float
    weight: Any  # a node, a tensor for a new constant, or None


@dataclass(frozen=True)
class RaiseRmsNorm(RewritePass[Norm]):
    """One op for root mean square normalization over the last dimension."""

    name: ClassVar = "raise-rms-norm"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> Norm | None:
        if edit.is_call(node, _aten.rms_norm.default):
            return _without_epsilon(node)
        return _written_out(node) or _with_weight(node)

    def check(self, match: Norm) -> str | None:
        if edit.is_call(match.node, _aten.rms_norm.default) and len(edit.argument(match.node, "normalized_shape")) != 1:
            return "it normalizes over several dimensions: reshape them into one"
        return None

    def rewrite(self, graph_module: fx.GraphModule, match: Norm) -> None:
        site = Site(graph_module, match.node, self.name)
        weight = match.weight
        if isinstance(weight, torch.Tensor):
            weight = site.constant(f"{match.node.name}_weight", weight.contiguous())
        length = match.source.meta["val"].shape[-1]
        site.replace(site.call(_aten.rms_norm.default, match.source, [length], weight, match.epsilon))


def _without_epsilon(node: fx.Node) -> Norm | None:
    if edit.argument(node, "eps") is not None:
        return None
    return Norm(node, node.args[0], torch.finfo(torch.float32).eps, edit.argument(node, "weight"))  # type: ignore[arg-type]  # a tensor


def _written_out(node: fx.Node) -> Norm | None:
    """Case 1."""
    readings = (_normalized(node, numerator, radicand) for numerator, radicand in patterns.over_square_root(node))
    return next((norm for norm in readings if norm is not None), None)


def _normalized(node: fx.Node, source: object, shifted: fx.Node) -> Norm | None:
    """The norm where ``shifted`` is ``mean(x²) + eps`` and ``source`` is x, times a weight or not."""
    source, weight = patterns.without_weight(source)
    sum_ = patterns.plus_number(shifted)
    if sum_ is None or not isinstance(source, fx.Node) or sum_[1] <= 0 or isinstance(source.meta["val"].shape[-1], torch.SymInt):
        return None
    mean = patterns.reduced(sum_[0], _aten.mean.dim, source)
    if mean is None or patterns.power(mean[0], 2) is not source or not patterns.is_last(source, mean[1]):
        return None
    return Norm(node, source, sum_[1], weight)


def _with_weight(node: fx.Node) -> Norm | None:
    """Case 2."""
    product = patterns.binary(node, _aten.mul.Tensor)
    norm = patterns.node_of(product[0], _aten.rms_norm.default) if product is not None else None
    if product is None or norm is None or len(norm.users) > 1 or edit.argument(norm, "weight") is not None:
        return None
    source, epsilon = norm.args[0], edit.argument(norm, "eps")
    weight = patterns.vector(product[1], norm.meta["val"].shape[-1])
    same = patterns.sizes(node) == patterns.sizes(norm)
    return Norm(node, source, epsilon, weight) if weight is not None and same and epsilon is not None else None  # type: ignore[arg-type]
