"""``decompose-group-norm``: normalization of groups of channels becomes LayerNorm of rows and a batch norm.

Wu and He, "Group Normalization", 2018, equations 1 to 4, and Ulyanov, Vedaldi and Lempitsky, "Instance Normalization", 2016, for a value
[N, C, *S] and G groups of C / G channels:

    group_norm(x, G, w, b, eps) = w layer_norm(rows, eps) + b        rows [N, G, C / G * S], w and b for each channel
    instance_norm(x, w, b, eps) = group_norm(x, C, w, b, eps)        with the statistics of the sample
    instance_norm(x, w, b, eps) = batch_norm(x, w, b, eps)           with those of training

The affine map is a batch norm of mean 0 and variance 1, so that ``fold-batch-norm`` puts it into a layer. Where rows are longer than those
that integers normalize, the norm itself stays, without the map: an op that may be left in float.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from qcompiler.arithmetic.normalize import MAXIMUM_ROW
from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

_GROUP, _INSTANCE = _aten.group_norm.default, _aten.instance_norm.default


@dataclass(frozen=True)
class DecomposeGroupNorm(RewritePass[fx.Node]):
    """GroupNorm and InstanceNorm as LayerNorm over the elements of each group, then each channel's own scale and bias."""

    name: ClassVar = "decompose-group-norm"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> fx.Node | None:
        return node if edit.is_call(node, _GROUP, _INSTANCE) else None

    def check(self, match: fx.Node) -> str | None:
        if _has_statistics(match):
            return None
        if any(isinstance(size, torch.SymInt) for size in match.meta["val"].shape[1:]):
            return "it normalizes over sizes that are known at run time only: leave them out of dynamic_shapes"
        if _length(match) > MAXIMUM_ROW and not _has_affine(match) and edit.is_call(match, _GROUP):
            return f"its groups have {_length(match)} values each, and integer rows at most {MAXIMUM_ROW}: more groups, or allow_float"
        return None

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> str | None:
        site = Site(graph_module, match, self.name)
        source, weight, bias = (edit.argument(match, name) for name in ("input", "weight", "bias"))
        epsilon = edit.argument(match, "eps")
        if _has_statistics(match):
            mean, variance = (edit.argument(match, name) for name in ("running_mean", "running_var"))
            site.replace(_batch_norm(site, source, weight, bias, mean, variance, epsilon))
            return None
        rows = _rows(site, source, epsilon)
        if _has_affine(match):
            channels = match.meta["val"].shape[1]
            mean = site.constant(f"{match.name}_mean", torch.zeros(channels))
            variance = site.constant(f"{match.name}_variance", torch.ones(channels))
            rows = _batch_norm(site, rows, weight, bias, mean, variance, 0.0)
        site.replace(rows)
        return None


def _has_statistics(node: fx.Node) -> bool:
    return edit.is_call(node, _INSTANCE) and not edit.argument(node, "use_input_stats")


def _has_affine(node: fx.Node) -> bool:
    return any(edit.argument(node, name) is not None for name in ("weight", "bias"))


def _length(node: fx.Node) -> int:
    """Elements of a group."""
    sizes = node.meta["val"].shape[1:]
    groups = edit.argument(node, "num_groups") if edit.is_call(node, _GROUP) else sizes[0]
    return int(math.prod(sizes) // groups)


def _rows(site: Site, source: fx.Node, epsilon: float) -> fx.Node:
    """The groups of each sample, each normalized as one row, in the shape of the value."""
    shape = [size if isinstance(size, int) else -1 for size in source.meta["val"].shape]
    length = _length(site.node)
    groups = math.prod(shape[1:]) // length
    if length > MAXIMUM_ROW:
        return site.call(_GROUP, source, groups, None, None, epsilon, False)
    rows = site.call(_aten.reshape.default, source, [shape[0], groups, length])
    return site.call(_aten.reshape.default, site.call(_aten.layer_norm.default, rows, [length], None, None, epsilon), shape)


def _batch_norm(site: Site, source: fx.Node, weight: Any, bias: Any, mean: Any, variance: Any, epsilon: float) -> fx.Node:
    return site.call(_aten.batch_norm.default, source, weight, bias, mean, variance, False, 0.0, epsilon, False)
