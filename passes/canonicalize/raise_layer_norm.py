"""``raise-layer-norm``: layer normalization that was written out becomes ``aten.layer_norm`` over the last dimension.

Ba, Kiros and Hinton, "Layer Normalization", 2016, equations 3 and 4, for rows of N values:

    layer_norm(x, eps, w, b) = (x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) * w + b

    1. d * rsqrt(v + eps),  d / sqrt(v + eps),  (d * w) / sqrt(v + eps), with d = x - mean(x) and v = mean(d²), or v = var(x) without
       Bessel's correction
    2. layer_norm(x) * w, layer_norm(x) + b for constants of N values: takes them in
    3. over several last dimensions of static size: these are reshaped into one before, and back after
    4. 1 over another dimension than the last (channels of an image, ConvNeXt): it is moved to the end before, and back after; 2 takes
       constants along it, behind that movement, in as well
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.passes.canonicalize import patterns
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

_NORM = _aten.layer_norm.default


@dataclass(frozen=True)
class Norm:
    """``node`` is the LayerNorm of ``source``; weight and bias: a node, a tensor for a new constant, or None.

    ``before`` and ``after``: orders of dimensions into which the source and the norm of it are permuted; None: as they are.
    """

    node: fx.Node
    source: fx.Node
    epsilon: float
    weight: Any = None
    bias: Any = None
    before: tuple[int, ...] | None = None
    after: tuple[int, ...] | None = None


@dataclass(frozen=True)
class RaiseLayerNorm(RewritePass[Norm]):
    """One op for layer normalization over the last dimension."""

    name: ClassVar = "raise-layer-norm"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> Norm | None:
        if edit.is_call(node, _NORM):
            return _over_several(node)
        return _written_out(node) or _with_affine(node)

    def check(self, match: Norm) -> str | None:
        if not edit.is_call(match.node, _NORM):
            return None
        if any(each is not None and edit.constant_value(each) is None for each in (match.weight, match.bias)):
            return "its weight or bias is computed"
        return "two of its sizes are known at run time only" if patterns.symbols(match.node) > 1 else None

    def rewrite(self, graph_module: fx.GraphModule, match: Norm) -> None:
        site = Site(graph_module, match.node, self.name)
        if edit.is_call(match.node, _NORM):
            site.replace(_in_one_dimension(site, match))
            return
        weight, bias = (_constant(site, each, name) for each, name in ((match.weight, "weight"), (match.bias, "bias")))
        source = _permuted(site, match.source, match.before)
        norm = site.call(_NORM, source, [source.meta["val"].shape[-1]], weight, bias, match.epsilon)
        site.replace(_permuted(site, norm, match.after))


def _permuted(site: Site, value: fx.Node, order: tuple[int, ...] | None) -> fx.Node:
    return value if order is None else site.call(_aten.permute.default, value, list(order))


def _constant(site: Site, value: Any, name: str) -> Any:
    return site.constant(f"{site.node.name}_{name}", value.contiguous()) if isinstance(value, torch.Tensor) else value


def _written_out(node: fx.Node) -> Norm | None:
    """Cases 1 and 4."""
    readings = (_normalized(node, numerator, radicand) for numerator, radicand in patterns.over_square_root(node))
    return next((norm for norm in readings if norm is not None), None)


def _normalized(node: fx.Node, centred: object, shifted: fx.Node) -> Norm | None:
    """The norm where ``centred`` is x - mean(x), times a weight or not, and ``shifted`` its mean square plus eps."""
    centred, weight = patterns.without_weight(centred)
    sum_, difference = patterns.plus_number(shifted), patterns.binary(centred, _aten.sub.Tensor)
    if sum_ is None or difference is None or not isinstance(difference[0], fx.Node) or not isinstance(centred, fx.Node):
        return None
    source = difference[0]
    mean = patterns.reduced(difference[1], _aten.mean.dim, source)
    if mean is None or mean[0] is not source or len(mean[1]) != 1 or isinstance(source.meta["val"].shape[mean[1][0]], torch.SymInt):
        return None
    if not _is_variance(sum_[0], source, centred, mean[1]):
        return None
    if patterns.is_last(source, mean[1]):
        return Norm(node, source, sum_[1], weight)
    return _along(mean[1][0], Norm(node, source, sum_[1])) if weight is None else None


def _along(dim: int, norm: Norm) -> Norm | None:
    """The norm over another dimension than the last; None for dimension 0, which is the batch."""
    others = [other for other in range(norm.source.meta["val"].ndim) if other != dim]
    before = (*others, dim)
    after = tuple(before.index(position) for position in range(len(before)))
    return replace(norm, before=before, after=after) if dim else None


def _is_variance(value: object, source: fx.Node, centred: fx.Node, normalized: list[int]) -> bool:
    variance = patterns.node_of(value, _aten.var.correction, _aten.var.dim)
    if variance is not None:
        corrects = "correction" if edit.is_call(variance, _aten.var.correction) else "unbiased"
        rank, dims = source.meta["val"].ndim, edit.argument(variance, "dim")
        same = dims is not None and [dim % rank for dim in dims] == normalized
        plain = edit.argument(variance, corrects) in (0, False) and edit.argument(variance, "keepdim")
        return bool(same and plain and variance.args[0] in (source, centred))
    mean = patterns.reduced(value, _aten.mean.dim, source)
    if mean is None or mean[1] != normalized:
        return False
    # A model may compute x - mean(x) twice.
    squared = patterns.power(mean[0], 2)
    return squared is centred or (squared is not None and _same_difference(squared, centred))


def _same_difference(first: fx.Node, second: fx.Node) -> bool:
    differences = [patterns.binary(each, _aten.sub.Tensor) for each in (first, second)]
    if differences[0] is None or differences[1] is None or differences[0][0] is not differences[1][0]:
        return False
    means = [patterns.node_of(each[1], _aten.mean.dim) for each in differences if each is not None]
    return all(mean is not None and (mean.args, mean.kwargs) == (means[0].args, means[0].kwargs) for mean in means if means[0] is not None)


def _with_affine(node: fx.Node) -> Norm | None:
    """Case 2."""
    for target in (_aten.mul.Tensor, _aten.add.Tensor):
        operands = patterns.binary(node, target)
        value = operands[0] if operands is not None else None
        order, moved = _order_behind(value)
        norm = patterns.node_of(moved, _NORM)
        if operands is None or norm is None or len(norm.users) > 1 or len(edit.argument(norm, "normalized_shape")) != 1:
            continue
        constant = _along_last(operands[1], norm, order)
        if constant is not None and isinstance(value, fx.Node) and patterns.sizes(node) == patterns.sizes(value):
            taken = _taken_in(node, norm, constant, target is _aten.mul.Tensor)
            return None if taken is None else replace(taken, after=order)
    return None


def _order_behind(value: object) -> tuple[tuple[int, ...] | None, object]:
    """The order of dimensions of a permutation that only one op reads, and what it permutes; None and the value itself otherwise."""
    moved = patterns.node_of(value, _aten.permute.default)
    if moved is None or len(moved.users) > 1:
        return None, value
    rank = moved.meta["val"].ndim
    return tuple(dim % rank for dim in edit.argument(moved, "dims")), moved.args[0]


def _along_last(value: object, norm: fx.Node, order: tuple[int, ...] | None) -> torch.Tensor | None:
    """A constant with one number for each element of a row, as it stands beside the norm in that order."""
    constant, length = edit.constant_value(value), norm.meta["val"].shape[-1]
    if order is None or constant is None:
        return patterns.vector(value, length)
    behind = len(order) - 1 - order.index(len(order) - 1)  # dimensions after the one that was the last
    fits = constant.ndim > behind and constant.numel() == length and constant.shape[constant.ndim - 1 - behind] == length
    return constant.reshape(-1) if fits else None


def _taken_in(node: fx.Node, norm: fx.Node, constant: torch.Tensor, scales: bool) -> Norm | None:
    weight, bias = edit.argument(norm, "weight"), edit.argument(norm, "bias")
    values = [edit.constant_value(each) for each in (weight, bias)]
    if any(each is not None and value is None for each, value in zip((weight, bias), values, strict=True)):
        return None
    source, epsilon = norm.args[0], edit.argument(norm, "eps")
    assert isinstance(source, fx.Node)  # layer_norm works on a tensor
    if not scales:
        return Norm(node, source, epsilon, weight, constant if values[1] is None else values[1] + constant)
    shifted = None if values[1] is None else values[1] * constant
    return Norm(node, source, epsilon, constant if values[0] is None else values[0] * constant, shifted)


def _over_several(node: fx.Node) -> Norm | None:
    """Case 3."""
    if len(edit.argument(node, "normalized_shape")) == 1:
        return None
    weight, bias = edit.argument(node, "weight"), edit.argument(node, "bias")
    return Norm(node, node.args[0], edit.argument(node, "eps"), weight, bias)  # type: ignore[arg-type]  # works on a tensor


def _in_one_dimension(site: Site, norm: Norm) -> fx.Node:
    shape = [size if isinstance(size, int) else -1 for size in norm.node.meta["val"].shape]
    count = len(edit.argument(norm.node, "normalized_shape"))
    length = math.prod(shape[-count:])
    flat = site.call(_aten.reshape.default, norm.source, [*shape[:-count], length])
    constants = []
    for each, name in ((norm.weight, "weight"), (norm.bias, "bias")):
        value = edit.constant_value(each)
        constants.append(None if value is None else site.constant(f"{site.node.name}_{name}", value.reshape(-1)))
    return site.call(_aten.reshape.default, site.call(_NORM, flat, [length], *constants, norm.epsilon), shape)
