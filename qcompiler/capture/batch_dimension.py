"""The batch becomes dimension 0, by itself, of every value.

Samples may be independent though dimension 0 does not say so. Window attention (Liu et al., "Swin Transformer", 2021) works on
``x.view(B * windows, tokens, width)``; ``nn.MultiheadAttention`` on ``[tokens, B, width]``, ``[B * heads, tokens, width]`` and
``[tokens * B, width]``. With ``[B, windows, tokens, width]`` and so on in their place, all else stays: a view gives the same elements of
a sample in the same order, if as many of them stand before the batch as before; other ops work on dimensions that are not the batch, whose
numbers change, or broadcast over them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from qcompiler.capture.constants import size_node
from qcompiler.ir import edit
from qcompiler.ir.float_ops import ARITHMETIC_OPS, MASK_OPS, RESHAPE_OPS, UNARY_OPS
from qcompiler.ir.sizes import expression
from qcompiler.ir.stages import QUANTIZATION_OPS

_aten = torch.ops.aten

# Work on each element, or on the last dimensions (how many), and broadcast over the others.
_BROADCASTS: Mapping[object, int] = {
    **dict.fromkeys(UNARY_OPS | ARITHMETIC_OPS | MASK_OPS, 0),
    _aten.dropout.default: 0,
    _aten.feature_dropout.default: 0,
    _aten.contiguous.default: 0,
    _aten.clone.default: 0,
    _aten.detach.default: 0,
    _aten.alias.default: 0,
    _aten.to.dtype: 0,
    _aten.relu6.default: 0,
    _aten.hardtanh.default: 0,
    _aten.add.Scalar: 0,
    _aten.sub.Scalar: 0,
    _aten.mul.Scalar: 0,
    _aten.div.Scalar: 0,
    _aten.rsub.Scalar: 0,
    _aten.square.default: 0,
    _aten.logical_and.default: 0,
    _aten.logical_or.default: 0,
    _aten.__and__.Tensor: 0,
    _aten.__or__.Tensor: 0,
    _aten.linear.default: 1,
    _aten.layer_norm.default: 1,
    _aten.rms_norm.default: 1,
    _aten.matmul.default: 2,
    _aten.scaled_dot_product_attention.default: 2,
}
# Of these only the first operand broadcasts; the others are parameters.
_WITH_PARAMETERS = frozenset({_aten.linear.default, _aten.layer_norm.default, _aten.rms_norm.default})
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
    **dict.fromkeys(QUANTIZATION_OPS, "axis"),  # where it is not -1
}


@dataclass(frozen=True)
class Layout:
    """Dimension ``position`` of a value holds ``before`` x batch x ``after`` elements, the batch between."""

    position: int
    before: int = 1
    after: int = 1

    @property
    def factors(self) -> list[int]:
        """What stands in the place of the dimension when the batch is taken out of it."""
        return [size for size in (self.before, self.after) if size > 1]

    @property
    def plain(self) -> bool:
        return self.position == 0 and not self.factors

    def moved(self, dim: int) -> int:
        """The number of another dimension when the batch is dimension 0."""
        return dim + 1 if dim < self.position else dim + len(self.factors)


class _CannotSeparateError(Exception):
    """An op whose dimensions are not known here, or that the batch itself takes part in."""


def separate_batch(graph_module: fx.GraphModule, batch: sympy.Expr) -> fx.GraphModule:
    """The graph with the batch as dimension 0 of every value; the very graph where it is already, or where an op stands in the way."""
    if not any(_needs_separation(node, batch) for node in graph_module.graph.nodes):
        return graph_module
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in graph_module.graph.nodes:
        mapping[node] = graph.node_copy(node, mapping.__getitem__)
    work = fx.GraphModule(graph_module, graph, class_name="Program")
    _write_out_products(graph)
    try:
        _Separation(work, batch).run()
    except _CannotSeparateError:
        return graph_module
    return work


def _needs_separation(node: fx.Node, batch: sympy.Expr) -> bool:
    """Whether the batch shares a dimension, or stands behind another where an op computes. Movement alone may put it anywhere."""
    found = _position(node, batch)
    computes = node.target in QUANTIZATION_OPS or _BROADCASTS.get(node.target, 0) > 0
    return found is not None and (found[1] > 1 or (found[0] > 0 and computes))


def _position(node: fx.Node, batch: sympy.Expr) -> tuple[int, int] | None:
    """The dimension of the batch in a value, and the number that it is multiplied with; None where it is in none or in several."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, list | tuple) and value else value
    if not isinstance(value, torch.Tensor):
        return None
    found = [(position, expression(size) / batch) for position, size in enumerate(value.shape) if batch in expression(size).free_symbols]
    if len(found) != 1 or not found[0][1].is_Integer:
        return None
    return found[0][0], int(found[0][1])


