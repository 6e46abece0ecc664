"""``hoist-slices``: what is thrown away is not computed. A slice goes before the op whose result it takes a part of.

    f(x, y)[i:j] = f(x[i:j], y[i:j])            along every dimension that f works on one position at a time

A vision transformer that reads its class token alone computes its last block for that token: the MLP, the projection and the queries
of attention.

The ops, and the dimensions of their results that they let slices through: elementwise ops all of them (a dimension that broadcasting
made is not cut); layer norm, softmax and the like, and ``linear``, all but the last; ``matmul`` the rows of its first operand;
permutations, slices along other dimensions, and reshapes where a dimension stays as it is. Slices move only where they get past an
op that has work to save: past elementwise ops alone they would part a layer from its activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.float_ops import ARITHMETIC_OPS, MASK_OPS, ROW_OPS, UNARY_OPS
from qcompiler.ir.sizes import expression
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

_ELEMENTWISE = UNARY_OPS | (ARITHMETIC_OPS - {_aten.prelu.default}) | MASK_OPS
_WORTHWHILE = ROW_OPS | {_aten.linear.default, _aten.matmul.default}

# Position of an argument -> the dimension of it that has to be cut.
Cuts = dict[int, int]


@dataclass(frozen=True)
class Slice:
    """``node``, the first of slices that are alike, takes a part of ``source`` along ``dim``.

    ``cuts``: of which arguments of ``source`` the same part is enough.
    """

    node: fx.Node
    source: fx.Node
    dim: int
    cuts: Cuts


@dataclass(frozen=True)
class HoistSlices(RewritePass[Slice]):
    """Cut operands in place of results, where that saves the work of a layer, a matrix product or a normalization."""

    name: ClassVar = "hoist-slices"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> Slice | None:
        if not edit.is_call(node, _aten.slice.Tensor):
            return None
        source, dim = node.args[0], _dim(node)
        assert isinstance(source, fx.Node)  # a slice works on a tensor
        kept, size = node.meta["val"].shape[dim], source.meta["val"].shape[dim]
        if not isinstance(kept, int) or kept == size or not _has_one_reader(source) or not _saves_work(source, dim):
            return None
        return Slice(min(source.users), source, dim, _cuts(source, dim))

    def rewrite(self, graph_module: fx.GraphModule, match: Slice) -> None:
        site = Site(graph_module, match.node, self.name)
        source = match.source
        bounds = [edit.argument(match.node, name) for name in ("start", "end", "step")]
        args: list[Any] = list(source.args)
        for position, dim in match.cuts.items():
            args[position] = site.call(_aten.slice.Tensor, args[position], dim, *bounds)
        if edit.is_call(source, _aten.reshape.default):
            args[1] = [match.node.meta["val"].shape[match.dim] if dim == match.dim else size for dim, size in enumerate(args[1])]
        part = edit.insert_call(
            graph_module.graph,
            source.target,  # type: ignore[arg-type]  # an op overload
            args,
            source.kwargs,
            before=match.node,
            provenance_from=[source],
            made_by=self.name,
        )
        for reader in list(source.users):
            edit.replace(reader, part)


def _dim(node: fx.Node) -> int:
    return int(edit.argument(node, "dim")) % int(node.meta["val"].ndim)


def _saves_work(node: fx.Node, dim: int) -> bool:
    """Whether a slice of ``node`` along ``dim`` can go up past an op that has work to save."""
    cuts = _cuts(node, dim)
    if not cuts or edit.is_call(node, *_WORTHWHILE):
        return bool(cuts)
    operands = ((node.args[position], dim) for position, dim in cuts.items())
    return any(isinstance(operand, fx.Node) and len(operand.users) == 1 and _saves_work(operand, dim) for operand, dim in operands)


def _cuts(node: fx.Node, dim: int) -> Cuts:
    """Which parts of its operands are enough for a part of ``node`` along ``dim``; none where all of them is needed."""
    rule = _RULES.get(node.target) if node.op == "call_function" else None
    return rule(node, dim) if rule is not None else {}


def _has_one_reader(node: fx.Node) -> bool:
    """Several slices that are alike count as one."""
    first, *others = node.users
    alike = (edit.is_call(other, _aten.slice.Tensor) and other.args[1:] == first.args[1:] for other in others)
    return not others or (edit.is_call(first, _aten.slice.Tensor) and all(alike))


def _elementwise(node: fx.Node, dim: int) -> Cuts:
    """Operands are aligned at their last dimensions."""
    cuts = {}
    for position, operand in enumerate(node.args):
        if isinstance(operand, fx.Node):
            own = dim - node.meta["val"].ndim + operand.meta["val"].ndim
            if own >= 0 and operand.meta["val"].shape[own] != 1:
                cuts[position] = own
    return cuts


def _rows(node: fx.Node, dim: int) -> Cuts:
    """Every row of the last dimension by itself."""
    shape = edit.argument(node, "normalized_shape") if edit.is_call(node, _aten.layer_norm.default, _aten.rms_norm.default) else [0]
    over = node.meta["val"].ndim - len(shape)
    reduces_last = not edit.is_call(node, _aten.softmax.int) or edit.argument(node, "dim") % node.meta["val"].ndim == over
    return {0: dim} if dim < over and reduces_last else {}


def _matmul(node: fx.Node, dim: int) -> Cuts:
    first = node.args[0]
    assert isinstance(first, fx.Node)  # matmul works on tensors
    rank = node.meta["val"].ndim
    return {0: first.meta["val"].ndim - 2} if dim == rank - 2 and first.meta["val"].ndim >= 2 and _rank(node.args[1]) >= 2 else {}


def _rank(value: object) -> int:
    assert isinstance(value, fx.Node)  # asked of tensors
    return int(value.meta["val"].ndim)


def _permute(node: fx.Node, dim: int) -> Cuts:
    return {0: edit.argument(node, "dims")[dim] % node.meta["val"].ndim}


def _slice(node: fx.Node, dim: int) -> Cuts:
    return {0: dim} if dim != _dim(node) else {}


def _reshape(node: fx.Node, dim: int) -> Cuts:
    """The dimension of the operand that has the same size and as many elements before it."""
    source = node.args[0]
    assert isinstance(source, fx.Node)  # a reshape works on a tensor
    old, new = ([expression(size) for size in each.meta["val"].shape] for each in (source, node))
    before = math.prod(new[:dim])
    same = (own for own, size in enumerate(old) if size == new[dim] and math.prod(old[:own]) == before)
    found = next(same, None)
    return {} if found is None else {0: found}


_RULES: Mapping[object, Callable[[fx.Node, int], Cuts]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(ROW_OPS | {_aten.linear.default}, _rows),
    _aten.matmul.default: _matmul,
    _aten.permute.default: _permute,
    _aten.slice.Tensor: _slice,
    _aten.reshape.default: _reshape,
}
