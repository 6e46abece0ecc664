"""What depends on no value of an input is computed when the model is captured.

Two kinds of such values are met in real models:

1. *Constants*: an index of relative positions, a mask of shifted windows that is filled by slices, angles of a rotary embedding. They
   are computed as the model computes them, writes in place included, and become constants of the program.
2. *Functions of sizes*: ``position_ids[:, :S]``, ``torch.arange(S)``, a causal mask, token types that are all zero, where S is a symbolic
   size of an input. All ops met here are *prefix-consistent*: their value for S is the first S entries of their value for the largest
   S. So each becomes ``slice(constant, dim, 0, S)``. What repeats a constant for each sample of the batch becomes an ``expand``.

Where every op of such a value is one that stage FLOAT has and no size is symbolic, it is left to the pass ``fold-constants``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import fx
from torch.fx.node import map_arg
from torch.utils._sympy.value_ranges import ValueRanges

from qcompiler.capture.functionalize import StorageSets, writes
from qcompiler.ir import edit
from qcompiler.ir.float_ops import ARITHMETIC_OPS, COMPARISON_OPS, FLOAT_OPS, UNARY_OPS
from qcompiler.ir.provenance import derive
from qcompiler.ir.sizes import expression as size_expression
from qcompiler.ir.stages import QUANTIZATION_OPS

_aten = torch.ops.aten

Bounds = Mapping[sympy.Symbol, ValueRanges[sympy.Expr]]

# Read nothing of their tensor but its dtype, where their sizes are given.
_LIKE = frozenset({_aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default})
# Read nothing of it but its dtype and shape.
_SHAPED_LIKE = frozenset({_aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default})

# Their value for a size is a prefix of their value for a larger one, along each dimension that has the size.
_PREFIX_CONSISTENT: frozenset[Callable[..., Any]] = (
    UNARY_OPS
    | ARITHMETIC_OPS
    | COMPARISON_OPS
    | {
        _aten.add.Scalar,
        _aten.sub.Scalar,
        _aten.mul.Scalar,
        _aten.div.Scalar,
        _aten.rsub.Scalar,
        _aten.eq.Tensor,
        _aten.ne.Tensor,
        _aten.gt.Tensor,
        _aten.ge.Tensor,
        _aten.lt.Tensor,
        _aten.le.Tensor,
        _aten.sin.default,
        _aten.cos.default,
        _aten.logical_and.default,
        _aten.logical_or.default,
        _aten.logical_not.default,
        _aten.bitwise_and.Tensor,
        _aten.bitwise_or.Tensor,
        _aten.bitwise_not.default,
        _aten.__and__.Tensor,
        _aten.__or__.Tensor,
        _aten.where.self,
        _aten.where.ScalarSelf,
        _aten.where.ScalarOther,
        _aten.where.Scalar,
        _aten.masked_fill.Scalar,
        _aten.tril.default,
        _aten.triu.default,
        _aten.embedding.default,
        _aten.gather.default,
        _aten.arange.default,
        _aten.arange.start,
        _aten.zeros.default,
        _aten.ones.default,
        _aten.full.default,
        _aten.new_zeros.default,
        _aten.new_ones.default,
        _aten.new_full.default,
        _aten.zeros_like.default,
        _aten.ones_like.default,
        _aten.full_like.default,
        _aten.scalar_tensor.default,
        _aten.slice.Tensor,
        _aten.expand.default,
        _aten.view.default,
        _aten.reshape.default,
        _aten.unsqueeze.default,
        _aten.permute.default,
        _aten.transpose.int,
        _aten.clone.default,
        _aten.contiguous.default,
        _aten.detach.default,
        _aten.alias.default,
        _aten.lift_fresh_copy.default,
        _aten.to.dtype,
        _aten.to.dtype_layout,
        _aten.to.device,
        _aten._to_copy.default,
        _aten.outer.default,
        _aten.stack.default,
        _aten.cat.default,
    }
)
# What may take a symbolic size -> the name of the argument that does; as an operand of arithmetic it would be no prefix.
_TAKES_SIZES: Mapping[object, str] = {
    _aten.arange.default: "end",
    _aten.arange.start: "end",
    _aten.zeros.default: "size",
    _aten.ones.default: "size",
    _aten.full.default: "size",
    _aten.new_zeros.default: "size",
    _aten.new_ones.default: "size",
    _aten.new_full.default: "size",
    _aten.expand.default: "size",
    _aten.slice.Tensor: "end",
    _aten.view.default: "size",
    _aten.reshape.default: "shape",
}
_VIEWS = frozenset({_aten.view.default, _aten.reshape.default})
_COUNTS = frozenset({_aten.arange.default, _aten.arange.start})
_JOINS = frozenset({_aten.cat.default, _aten.stack.default})


# ---- constants --------------------------------------------------------------------------------------------------------------------


def evaluate_constants(graph_module: fx.GraphModule) -> None:
    """Case 1, in place: calls on constants alone that stage FLOAT cannot leave to ``fold-constants``."""
    graph = graph_module.graph
    storage = StorageSets(graph)
    written = {other for node in graph.nodes if writes(node) for other in storage.sharing(node.args[0])}
    constant = _constant_calls(graph, written)
    if not any(node in written or node.target not in FLOAT_OPS for node in constant):
        return
    values = _run(graph, constant)
    needed: set[fx.Node] = set()
    for node in constant:
        if node in written or node.target not in FLOAT_OPS or any(source in needed for source in node.all_input_nodes):
            needed.add(node)
    for node in [node for node in needed if any(user not in needed for user in node.users)]:
        value = values[node]
        if isinstance(value, torch.Tensor):
            _replace_by_constant(graph_module, node, value)
    for node in reversed(graph.nodes):  # the writes among them too, which nothing reads
        if node in needed and not node.users:
            graph.erase_node(node)


def _constant_calls(graph: fx.Graph, written: set[fx.Node]) -> dict[fx.Node, None]:
    """The calls that need no input, in order. Memory that is written to counts only if everything that shares it needs none."""
    excluded: set[fx.Node] = set()
    while True:
        constant: dict[fx.Node, None] = {}
        for node in graph.nodes:
            if _needs_no_input(node, constant) and node not in excluded:
                constant[node] = None
        storage = StorageSets(graph)
        mixed = {
            other
            for node in written
            if node not in constant or _is_read_before_a_write(node, constant, written)
            for other in storage.sharing(node)
            if other in constant
        }
        if not mixed:
            return constant
        excluded |= mixed


def _needs_no_input(node: fx.Node, constant: Mapping[fx.Node, None]) -> bool:
    if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return False
    if node.target in QUANTIZATION_OPS:  # the integers of weights are to be kept
        return False
    if node.target in _SHAPED_LIKE:
        return not any(isinstance(size, torch.SymInt) for size in node.meta["val"].shape)
    return all(source.op == "get_attr" or source in constant for source in _read(node))


def _read(node: fx.Node) -> list[fx.Node]:
    """The operands whose values, or whose symbolic sizes, the result depends on."""
    if node.target in _SHAPED_LIKE:
        return []
    return node.all_input_nodes[1:] if node.target in _LIKE else node.all_input_nodes


def _is_read_before_a_write(node: fx.Node, constant: Mapping[fx.Node, None], written: set[fx.Node]) -> bool:
    """Whether a call that needs an input reads ``node`` before the last write into it: then no single value stands for it."""
    order = {other: position for position, other in enumerate(node.graph.nodes)}
    readers = [order[user] for user in node.users if user not in constant]
    writers = [order[other] for other in written if writes(other)]
    return bool(readers and writers) and min(readers) < max(writers)


def _run(graph: fx.Graph, constant: Mapping[fx.Node, None]) -> dict[fx.Node, Any]:
    values: dict[fx.Node, Any] = {}

    def value_of(node: fx.Node) -> Any:
        if node in values:
            return values[node]
        value = edit.constant_value(node)
        return _blank(node, list(node.meta["val"].shape)) if value is None else value

    with torch.no_grad():
        for node in constant:
            args, kwargs = map_arg(node.args, value_of), map_arg(node.kwargs, value_of)
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]  # fx types targets as str | Callable
    return values


def _blank(node: fx.Node, shape: list[Any]) -> torch.Tensor:
    """Stands for a tensor of which only dtype and shape are read."""
    return torch.empty([size if isinstance(size, int) else 0 for size in shape], dtype=node.meta["val"].dtype)


def _replace_by_constant(graph_module: fx.GraphModule, node: fx.Node, value: torch.Tensor) -> None:
    constant = edit.add_constant(
        graph_module, f"{node.name}_constant", value.clone(memory_format=torch.contiguous_format), provenance_from=[node]
    )
    node.replace_all_uses_with(constant)


# ---- functions of sizes -----------------------------------------------------------------------------------------------------------


def evaluate_sizes(graph_module: fx.GraphModule, bounds: Bounds, batch: sympy.Expr | None) -> None:
    """Case 2, in place. ``bounds``: the range of each symbol; ``batch``: the symbol of the batch, whose samples get equal values."""
    graph = graph_module.graph
    largest = _Largest(bounds, batch)
    values: dict[fx.Node, torch.Tensor] = {}
    for node in graph.nodes:
        if node.op == "call_function" and largest.evaluates(node, values):
            values[node] = largest.value(node, values)
    for node in [node for node in values if any(user not in values for user in node.users)]:
        if _is_left_to_fold_constants(node):
            continue
        _replace_by_slice(graph_module, node, values[node], batch)


def _is_left_to_fold_constants(node: fx.Node) -> bool:
    """Whether the value has the form already: a constant repeated over the batch, or one slice of a constant."""
    if not any(isinstance(size, torch.SymInt) for size in node.meta["val"].shape):
        return True
    return edit.is_call(node, _aten.expand.default, _aten.slice.Tensor) and all(
        source.op == "get_attr" or _is_size(source) for source in node.all_input_nodes
    )


class _Largest:
    """Values of calls where every symbolic size is at its maximum, but the batch, which is 1."""

    def __init__(self, bounds: Bounds, batch: sympy.Expr | None) -> None:
        self.bounds, self.batch = bounds, batch

    def size(self, value: torch.SymInt) -> int | None:
        """The number that stands for a symbolic size; None where nothing bounds it."""
        expression = size_expression(value)
        maxima = {}
        for symbol in expression.free_symbols:
            upper = self.bounds[symbol].upper if symbol in self.bounds else None
            if symbol != self.batch and (upper is None or not upper.is_Integer or upper > 1 << 24):
                return None
            maxima[symbol] = 1 if symbol == self.batch else upper
        return int(expression.subs(maxima))

    def evaluates(self, node: fx.Node, values: Mapping[fx.Node, torch.Tensor]) -> bool:
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor) or node.target not in _PREFIX_CONSISTENT:
            return False
        sources = _read(node)
        if not all(source.op == "get_attr" or source in values or _is_size(source) for source in sources):
            return False
        sizes = [source.meta["val"] for source in sources if _is_size(source)]
        if sizes and not _takes_sizes_as_sizes(node):
            return False
        if any(self.size(size) is None for size in (*sizes, *_symbolic(value))) or not self._has_plain_symbols(value):
            return False
        if node.target in _COUNTS:  # counting the samples gives each a value of its own
            return all(size_expression(size) != self.batch for size in sizes) and _starts_at_zero(node)
        if node.target in _VIEWS and not _moves_only_ones(node):
            return False
        return node.target not in _JOINS or not self._joins_symbols(node)

    def value(self, node: fx.Node, values: Mapping[fx.Node, torch.Tensor]) -> torch.Tensor:
        def value_of(source: fx.Node) -> Any:
            if _is_size(source):
                return self.size(source.meta["val"])
            if source in values:
                return values[source]
            constant = edit.constant_value(source)
            return self._blank(source) if constant is None else constant

        with torch.no_grad():
            args, kwargs = map_arg(node.args, value_of), map_arg(node.kwargs, value_of)
            result: torch.Tensor = node.target(*args, **kwargs)  # type: ignore[operator]  # fx types targets as str | Callable
        return result

    def _blank(self, node: fx.Node) -> torch.Tensor:
        return _blank(node, [size if isinstance(size, int) else self.size(size) for size in node.meta["val"].shape])

    def _has_plain_symbols(self, value: torch.Tensor) -> bool:
        """Whether each symbolic dimension is a symbol itself, not S + 1 or 2 S."""
        return all(size_expression(size).is_Symbol for size in _symbolic(value))

    def _joins_symbols(self, node: fx.Node) -> bool:
        """Whether parts of symbolic size stand behind each other."""
        dim = edit.argument(node, "dim") % node.meta["val"].ndim
        return isinstance(node.meta["val"].shape[dim], torch.SymInt)


def _symbolic(value: torch.Tensor) -> list[torch.SymInt]:
    sizes: list[int | torch.SymInt] = list(value.shape)
    return [size for size in sizes if isinstance(size, torch.SymInt)]


def _takes_sizes_as_sizes(node: fx.Node) -> bool:
    name = _TAKES_SIZES.get(node.target)
    if name is None:
        return False
    taken = edit.argument(node, name)
    allowed = taken if isinstance(taken, list | tuple) else [taken]
    return all(source in allowed for source in node.all_input_nodes if _is_size(source))


def _moves_only_ones(node: fx.Node) -> bool:
    """Whether a view only adds and removes dimensions of size 1."""
    before, after = ([str(size) for size in value.shape if str(size) != "1"] for value in (_first(node).meta["val"], node.meta["val"]))
    return before == after


def _first(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _starts_at_zero(node: fx.Node) -> bool:
    return node.target is _aten.arange.default or edit.argument(node, "start") == 0


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt)


def _replace_by_slice(graph_module: fx.GraphModule, node: fx.Node, value: torch.Tensor, batch: sympy.Expr | None) -> None:
    """``expand(slice(constant, dim, 0, S), [B, …])`` for each dimension that needs it."""
    graph, shape = graph_module.graph, node.meta["val"].shape
    result = edit.add_constant(
        graph_module, f"{node.name}_constant", value.clone(memory_format=torch.contiguous_format), provenance_from=[node]
    )
    repeated: list[Any] = [-1] * len(shape)
    for dim, size in enumerate(shape):
        if not isinstance(size, torch.SymInt):
            continue
        end = size_node(graph, size_expression(size), before=node)
        if size_expression(size) == batch or value.shape[dim] == 1:
            repeated[dim] = end
        else:
            result = edit.insert_call(graph, _aten.slice.Tensor, (result, dim, 0, end, 1), before=node, provenance_from=[node])
    if any(isinstance(size, fx.Node) for size in repeated):
        result = edit.insert_call(graph, _aten.expand.default, (result, repeated), before=node, provenance_from=[node])
    node.replace_all_uses_with(result)


def size_node(graph: fx.Graph, expression: sympy.Expr, before: fx.Node) -> fx.Node:
    """A node that reads the size ``expression`` from an input that has it as a dimension; one that exists is used again."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in edit.calls(graph, _aten.sym_size.int):
        if size_expression(node.meta["val"]) == expression and order[node] < order[before]:
            return node
    for node in graph.nodes:
        for dim, size in enumerate(node.meta["val"].shape if node.op == "placeholder" else ()):
            if isinstance(size, torch.SymInt) and size_expression(size) == expression:
                with graph.inserting_after([other for other in graph.nodes if other.op == "placeholder"][-1]):
                    created = graph.create_node("call_function", _aten.sym_size.int, (node, dim), {}, name="sym_size_int")
                created.meta.update(val=size, provenance=derive([], ""))
                return created
    raise AssertionError(f"no input has the size {expression}")  # sizes come from inputs
