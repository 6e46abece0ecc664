"""``decompose-attention``: scaled dot-product attention as matrix products around a softmax.

With Q [..., L, E], K [..., S, E], V [..., S, F] (Vaswani et al., "Attention is all you need", 2017, section 3.2.1):

    scaled_dot_product_attention(Q, K, V, mask, scale) = softmax(scale * Q K^T + mask) V,        scale = 1 / sqrt(E) where none is given

    1. a float mask is added to the scores; a boolean one says what to keep: masked_fill(scores, not mask, -inf)
    2. is_causal: element i of L keeps the first i + 1 of S
    3. enable_gqa: K and V with fewer heads than Q are repeated for each group of heads

Batched products in other forms become ``matmul`` too:

    4. bmm(a, b) = matmul(a, b),    baddbmm(c, a, b, beta, alpha) = beta c + alpha matmul(a, b)
    5. matmul(s a, b) = s matmul(a, b) for a number s, also where only movement lies between

Exporters split the scale of attention, sqrt(scale) for Q and for K, in float32. Case 5 makes one scale of them, which is 1 / sqrt(E) again
where it is within their rounding of it. Otherwise queries and keys would be rounded twice when they are quantized.
"""

from __future__ import annotations

import math
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

_ATTENTION = _aten.scaled_dot_product_attention.default
# Give elements of their argument, in other places.
_MOVES = frozenset(
    {
        _aten.reshape.default,
        _aten.permute.default,
        _aten.unflatten.int,
        _aten.flatten.using_ints,
        _aten.unsqueeze.default,
        _aten.squeeze.dims,
        _aten.slice.Tensor,
        _aten.expand.default,
    }
)
_SPLIT_ROUNDING = 2.0**-21  # relative, of the product of two square roots in float32


@dataclass(frozen=True)
class DecomposeAttention(RewritePass[fx.Node]):
    """Write scaled dot-product attention and batched products as ``matmul`` and ``softmax``."""

    name: ClassVar = "decompose-attention"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> fx.Node | None:
        if edit.is_call(node, _ATTENTION, _aten.bmm.default, _aten.baddbmm.default):
            return node
        return node if edit.is_call(node, _aten.matmul.default) and any(_scaled(operand) for operand in node.args) else None

    def check(self, match: fx.Node) -> str | None:
        if not edit.is_call(match, _ATTENTION):
            return None
        if edit.argument(match, "dropout_p"):
            return f"it drops elements with probability {edit.argument(match, 'dropout_p')}; pass dropout_p=0 in evaluation mode"
        if edit.argument(match, "is_causal") and _causal_sizes(match) is None:
            return "it is causal, and nothing bounds its length"
        return None

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> None:
        site = Site(graph_module, match, self.name)
        if edit.is_call(match, _ATTENTION):
            site.replace(_attention(site, match))
        elif edit.is_call(match, _aten.matmul.default):
            site.replace(_scale_after(site, match))
        else:
            site.replace(_product(site, match))


def _attention(site: Site, node: fx.Node) -> fx.Node:
    query, key, value = (edit.argument(node, name) for name in ("query", "key", "value"))
    if edit.argument(node, "enable_gqa"):
        key, value = (_repeat_heads(site, query, each) for each in (key, value))
    scale = edit.argument(node, "scale")
    scale = 1 / math.sqrt(query.meta["val"].shape[-1]) if scale is None else scale
    rank = key.meta["val"].ndim
    transposed = site.call(_aten.permute.default, key, [*range(rank - 2), rank - 1, rank - 2])
    scores = site.call(_aten.mul.Tensor, site.call(_aten.matmul.default, query, transposed), scale)
    mask = edit.argument(node, "attn_mask")
    if mask is not None and mask.meta["val"].dtype == torch.bool:
        scores = site.call(_aten.masked_fill.Scalar, scores, site.call(_aten.logical_not.default, mask), -math.inf)
    elif mask is not None:
        scores = site.call(_aten.add.Tensor, scores, mask)
    if edit.argument(node, "is_causal"):
        scores = site.call(_aten.masked_fill.Scalar, scores, _later(site, node), -math.inf)
    return site.call(_aten.matmul.default, site.call(_aten.softmax.int, scores, -1), value)