class _Separation:
    """Rewrites a graph in topological order. ``shapes`` and ``layouts``: of each value as the model has it; ``open``: sizes of inputs."""

    def __init__(self, graph_module: fx.GraphModule, batch: sympy.Expr) -> None:
        self.graph, self.batch = graph_module.graph, batch
        self.open = {
            expression(size)
            for node in self.graph.nodes
            if node.op == "placeholder"
            for size in node.meta["val"].shape
            if not isinstance(size, int)
        }
        self.shapes: dict[fx.Node, list[Any]] = {}
        self.layouts: dict[fx.Node, Layout] = {}

    def run(self) -> None:
        for node in list(self.graph.nodes):
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                self.shapes[node] = list(value.shape)
            position = _position(node, self.batch)
            touched = any(not self.layouts[source].plain for source in node.all_input_nodes if source in self.layouts)
            if node.op == "output":
                self._restore(node)
            elif node.op == "call_function" and (touched or (position is not None and position != (0, 1))):
                self._rewrite(node, position)
            elif position is not None:
                self.layouts[node] = Layout(0)

    def _restore(self, output: fx.Node) -> None:
        """Outputs as the model gives them."""
        for node in output.all_input_nodes:
            layout = self.layouts.get(node, Layout(0))
            if layout.factors:
                raise _CannotSeparateError
            if not layout.plain:
                dims = [layout.moved(dim) if dim != layout.position else 0 for dim in range(len(self.shapes[node]))]
                permuted = edit.insert_call(self.graph, _aten.permute.default, (node, dims), before=output, provenance_from=[node])
                output.replace_input_with(node, permuted)

    def _rewrite(self, node: fx.Node, position: tuple[int, int] | None) -> None:
        if position is None:
            raise _CannotSeparateError
        if getattr(node.target, "__name__", "") == "getitem":
            layout = self._inherited(node, position)
        elif node.target in RESHAPE_OPS:
            layout = self._view(node, position)
        elif edit.is_call(node, _aten.permute.default, _aten.transpose.int):
            layout = self._permute(node)
        elif node.target in QUANTIZATION_OPS and edit.argument(node, "axis") < 0:
            layout = self._broadcast(node, position)
        elif node.target in _WORKS_ALONG:
            layout = self._along(node, position)
        elif node.target in _BROADCASTS:
            layout = self._broadcast(node, position)
        else:
            raise _CannotSeparateError
        self.layouts[node] = layout
        try:
            node.meta["val"] = edit.evaluate(node)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise _CannotSeparateError from error

    def _layout_of(self, source: object) -> Layout:
        if not isinstance(source, fx.Node) or source not in self.layouts:
            raise _CannotSeparateError
        return self.layouts[source]

    def _inherited(self, node: fx.Node, position: tuple[int, int]) -> Layout:
        """The factors of the operands' layouts, which must agree, at the place where the result has the batch."""
        factors = {(layout.before, layout.after) for layout in self._operand_layouts(node)}
        if len(factors) != 1:
            raise _CannotSeparateError
        ((before, after),) = factors
        if before * after != position[1]:
            raise _CannotSeparateError
        return Layout(position[0], before, after)

    def _operand_layouts(self, node: fx.Node) -> Iterator[Layout]:
        return (self.layouts[source] for source in node.all_input_nodes if source in self.layouts)

    def _view(self, node: fx.Node, position: tuple[int, int]) -> Layout:
        source = node.args[0]
        layout = self._layout_of(source)
        before = self._count(self.shapes[source][: layout.position]) * layout.before  # type: ignore[index]  # _layout_of saw a node
        place, factor = position
        ahead = self._count(self.shapes[node][:place])
        if ahead == 0 or before % ahead or factor % (before // ahead):
            raise _CannotSeparateError
        result = Layout(place, before // ahead, factor // (before // ahead))
        shape = self.shapes[node]
        behind = [self._size(size, node) for size in shape[place + 1 :]]
        sizes = [size_node(self.graph, self.batch, before=node), *self._numbers(shape[:place]), *result.factors, *behind]
        node.target, node.args, node.kwargs = _aten.reshape.default, (source, sizes), {}
        return result

    def _size(self, size: int | torch.SymInt, before: fx.Node) -> int | fx.Node:
        """A size as an argument; an open one is read from the input that has it."""
        if isinstance(size, int):
            return size
        if expression(size) not in self.open:
            raise _CannotSeparateError
        return size_node(self.graph, expression(size), before)

    def _count(self, sizes: list[Any]) -> int:
        return math.prod(self._numbers(sizes))

    def _numbers(self, sizes: list[Any]) -> list[Any]:
        if any(isinstance(size, torch.SymInt) for size in sizes):
            raise _CannotSeparateError
        return sizes

    def _permute(self, node: fx.Node) -> Layout:
        source = node.args[0]
        layout = self._layout_of(source)
        rank = len(self.shapes[source])  # type: ignore[index]  # _layout_of saw a node
        if edit.is_call(node, _aten.permute.default):
            dims = [dim % rank for dim in edit.argument(node, "dims")]
        else:
            first, second = (edit.argument(node, name) % rank for name in ("dim0", "dim1"))
            dims = list(range(rank))
            dims[first], dims[second] = second, first
        separated = [0]
        for dim in dims:
            own = range(layout.position + 1, layout.position + 1 + len(layout.factors))
            separated += own if dim == layout.position else [layout.moved(dim)]
        node.target, node.args, node.kwargs = _aten.permute.default, (source, separated), {}
        return Layout(dims.index(layout.position), layout.before, layout.after)

    def _along(self, node: fx.Node, position: tuple[int, int]) -> Layout:
        layouts = [self._layout_of(source) for source in node.all_input_nodes]
        if len(set(layouts)) != 1:
            raise _CannotSeparateError
        layout, rank = layouts[0], len(self.shapes[node.all_input_nodes[0]])
        if edit.is_call(node, _aten.slice.Tensor) and str(self.shapes[node]) == str(self.shapes[node.all_input_nodes[0]]):
            node.target, node.args, node.kwargs = _aten.alias.default, node.args[:1], {}  # a slice of everything, the batch too
            return layout
        name = _WORKS_ALONG[node.target]
        given = edit.argument(node, name)
        dims = [dim % rank for dim in (given if isinstance(given, list | tuple) else [given])]
        if not dims or layout.position in dims:
            raise _CannotSeparateError
        moved = [layout.moved(dim) for dim in dims]
        node.args, node.kwargs = _with_argument(node, name, moved if isinstance(given, list | tuple) else moved[0])
        return self._inherited(node, position)

    def _broadcast(self, node: fx.Node, position: tuple[int, int]) -> Layout:
        layout = self._inherited(node, position)
        behind = len(self.shapes[node]) - layout.position  # dimensions from that of the batch to the last
        if behind <= _BROADCASTS.get(node.target, 0):
            raise _CannotSeparateError
        operands = node.all_input_nodes[:1] if node.target in _WITH_PARAMETERS else node.all_input_nodes
        for source in operands:
            fitted = self._fitted(node, source, layout, behind)
            if fitted is not source:
                node.replace_input_with(source, fitted)
        return layout

    def _fitted(self, node: fx.Node, source: fx.Node, layout: Layout, behind: int) -> fx.Node:
        """An operand in the shape that broadcasts to the new shape of ``node``."""
        shape = self.shapes[source]
        if source in self.layouts:
            if len(shape) - self.layouts[source].position != behind:
                raise _CannotSeparateError
            missing = len(self.shapes[node]) - len(shape)
            for _ in range(missing):
                source = self._insert(_aten.unsqueeze.default, source, 1, node)
            return source
        place = len(shape) - behind
        if place < 0 or len(layout.factors) == 1:
            return source
        if shape[place] != 1:
            raise _CannotSeparateError
        if layout.factors:
            return self._insert(_aten.unsqueeze.default, source, place, node)
        return source if place == 0 and layout.position == 0 else self._insert(_aten.squeeze.dims, source, [place], node)

    def _insert(self, target: edit.Target, source: fx.Node, argument: object, before: fx.Node) -> fx.Node:
        return edit.insert_call(self.graph, target, (source, argument), before=before, provenance_from=[source])


def _write_out_products(graph: fx.Graph) -> None:
    """Batched products take matrices in threes only; ``matmul`` takes any number of leading dimensions."""
    for node in edit.calls(graph, _aten.bmm.default):
        node.target = _aten.matmul.default
    for node in edit.calls(graph, _aten.baddbmm.default):
        if edit.argument(node, "alpha") == 1 and edit.argument(node, "beta") == 1:
            added, first, second = node.args[:3]
            product = edit.insert_call(graph, _aten.matmul.default, (first, second), before=node, provenance_from=[node])
            node.target, node.args, node.kwargs = _aten.add.Tensor, (product, added), {}


def _with_argument(node: fx.Node, name: str, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    names = [parameter.name for parameter in node.target._schema.arguments]  # type: ignore[union-attr]  # an op overload
    position = names.index(name)
    if position < len(node.args):
        return (*node.args[:position], value, *node.args[position + 1 :]), dict(node.kwargs)
    return node.args, {**node.kwargs, name: value}
