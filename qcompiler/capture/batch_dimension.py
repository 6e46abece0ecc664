"""The batch is taken apart from dimensions that a model merges it with.

Window attention (Liu et al., "Swin Transformer", 2021) works on ``x.view(B * windows, tokens, width)``. Samples are still independent, but
dimension 0 no longer says so. With ``[B, windows, tokens, width]`` in its place everything else stays: views give the same elements in the
same order, and all other ops either work on other dimensions, whose numbers grow by one, or broadcast over leading dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from qcompiler.capture.constants import size_node
from qcompiler.ir import edit
from qcompiler.ir.float_ops import ARITHMETIC_OPS, MASK_OPS, UNARY_OPS

_aten = torch.ops.aten

# Give their elements in order in another shape.
_VIEWS = frozenset(
    {
        _aten.view.default,
        _aten._unsafe_view.default,
        _aten.reshape.default,
        _aten.flatten.using_ints,
        _aten.unflatten.int,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.unsqueeze.default,
    }
)
# Work on the last dimensions, or on each element, and broadcast over the others.
_BROADCASTS: frozenset[object] = (
    UNARY_OPS
    | ARITHMETIC_OPS
    | MASK_OPS
    | {
        _aten.linear.default,
        _aten.matmul.default,
        _aten.layer_norm.default,
        _aten.rms_norm.default,
        _aten.scaled_dot_product_attention.default,
        _aten.dropout.default,
        _aten.feature_dropout.default,
        _aten.contiguous.default,
        _aten.clone.default,
        _aten.detach.default,
        _aten.alias.default,
        _aten.to.dtype,
        _aten.relu6.default,
        _aten.hardtanh.default,
        _aten.add.Scalar,
        _aten.sub.Scalar,
        _aten.mul.Scalar,
        _aten.div.Scalar,
        _aten.rsub.Scalar,
        _aten.square.default,
    }
)
# Argument that says along which dimensions an op works.
_WORKS_ALONG: Mapping[object, str] = {
    _aten.softmax.int: "dim",
    _aten.mean.dim: "dim",
    _aten.sum.dim_IntList: "dim",
    _aten.amax.default: "dim",
    _aten.select.int: "dim",
    _aten.slice.Tensor: "dim",
    _aten.unbind.int: "dim",
    _aten.chunk.default: "dim",
    _aten.split.Tensor: "dim",
    _aten.cat.default: "dim",
    _aten.flip.default: "dims",
    _aten.roll.default: "dims",
}


@dataclass(frozen=True)
class Merged:
    """Dimension ``position`` holds the batch times ``factor``."""

    position: int
    factor: int


class _CannotSeparateError(Exception):
    """An op whose dimensions are not known here."""


def separate_batch(graph_module: fx.GraphModule, batch: sympy.Expr) -> fx.GraphModule:
    """The graph with ``[B, k]`` in place of each dimension ``B * k``; the very graph where there is none, or an op stands in the way."""
    if not any(_merged(node, batch) for node in graph_module.graph.nodes):
        return graph_module
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in graph_module.graph.nodes:
        mapping[node] = graph.node_copy(node, mapping.__getitem__)
    work = fx.GraphModule(graph_module, graph, class_name="Program")
    try:
        _Separation(work, batch).run()
    except _CannotSeparateError:
        return graph_module
    return work


def _merged(node: fx.Node, batch: sympy.Expr) -> Merged | None:
    """Where the value of a node has the batch times a number larger than 1."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, list | tuple) and value else value
    if not isinstance(value, torch.Tensor):
        return None
    for position, size in enumerate(value.shape):
        factor = size.node.expr / batch if isinstance(size, torch.SymInt) else None
        if factor is not None and factor.is_Integer and factor > 1:
            return Merged(position, int(factor))
    return None