def _repeat_heads(site: Site, query: fx.Node, heads: fx.Node) -> fx.Node:
    """[B, G, S, E] -> [B, G, r, S, E] -> [B, G r, S, E]: each of the G heads r times, one behind the other."""
    repeats = query.meta["val"].shape[-3] // heads.meta["val"].shape[-3]
    if repeats == 1:
        return heads
    rank = heads.meta["val"].ndim
    spread = site.call(_aten.unsqueeze.default, heads, rank - 2)
    expanded = site.call(_aten.expand.default, spread, [*[-1] * (rank - 2), repeats, -1, -1])
    return site.call(_aten.flatten.using_ints, expanded, rank - 3, rank - 2)


def _causal_sizes(node: fx.Node) -> tuple[int, int] | None:
    """The largest L and S; None where one has no bound."""
    found = [_largest(edit.argument(node, name).meta["val"].shape[-2]) for name in ("query", "key")]
    return (found[0], found[1]) if found[0] is not None and found[1] is not None else None


def _largest(size: int | torch.SymInt) -> int | None:
    if isinstance(size, int):
        return size
    upper = size.node.shape_env.bound_sympy(size.node.expr).upper
    return int(upper) if upper.is_Integer and upper < 1 << 24 else None


def _later(site: Site, node: fx.Node) -> fx.Node:
    """True where a key comes after the query: a constant for the largest lengths, sliced to those at hand."""
    largest = _causal_sizes(node)
    assert largest is not None  # check looked already
    result = site.constant(f"{node.name}_later", torch.ones(largest, dtype=torch.bool).triu(1))
    for dim, name in enumerate(("query", "key")):
        length = edit.argument(node, name).meta["val"].shape[-2]
        if isinstance(length, torch.SymInt):
            result = site.call(_aten.slice.Tensor, result, dim, 0, patterns.size_of(site, length), 1)
    return result


def _product(site: Site, node: fx.Node) -> fx.Node:
    if edit.is_call(node, _aten.bmm.default):
        return site.call(_aten.matmul.default, *node.args[:2])
    added, first, second = node.args[:3]
    alpha, beta = (edit.argument(node, name) for name in ("alpha", "beta"))
    product = site.call(_aten.mul.Tensor, site.call(_aten.matmul.default, first, second), alpha)
    if beta == 0:
        return product
    return site.call(_aten.add.Tensor, product, added if beta == 1 else site.call(_aten.mul.Tensor, added, beta))


def _scaled(operand: Any) -> tuple[list[fx.Node], float] | None:
    """The movement between a product's operand and ``x * number``, and the number; nobody else may read what lies between."""
    path: list[fx.Node] = []
    while isinstance(operand, fx.Node) and len(operand.users) == 1:
        scaled = patterns.times_number(operand)
        if scaled is not None:
            return [*path, operand], scaled[1]
        if operand.target not in _MOVES:
            return None
        path.append(operand)
        operand = operand.args[0]
    return None


def _scale_after(site: Site, node: fx.Node) -> fx.Node:
    factor, operands = 1.0, list(node.args[:2])
    for position, operand in enumerate(operands):
        scaled = _scaled(operand)
        if scaled is None:
            continue
        (*moves, product), number = scaled
        factor *= number
        result = product.args[0]
        for move in reversed(moves):
            result = site.call(move.target, result, *move.args[1:], **move.kwargs)  # type: ignore[arg-type]  # an op overload
        operands[position] = result
    return site.call(_aten.mul.Tensor, site.call(_aten.matmul.default, *operands), _unsplit(factor, node.args[0]))


def _unsplit(factor: float, query: Any) -> float:
    """1 / sqrt(E) where the factor is as near to it as the rounding of its parts."""
    depth = query.meta["val"].shape[-1]
    usual = 1 / math.sqrt(depth) if isinstance(depth, int) and depth else factor
    return usual if abs(factor - usual) <= _SPLIT_ROUNDING * usual else factor
