"""In-place ops become their functional counterparts, so that a value of the graph never changes.

``y = relu_(x)`` writes y's values into x's memory. With ``y = relu(x)`` and every later use of x reading y instead, the graph
computes the same, provided that nobody else looks at that memory: a tensor that shares it (``x.view(…)`` taken before, or the
tensor of which x is a view) and is read after the write would have to see it. Such a model is declined with the line to change.

Writes into a parameter or buffer would make one call depend on the one before; they are declined too. Writes into an input of
the model stay inside the program: the caller's tensor is left alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable

import torch
from torch import fx

from qcompiler.errors import CaptureError, UnsupportedOpError
from qcompiler.ir.provenance import describe

# These may give back their very argument (in evaluation mode; where the type is right already), which their schemas do not say.
_MAY_RETURN_ITS_ARGUMENT = frozenset(
    {torch.ops.aten.dropout.default, torch.ops.aten.feature_dropout.default, torch.ops.aten.type_as.default, operator.getitem}
)


def functionalize(graph: fx.Graph) -> None:
    """Rewrite every in-place op of ``graph``, in place.

    Raises:
        CaptureError: memory that is written to is also read through another tensor, or belongs to a parameter or buffer.
        UnsupportedOpError: an in-place op without functional counterpart (``copy_``, ``index_put_``, …).
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    storage = StorageSets(graph)
    for node in list(graph.nodes):
        if not writes(node):
            continue
        target = node.args[0]
        assert isinstance(target, fx.Node)  # the schema's first argument is the tensor written to
        _check_write(node, target, storage.sharing(target), order)
        node.target = _functional(node)
        node._rename(node.name.rstrip("_"))
        target.replace_all_uses_with(node, delete_user_cb=lambda user, write=node: order[user] > order[write])  # type: ignore[misc]


def writes(node: fx.Node) -> bool:
    """Whether a call changes one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and not str(schema.name).startswith("aten::batch_norm")


def _check_write(node: fx.Node, target: fx.Node, sharing: Iterable[fx.Node], order: dict[fx.Node, int]) -> None:
    for other in sharing:
        if other.op == "get_attr":
            raise CaptureError(
                f"{describe(node)} writes into the parameter or buffer '{other.target}': a program keeps nothing from call to call"
            )
        taken_before = other is not target and order[other] < order[node]
        if taken_before and any(order[user] > order[node] for user in other.users):
            raise CaptureError(
                f"{describe(node)} writes into memory that '{other.name}' shares and that is read later:"
                " use the op that is not in-place, or torch.cat"
            )


def _functional(node: fx.Node) -> Callable[..., object]:
    """``aten.relu_.default`` -> ``aten.relu.default``."""
    packet, overload = str(node.target).removeprefix("aten.").split(".")
    functional = getattr(torch.ops.aten, packet.removesuffix("_"), None) if packet.endswith("_") else None
    result = getattr(functional, overload, None)
    if result is None:
        raise UnsupportedOpError(
            f"{describe(node)} writes in place and has no functional form: assemble the value with torch.cat or torch.where"
        )
    return result  # type: ignore[no-any-return]  # torch.ops is untyped


class StorageSets:
    """Which nodes may share memory: the classes of the relation 'the result is, or is a view of, the argument' (union-find)."""

    def __init__(self, graph: fx.Graph) -> None:
        self._parent: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            for source in _aliased_arguments(node):
                self._parent[self._root(node)] = self._root(source)
        self._nodes = list(graph.nodes)

    def _root(self, node: fx.Node) -> fx.Node:
        while node in self._parent and self._parent[node] is not node:
            node = self._parent[node]
        return node

    def sharing(self, node: fx.Node) -> list[fx.Node]:
        root = self._root(node)
        return [other for other in self._nodes if self._root(other) is root]


def _aliased_arguments(node: fx.Node) -> list[fx.Node]:
    """Arguments whose memory the result may use. Schemas say so by alias sets: ``view(Tensor(a) self, …) -> Tensor(a)``."""
    if node.op != "call_function":
        return []
    if node.target in _MAY_RETURN_ITS_ARGUMENT:
        return [node.args[0]] if isinstance(node.args[0], fx.Node) else []
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    aliased = [value for argument, value in zip(schema.arguments, node.args, strict=False) if argument.alias_info is not None]
    return [value for value in aliased if isinstance(value, fx.Node)]
