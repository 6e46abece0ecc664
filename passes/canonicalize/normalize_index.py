"""``normalize-index``: rows of tables and positions of maxima in one form each.

1. embedding(w, ids, …) = embedding(w, ids): where the padding token stands and how gradients are scaled matters in training only
2. index_select(w, 0, ids) = w[ids] = embedding(w, ids) for a constant matrix w and a vector, or any tensor, of row numbers; w may be
   the qc.dequantize of a constant, as in models that were quantized elsewhere
3. argmax(x, -d) = argmax(x, rank - d), its keepdim written out
4. max(x, d): the maxima are amax(x, [d]), their positions argmax(x, d)
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Exact
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten


@dataclass(frozen=True)
class NormalizeIndex(RewritePass[fx.Node]):
    """Lookups of rows become ``embedding``; maxima and their positions ``amax`` and ``argmax``."""

    name: ClassVar = "normalize-index"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> fx.Node | None:
        if edit.is_call(node, _aten.embedding.default):
            return None if len(node.args) == 2 and not node.kwargs else node
        if edit.is_call(node, _aten.argmax.default):
            return None if _argmax_arguments(node) == tuple(node.args[1:]) else node
        if node.target is operator.getitem:
            return node if edit.is_call(node.args[0], _aten.max.dim) else None
        return node if edit.is_call(node, _aten.index_select.default, _aten.index.Tensor) else None

    def check(self, match: fx.Node) -> str | None:
        if edit.is_call(match, _aten.argmax.default):
            return "it runs over all dimensions at once" if edit.argument(match, "dim") is None else None
        if not edit.is_call(match, _aten.index_select.default, _aten.index.Tensor):
            return None
        table = match.args[0]
        if not _is_table(table):
            return "what it indexes is not a constant matrix"
        rows = edit.argument(match, "dim") == 0 if edit.is_call(match, _aten.index_select.default) else len(match.args[1]) == 1  # type: ignore[arg-type]
        return None if rows else "it does not select whole rows"

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> None:
        site = Site(graph_module, match, self.name)
        if edit.is_call(match, _aten.argmax.default):
            site.replace(site.call(_aten.argmax.default, match.args[0], *_argmax_arguments(match)))
        elif match.target is operator.getitem:
            site.replace(_maximum(site, match))
        else:
            site.replace(site.call(_aten.embedding.default, match.args[0], _rows(match)))


def _is_table(value: object) -> bool:
    constant = value.args[0] if edit.is_call(value, torch.ops.qc.dequantize.default) else value  # type: ignore[attr-defined]  # a call is a node
    return isinstance(constant, fx.Node) and edit.is_constant(constant) and constant.meta["val"].ndim == 2


def _rows(node: fx.Node) -> object:
    if edit.is_call(node, _aten.embedding.default):
        return node.args[1]
    if edit.is_call(node, _aten.index_select.default):
        return edit.argument(node, "index")
    return node.args[1][0]  # type: ignore[index]  # a list of indices


def _argmax_arguments(node: fx.Node) -> tuple[object, ...]:
    dim = edit.argument(node, "dim")
    rank = node.args[0].meta["val"].ndim  # type: ignore[union-attr]  # works on a tensor
    return (None if dim is None else dim % rank, bool(edit.argument(node, "keepdim")))


def _maximum(site: Site, item: fx.Node) -> fx.Node:
    node, position = item.args
    assert isinstance(node, fx.Node)  # match saw that it is aten.max
    source, keep = node.args[0], bool(edit.argument(node, "keepdim"))
    dim = edit.argument(node, "dim") % source.meta["val"].ndim  # type: ignore[union-attr]  # as above
    return site.call(_aten.amax.default, source, [dim], keep) if position == 0 else site.call(_aten.argmax.default, source, dim, keep)