class _Separation:
    """Rewrites a graph in topological order; ``merged`` says what each value was before, if it had a merged dimension."""

    def __init__(self, graph_module: fx.GraphModule, batch: sympy.Expr) -> None:
        self.graph_module, self.graph, self.batch = graph_module, graph_module.graph, batch
        self.merged: dict[fx.Node, Merged] = {}
        self.shapes: dict[fx.Node, list[Any]] = {}

    def run(self) -> None:
        for node in list(self.graph.nodes):
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                self.shapes[node] = list(value.shape)
            merged = _merged(node, self.batch)
            if node.op == "output" and any(source in self.merged for source in node.all_input_nodes):
                raise _CannotSeparateError
            if node.op != "call_function" or (merged is None and not any(source in self.merged for source in node.all_input_nodes)):
                continue
            self._rewrite(node, merged)
            if merged is not None:
                self.merged[node] = merged

    def _rewrite(self, node: fx.Node, merged: Merged | None) -> None:
        if node.target in _VIEWS:
            self._view(node, merged)
        elif edit.is_call(node, _aten.permute.default, _aten.transpose.int):
            self._permute(node)
        elif node.target in _WORKS_ALONG:
            self._shift(node)
        elif node.target in _BROADCASTS and merged is not None:
            self._broadcast(node, merged)
        elif getattr(node.target, "__name__", "") != "getitem":
            raise _CannotSeparateError
        self._evaluate(node)

    def _evaluate(self, node: fx.Node) -> None:
        try:
            node.meta["val"] = edit.evaluate(node)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise _CannotSeparateError from error

    def _view(self, node: fx.Node, merged: Merged | None) -> None:
        source, shape = node.args[0], self.shapes[node]
        assert isinstance(source, fx.Node)  # views work on a tensor
        before = self._elements_before_batch(self.shapes[source])
        if before is None or before != self._elements_before_batch(shape):
            raise _CannotSeparateError
        sizes: list[Any] = []
        for position, size in enumerate(shape):
            if merged is not None and position == merged.position:
                sizes += [self._batch_node(node), merged.factor]
            else:
                sizes.append(self._size(size, node))
        node.target, node.args, node.kwargs = _aten.reshape.default, (source, sizes), {}

    def _elements_before_batch(self, shape: list[Any]) -> int | None:
        for position, size in enumerate(shape):
            if isinstance(size, torch.SymInt):
                rest = [other for other in shape[:position] if isinstance(other, int)]
                return math.prod(rest) if (size.node.expr / self.batch).is_Integer else None
        return None

    def _size(self, size: Any, node: fx.Node) -> Any:
        if isinstance(size, int):
            return size
        if size.node.expr == self.batch:
            return self._batch_node(node)
        raise _CannotSeparateError

    def _batch_node(self, node: fx.Node) -> fx.Node:
        return size_node(self.graph, self.batch, before=node)

    def _permute(self, node: fx.Node) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)  # as above
        if source not in self.merged:
            raise _CannotSeparateError
        position, rank = self.merged[source].position, len(self.shapes[source])
        if edit.is_call(node, _aten.permute.default):
            dims = [dim % rank for dim in edit.argument(node, "dims")]
        else:
            first, second = (edit.argument(node, name) % rank for name in ("dim0", "dim1"))
            dims = list(range(rank))
            dims[first], dims[second] = second, first
        separated: list[int] = []
        for dim in dims:
            separated += [position, position + 1] if dim == position else [dim + (dim > position)]
        node.target, node.args, node.kwargs = _aten.permute.default, (source, separated), {}

    def _shift(self, node: fx.Node) -> None:
        """Dimensions behind the merged one have numbers larger by one."""
        sources = [source for source in node.all_input_nodes if source in self.merged]
        if not sources:
            raise _CannotSeparateError
        position, rank = self.merged[sources[0]].position, len(self.shapes[sources[0]])
        if len(sources) != len(node.all_input_nodes) or any(self.merged[source].position != position for source in sources):
            raise _CannotSeparateError
        name = _WORKS_ALONG[node.target]
        given = edit.argument(node, name)
        dims = [dim % rank for dim in (given if isinstance(given, list | tuple) else [given])]
        if not dims or position in dims:
            raise _CannotSeparateError
        shifted = [dim + (dim > position) for dim in dims]
        node.args, node.kwargs = _with_argument(node, name, shifted if isinstance(given, list | tuple) else shifted[0])

    def _broadcast(self, node: fx.Node, merged: Merged) -> None:
        """Operands of the same batch are separated already; others get a dimension of size 1 where theirs meets the merged one."""
        behind = len(self.shapes[node]) - merged.position  # dimensions from the merged one to the end
        if behind <= _TRAILING.get(node.target, 0):
            raise _CannotSeparateError
        for source in node.all_input_nodes:
            if source in self.merged or source not in self.shapes or node.target in _PARAMETERS and source is not node.args[0]:
                continue
            rank = len(self.shapes[source])
            if rank >= behind:
                if self.shapes[source][rank - behind] != 1:
                    raise _CannotSeparateError
                spread = edit.insert_call(
                    self.graph, _aten.unsqueeze.default, (source, rank - behind), before=node, provenance_from=[source]
                )
                node.replace_input_with(source, spread)


# How many of the last dimensions an op works on; the batch may not be among them.
_TRAILING: Mapping[object, int] = {
    _aten.linear.default: 1,
    _aten.layer_norm.default: 1,
    _aten.rms_norm.default: 1,
    _aten.matmul.default: 2,
    _aten.scaled_dot_product_attention.default: 2,
}
# Ops whose operands behind the first do not broadcast.
_PARAMETERS: frozenset[Callable[..., Any]] = frozenset({_aten.linear.default, _aten.layer_norm.default, _aten.rms_norm.default})


def _with_argument(node: fx.Node, name: str, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    names = [parameter.name for parameter in node.target._schema.arguments]  # type: ignore[union-attr]  # an op overload
    position = names.index(name)
    if position < len(node.args):
        return (*node.args[:position], value, *node.args[position + 1 :]), dict(node.kwargs)
    return node.args, {**node.kwargs, name: value}
