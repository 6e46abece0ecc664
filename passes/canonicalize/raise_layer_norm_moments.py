"""``raise-layer-norm-moments``: layer normalization by the mean of squares becomes ``aten.layer_norm`` over the last dimension.

For rows of N values along one dimension (Flax writes LayerNorm so):

    layer_norm(x, eps, w, b) = (x - m) * (rsqrt(max(q - m², 0) + eps) * w) + b        m = mean(x), q = mean(x²)

    1. the weight w, the bias b and the maximum with 0 may be missing; mean is a sum times 1/N too, and rsqrt the reciprocal of a root
    2. reductions may drop their dimension, which a view puts back before the values broadcast
    3. over another dimension than the last: permute(layer_norm(permute(x)))

``raise-layer-norm`` has the form with mean((x - m)²). The two variances are one; that of ``layer_norm`` loses less where m² is large.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit, elementwise
from qcompiler.ir.types import Stage
from qcompiler.passes.canonicalize import patterns
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten


@dataclass(frozen=True)
class Moments:
    """``node`` is the LayerNorm of ``source`` over ``dim``; weight and bias have one number for each of its indices."""

    node: fx.Node
    source: fx.Node
    dim: int
    epsilon: float
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class RaiseLayerNormMoments(RewritePass[Moments]):
    """One op for layer normalization whose variance is E[x²] - E[x]²."""

    name: ClassVar = "raise-layer-norm-moments"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-4)

    def match(self, node: fx.Node) -> Moments | None:
        if any(_with_bias(user) is not None for user in node.users):
            return None  # it goes along
        return _with_bias(node) or _without_bias(node)

    def rewrite(self, graph_module: fx.GraphModule, match: Moments) -> None:
        site, value = Site(graph_module, match.node, self.name), match.source
        rank, length = value.meta["val"].ndim, value.meta["val"].shape[match.dim]
        order = [*(dim for dim in range(rank) if dim != match.dim), match.dim]
        parameters = [
            None if each is None else site.constant(f"{match.node.name}_{name}", each.contiguous())
            for each, name in ((match.weight, "weight"), (match.bias, "bias"))
        ]
        if match.dim != rank - 1:
            value = site.call(_aten.permute.default, value, order)
        value = site.call(_aten.layer_norm.default, value, [length], *parameters, match.epsilon)
        if match.dim != rank - 1:
            value = site.call(_aten.permute.default, value, [order.index(dim) for dim in range(rank)])
        site.replace(value)


def _with_bias(node: fx.Node) -> Moments | None:
    operands = patterns.binary(node, _aten.add.Tensor)
    product = operands[0] if operands is not None else None
    found = _without_bias(product) if isinstance(product, fx.Node) and len(product.users) == 1 else None
    bias = _along(operands[1], found) if operands is not None and found is not None else None
    if found is None or bias is None:
        return None
    return Moments(node, found.source, found.dim, found.epsilon, found.weight, bias)


def _without_bias(node: fx.Node) -> Moments | None:
    """(x - m) * f."""
    for centred, factor in _products(node):
        difference = patterns.binary(centred, _aten.sub.Tensor)
        source = difference[0] if difference is not None else None
        if difference is None or not isinstance(source, fx.Node):
            continue
        mean = _mean(difference[1])
        if mean is None or mean[0] is not source or not _broadcasts(difference[1], source, mean[1]):
            continue
        found = _scaled(node, source, mean[1], factor)
        if found is not None:
            return found
    return None


def _scaled(node: fx.Node, source: fx.Node, dim: int, factor: object) -> Moments | None:
    """The norm where ``factor`` is 1 / sqrt(variance + eps), times a weight or not."""
    plain = Moments(node, source, dim, 0.0)
    readings = [(factor, None), *((first, _along(second, plain)) for first, second in _products(factor))]
    for root, weight in readings:
        epsilon = _epsilon(root, source, dim) if root is factor or weight is not None else None
        if epsilon is not None and _broadcasts(root, source, dim):
            return Moments(node, source, dim, epsilon, weight)
    return None


def _products(value: object) -> Iterator[tuple[object, object]]:
    product = patterns.binary(value, _aten.mul.Tensor)
    if product is not None:
        yield from (product, product[::-1])


def _along(constant: object, norm: Moments | None) -> torch.Tensor | None:
    """The numbers of a constant that has one for each index of the norm's dimension, and is the same along all others."""
    value = edit.constant_value(constant)
    if value is None or norm is None:
        return None
    shape = norm.source.meta["val"].shape
    behind = len(shape) - norm.dim
    fits = value.ndim >= behind and value.ndim <= len(shape) and value.shape[-behind] == shape[norm.dim] == value.numel()
    return value.reshape(-1) if fits else None


def _epsilon(root: object, source: fx.Node, dim: int) -> float | None:
    radicand = _radicand(root)
    sum_ = patterns.plus_number(patterns.without_views(radicand))
    if sum_ is None:
        return None
    moments = patterns.binary(patterns.without_views(_without_maximum(sum_[0])), _aten.sub.Tensor)
    if moments is None:
        return None
    squares, mean = _mean(moments[0]), _mean(patterns.power(patterns.without_views(moments[1]), 2))
    if squares is None or mean is None or patterns.power(squares[0], 2) is not source or mean[0] is not source:
        return None
    return sum_[1] if squares[1] == mean[1] == dim else None


def _radicand(root: object) -> object:
    """r of 1 / sqrt(r)."""
    root = patterns.without_views(root)
    direct = patterns.power(root, -0.5)
    return direct if direct is not None else patterns.power(patterns.without_views(patterns.power(root, -1)), 0.5)


def _without_maximum(value: object) -> object:
    """x of ``max(x, 0)``, else the value."""
    value = patterns.without_views(value)
    if not isinstance(value, fx.Node) or value.target not in elementwise.CLAMPS:
        return value
    return value.args[0] if elementwise.clamp_bounds(value) == (0.0, math.inf) else value


def _mean(value: object) -> tuple[fx.Node, int] | None:
    """x and the dimension of a mean over one of static size."""
    value = patterns.without_views(value)
    product = patterns.times_number(value)
    node = patterns.node_of(patterns.without_views(product[0]) if product is not None else value, _aten.sum.dim_IntList, _aten.mean.dim)
    dims = edit.argument(node, "dim") if node is not None else None
    if node is None or dims is None or len(dims) != 1 or (product is None) != edit.is_call(node, _aten.mean.dim):
        return None
    source = node.args[0]
    assert isinstance(source, fx.Node)  # the op's tensor
    dim = dims[0] % source.meta["val"].ndim
    length = source.meta["val"].shape[dim]
    if not isinstance(length, int) or (product is not None and not patterns.close(product[1] * length, 1.0)):
        return None
    return source, dim


def _broadcasts(value: object, source: fx.Node, dim: int) -> bool:
    """Whether a value has the shape of ``source`` with one element along ``dim``."""
    return isinstance(value, fx.Node) and patterns.sizes(value) == patterns.sizes_without(source, [dim])
