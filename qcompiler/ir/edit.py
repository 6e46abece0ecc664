"""Graph edits that every pass uses. They keep the conventions of a program: flat constants, ``val`` and ``provenance`` on
each node, names that depend on nothing but the order of the edits.

A pass starts with ``copy(program)``, edits the copy, and ends with ``erase_dead(program)``, which also recompiles the graph.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.node import map_arg

from qcompiler.errors import VerificationError
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import derive, describe

Target = Callable[..., Any]


def copy(program: Program) -> Program:
    """A program whose graph can be edited freely: new nodes with copied meta and equal names, the same tensors behind them."""
    source = program.graph_module
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in source.graph.nodes:
        mapping[node] = graph.node_copy(node, mapping.__getitem__)
    return program.replace(graph_module=fx.GraphModule(source, graph, class_name=source.__class__.__name__))


def is_call(node: object, *targets: Target) -> bool:
    """Whether ``node`` calls one of ``targets`` (op overloads such as ``torch.ops.aten.relu.default``)."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def calls(graph: fx.Graph, *targets: Target) -> Iterator[fx.Node]:
    """The calls of ``targets`` in topological order, as they stand now: the graph may be edited while iterating."""
    return iter([node for node in graph.nodes if is_call(node, *targets)])


def users_of(node: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes that read ``node``, in topological order."""
    if len(node.users) <= 1:
        return tuple(node.users)
    return tuple(user for user in node.graph.nodes if user in node.users)


def argument(node: fx.Node, name: str) -> Any:
    """The argument called ``name`` in the op's schema, given by position or by name or left to its default."""
    schema = getattr(node.target, "_schema", None)
    parameters = schema.arguments if schema is not None else ()
    for position, parameter in enumerate(parameters):
        if parameter.name == name:
            return node.args[position] if position < len(node.args) else node.kwargs.get(name, parameter.default_value)
    raise VerificationError(f"{describe(node)} has no argument '{name}': its schema is {schema}")


def constant_value(node: object) -> torch.Tensor | None:
    """The tensor behind a ``get_attr`` node; None for anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    owner: object = node.graph.owning_module
    for part in str(node.target).split("."):
        owner = getattr(owner, part, None)
    return owner.detach() if isinstance(owner, torch.Tensor) else None


def is_constant(node: object) -> TypeGuard[fx.Node]:
    """Whether ``node`` is a constant of the program."""
    return constant_value(node) is not None


def add_constant(
    graph_module: fx.GraphModule,
    name_hint: str,
    tensor: torch.Tensor,
    *,
    provenance_from: Sequence[fx.Node] = (),
    made_by: str = "",
) -> fx.Node:
    """Register ``tensor`` as a flat buffer and give a ``get_attr`` node for it, placed before the first call of the graph."""
    name = unique_attribute(graph_module, name_hint)
    graph_module.register_buffer(name, tensor.detach())
    graph = graph_module.graph
    with graph.inserting_before(_first_call(graph)):
        node = graph.create_node("get_attr", name, name=name)
    node.meta["val"] = fake_like(tensor, fake_mode_of(graph))
    node.meta["provenance"] = derive(provenance_from, made_by)
    return node


def unique_attribute(graph_module: fx.GraphModule, name_hint: str) -> str:
    """The hint as a flat identifier that names nothing of the module yet; the same edits always give the same name."""
    base = re.sub(r"\W", "_", name_hint).strip("_") or "constant"
    base = base if not base[0].isdigit() else f"constant_{base}"
    name, suffix = base, 0
    while hasattr(graph_module, name):
        suffix += 1
        name = f"{base}_{suffix}"
    return name


def insert_call(
    graph: fx.Graph,
    target: Target,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    before: fx.Node | None = None,
    after: fx.Node | None = None,
    name: str | None = None,
    provenance_from: Sequence[fx.Node] = (),
    made_by: str = "",
) -> fx.Node:
    """Insert ``target(*args, **kwargs)`` before or after a node (default: before the output) and compute its ``val``.

    ``provenance_from``: the nodes that the call stands for; ``made_by``: name of the pass. ``name`` is a hint, made unique.
    """
    if before is not None and after is not None:
        raise ValueError("insert_call takes 'before' or 'after', not both")
    place = graph.inserting_after(after) if after is not None else graph.inserting_before(before or graph.output_node())
    with place:
        node = graph.create_node("call_function", target, tuple(args), dict(kwargs or {}), name=name or op_name(target))
    node.meta["val"] = evaluate(node)
    node.meta["provenance"] = derive(provenance_from, made_by)
    return node


def op_name(target: Target) -> str:
    """The op without namespace and overload, by which its calls are named: ``conv2d`` for ``aten.conv2d.default``."""
    return str(target).split(".")[1] if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", "call")


def replace(old: fx.Node, new: fx.Node) -> None:
    """Let every user of ``old`` read ``new`` instead (but ``new`` itself, which may wrap it); erase ``old`` if nothing reads it."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    if not old.users and old.op != "placeholder":
        old.graph.erase_node(old)


def evaluate(node: fx.Node) -> Any:
    """What a call gives for the ``val`` of its arguments: shape and dtype by torch's own shape functions, nothing is computed."""

    def value_of(argument: fx.Node) -> Any:
        if "val" not in argument.meta:
            raise VerificationError(f"{describe(argument)} has no meta 'val': set it where the node is made (edit.insert_call does)")
        return argument.meta["val"]

    args, kwargs = map_arg(node.args, value_of), map_arg(node.kwargs, value_of)
    if not callable(node.target):
        raise VerificationError(f"{describe(node)} is not a call and cannot be evaluated")
    # Without the Python dispatcher composite kernels ask for sizes as numbers, which would fix the symbolic batch.
    with torch.no_grad(), fake_mode_of(node.graph), enable_python_dispatcher():
        return node.target(*args, **kwargs)


def propagate(graph_module: fx.GraphModule) -> None:
    """Recompute ``val`` of every constant and call from the placeholders down, after an edit that changed shapes or dtypes."""
    mode = fake_mode_of(graph_module.graph)
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            tensor = constant_value(node)
            if tensor is None:
                raise VerificationError(f"{describe(node)} names no tensor of the module: register it with edit.add_constant")
            node.meta["val"] = fake_like(tensor, mode)
        elif node.op == "call_function":
            node.meta["val"] = evaluate(node)


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode:
    """The one FakeTensorMode of a graph (its symbols are those of the batch); a fresh one while the graph has no values."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode(shape_env=ShapeEnv())


def fake_like(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """Shape, strides and dtype of ``tensor`` without its data."""
    with mode:
        return torch.empty_strided(tuple(tensor.size()), tuple(tensor.stride()), dtype=tensor.dtype)


def set_constant(graph_module: fx.GraphModule, node: fx.Node, name: str, tensor: torch.Tensor, hint: str, made_by: str) -> None:
    """Let the argument ``name`` of ``node`` be the constant ``tensor``: under the old name where nobody else reads the old value."""
    tensor, old = tensor.contiguous(), argument(node, name)
    if isinstance(old, fx.Node) and _is_read_once(old):
        setattr(graph_module, str(old.target), tensor)
        old.meta["val"] = fake_like(tensor, fake_mode_of(graph_module.graph))
        old.meta["provenance"] = derive([old], made_by)
        return
    set_argument(node, name, add_constant(graph_module, hint, tensor, provenance_from=[node], made_by=made_by))


def set_argument(node: fx.Node, name: str, value: object) -> None:
    """Give the argument ``name`` of a call; arguments before it that were left out get their defaults."""
    names = [each.name for each in node.target._schema.arguments]  # type: ignore[union-attr]  # calls of op overloads only
    position = names.index(name)
    args = [argument(node, each) for each in names[: max(position + 1, len(node.args))]]
    args[position] = value
    node.args = tuple(args)
    node.kwargs = {key: kept for key, kept in node.kwargs.items() if key not in names[: len(args)]}


def erase_dead(program: Program) -> bool:
    """Erase calls and constants that nothing reads and buffers that no node names, then ``finish``. Gives whether a node went."""
    graph = program.graph
    dead = 0
    for node in reversed(graph.nodes):
        if not node.users and node.op in ("call_function", "get_attr"):
            graph.erase_node(node)
            dead += 1
    _drop_unused_tensors(program.graph_module)
    finish(program.graph_module)
    return dead > 0


def finish(graph_module: fx.GraphModule) -> None:
    """Check the graph's own consistency (order, owners, names) and compile it to Python; last step of every edit."""
    graph_module.graph.lint()
    graph_module.recompile()


def _drop_unused_tensors(graph_module: fx.GraphModule) -> None:
    named = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*graph_module.named_buffers(), *graph_module.named_parameters()) if name not in named]:
        parent, _, leaf = name.rpartition(".")
        delattr(graph_module.get_submodule(parent), leaf)
    graph_module.delete_all_unused_submodules()


def _is_read_once(constant: fx.Node) -> bool:
    same = [node for node in constant.graph.nodes if node.op == "get_attr" and node.target == constant.target]
    return same == [constant] and len(constant.users) == 1


def _first_call(graph: fx.Graph) -> fx.Node:
    first: fx.Node = next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
    return first
