"""From a ``torch.export`` program to a Program at stage FLOAT: pure, flat, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from qcompiler.capture.batch_dimension import separate_batch
from qcompiler.capture.constants import evaluate_constants, evaluate_sizes
from qcompiler.capture.counting import replace_counting
from qcompiler.capture.dynamic import Resolved
from qcompiler.capture.finite import check_finite
from qcompiler.capture.functionalize import functionalize
from qcompiler.capture.one_hot import replace_one_hot
from qcompiler.errors import CaptureError, QCompilerError, UnsupportedOpError
from qcompiler.ir import edit
from qcompiler.ir.batch import check_independent_samples
from qcompiler.ir.float_ops import FLOAT_OPS
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.provenance import Provenance, describe, provenance_of
from qcompiler.ir.sizes import Symbols, expression, specified, symbols_of
from qcompiler.ir.stages import QUANTIZATION_OPS
from qcompiler.ir.types import DynamicSize, Stage

Memory = tuple[int, torch.Size, tuple[int, ...]]  # address, shape, strides

_CONSTANT_INPUTS = frozenset({InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR})

# What torch.export leaves in a graph to check its own assumptions; shapes and dtypes are checked by Program and verifier.
_ASSERTIONS = frozenset(
    {
        torch.ops.aten._assert_tensor_metadata.default,
        torch.ops.aten._assert_scalar.default,
        torch.ops.aten._assert_async.msg,
        torch.ops.aten.sym_constrain_range_for_size.default,
    }
)

_HINTS: Mapping[str, str] = {
    "cond": "control flow on tensors is not compiled: use torch.where or clamp",
    "map_impl": "loops over tensors are not compiled: write them out",
    "wrap_with_set_grad_enabled": "export the module under torch.no_grad(), or capture the module itself",
    **dict.fromkeys(
        ("lstm", "gru", "rnn_tanh", "rnn_relu"),
        "export the model to ONNX with a batch of 1: recurrent ops of a known number of steps are written out there",
    ),
    "item": "a number must not depend on the values of a tensor: keep it a tensor or make it an attribute",
}
_GENERAL_HINT = "write it with ops of docs/capture.md, or keep that part of the model outside"


def program_from_exported(exported: ExportedProgram, dynamic: Resolved | None = None, allow_float: Iterable[str] = ()) -> Program:
    """The program of an exported one, at stage FLOAT, or QDQ if it was quantized before; its weights are copied.

    ``dynamic``: its dynamic sizes, where their names are known; ``allow_float``: full names of ops ("aten.sin.default") that may be in the
    program though stage FLOAT does not have them.

    Raises:
        CaptureError, UnsupportedOpError: as ``qcompiler.capture.capture`` says.
    """
    graph_module = _pure_graph_module(exported)
    graph = graph_module.graph
    names, outputs = _outputs(exported, graph)
    unshaped = tuple(ValueSpec(name, node.meta["val"].dtype, ()) for name, node in zip(names, outputs, strict=True))
    program = Program(graph_module, _stage(graph), _input_specs(exported, graph, dynamic), unshaped)
    edit.erase_dead(program)
    islands = _check_ops(graph, frozenset(allow_float))
    check_finite(graph)
    check_independent_samples(program)
    symbols = symbols_of(program)
    return program.replace(
        islands=islands, outputs=tuple(_value_spec("output", name, node, symbols) for name, node in zip(names, outputs, strict=True))
    )


def _stage(graph: fx.Graph) -> Stage:
    """QDQ for models that were quantized before: ONNX files have ``qc.quantize`` and ``qc.dequantize``."""
    return Stage.QDQ if any(node.target in QUANTIZATION_OPS for node in graph.nodes) else Stage.FLOAT


def _pure_graph_module(exported: ExportedProgram) -> fx.GraphModule:
    """No writes, nothing computed from constants or sizes that passes cannot fold, the batch in a dimension of its own."""
    graph_module = _flat_graph_module(exported)
    graph, batch = graph_module.graph, _batch(graph_module.graph)
    evaluate_constants(graph_module)
    functionalize(graph)
    _name_squeezed_dimensions(graph)
    replace_counting(graph)
    replace_one_hot(graph)
    evaluate_sizes(graph_module, exported.range_constraints, batch)
    return graph_module if batch is None else separate_batch(graph_module, batch)


def _batch(graph: fx.Graph) -> sympy.Expr | None:
    """The symbol of dimension 0 of the first input; None where it is a number."""
    first = next((node for node in graph.nodes if node.op == "placeholder"), None)
    shape = () if first is None else first.meta["val"].shape
    return shape[0].node.expr if shape and isinstance(shape[0], torch.SymInt) else None


def _flat_graph_module(exported: ExportedProgram) -> fx.GraphModule:
    """The exported graph with parameters, buffers and lifted constants as flat buffers, each named once, at its first use."""
    graph_module = fx.GraphModule(torch.nn.Module(), fx.Graph(), class_name="Program")
    graph = graph_module.graph
    constants = _constants(exported)
    mapping: dict[fx.Node, fx.Node] = {}
    names: dict[Memory, str] = {}

    def copied(node: fx.Node) -> fx.Node:
        if node not in mapping:
            mapping[node] = _constant_node(graph_module, node, *constants[node.name], names)
        return mapping[node]

    for node in exported.graph.nodes:
        if node.name in constants or node.target in _ASSERTIONS:
            continue
        _check_node(node)
        if node.op == "output":
            graph.output(tuple(copied(value) for value in _user_outputs(exported, node)))
            continue
        mapping[node] = _with_meta(graph.node_copy(node, copied), node)
    return graph_module


def _constants(exported: ExportedProgram) -> dict[str, tuple[str, torch.Tensor]]:
    """Placeholder name -> (dotted name in the module, tensor) of everything that is not an input of the user."""
    result: dict[str, tuple[str, torch.Tensor]] = {}
    for spec in exported.graph_signature.input_specs:
        _check_input(spec)
        if spec.kind in _CONSTANT_INPUTS:
            name = spec.target or spec.arg.name
            tensor = exported.state_dict[name] if name in exported.state_dict else exported.constants[name]
            result[spec.arg.name] = (name, tensor)
    return result


def _check_input(spec: InputSpec) -> None:
    if spec.kind in _CONSTANT_INPUTS:
        return
    if spec.kind is not InputKind.USER_INPUT:
        raise CaptureError(f"input '{spec.arg.name}' is a {spec.kind.name.lower().replace('_', ' ')}: every input must be a tensor")
    if isinstance(spec.arg, ConstantArgument):
        raise CaptureError(
            f"input '{spec.arg.name}' is the constant {spec.arg.value!r}: every input must be a tensor; fix it inside the module"
        )


def _check_node(node: fx.Node) -> None:
    if node.op not in ("placeholder", "call_function", "output"):
        raise CaptureError(f"{describe(node)} is a part of control flow: it is not compiled; use torch.where or clamp")
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and value.dtype.is_floating_point and value.dtype is not torch.float32:
        raise CaptureError(f"{describe(node)} is {str(value.dtype).removeprefix('torch.')}: convert the model and its inputs with .float()")
    if free_unbacked_symbols(node.meta.get("val")):
        raise CaptureError(
            f"{describe(node)} gives a shape or number that depends on values: sizes must follow from the shapes of the inputs"
        )


def _constant_node(graph_module: fx.GraphModule, node: fx.Node, dotted: str, tensor: torch.Tensor, names: dict[Memory, str]) -> fx.Node:
    """A ``get_attr`` node for what the placeholder ``node`` stood for. Tied weights (the same memory) are one buffer."""
    key = (tensor.data_ptr(), tensor.shape, tensor.stride())
    if key not in names:
        names[key] = edit.unique_attribute(graph_module, dotted)
        graph_module.register_buffer(names[key], tensor.detach().clone(memory_format=torch.contiguous_format))
    created = graph_module.graph.create_node("get_attr", names[key], name=names[key])
    created.meta["val"] = node.meta["val"]
    created.meta["provenance"] = Provenance(module_path=dotted.rpartition(".")[0])
    return created


def _with_meta(created: fx.Node, origin: fx.Node) -> fx.Node:
    # torch.export inserts sym_size itself and notes its own source line.
    provenance = Provenance() if edit.is_call(origin, torch.ops.aten.sym_size.int) else provenance_of(origin)
    created.meta = {"val": origin.meta["val"], "provenance": provenance}
    return created


def _user_outputs(exported: ExportedProgram, node: fx.Node) -> list[fx.Node]:
    """The nodes of the user's outputs, in order. Writes into buffers or inputs that torch lists as outputs too are left out or declined."""
    values = node.args[0]
    assert isinstance(values, tuple | list)  # the output convention of torch.export
    outputs = []
    for spec, value in zip(exported.graph_signature.output_specs, values, strict=True):
        _check_output(spec)
        if spec.kind is OutputKind.USER_OUTPUT:
            outputs.append(value)
    return outputs


def _check_output(spec: OutputSpec) -> None:
    if spec.kind is OutputKind.BUFFER_MUTATION:
        raise CaptureError(f"the model writes into its buffer '{spec.target}': a program keeps nothing from call to call")
    if spec.kind is OutputKind.USER_OUTPUT and not isinstance(spec.arg, TensorArgument):
        value = getattr(spec.arg, "value", spec.arg)
        raise CaptureError(f"the model returns {value!r} among its outputs: every output must be a tensor")


def _name_squeezed_dimensions(graph: fx.Graph) -> None:
    """``x.squeeze()`` would squeeze the batch too where it is 1: say which dimensions it squeezed when the model was traced."""
    for node in edit.calls(graph, torch.ops.aten.squeeze.default):
        shape = node.all_input_nodes[0].meta["val"].shape
        node.target = torch.ops.aten.squeeze.dims
        node.args = (node.args[0], [dim for dim, size in enumerate(shape) if isinstance(size, int) and size == 1])


def _check_ops(graph: fx.Graph, allowed: frozenset[str]) -> tuple[str, ...]:
    """Decline ops that stage FLOAT does not have; the names of those that the user allows."""
    islands = []
    for node in graph.nodes:
        hint = _reason_unsupported(node) if node.op == "call_function" else None
        if hint is not None and str(node.target) in allowed and _is_functional(node):
            islands.append(node.name)
        elif hint is not None:
            raise UnsupportedOpError(f"{describe(node)} is not supported: {hint}{_option(node)}")
    return tuple(islands)


def _option(node: fx.Node) -> str:
    if not _is_functional(node) or node.target in FLOAT_OPS:
        return ""
    return f', or leave it in float with allow_float=("{node.target}",)'


def _is_functional(node: fx.Node) -> bool:
    """Whether the op is one of aten (or of a library) that gives one tensor and changes none."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.is_mutable and isinstance(node.meta["val"], torch.Tensor)


def _reason_unsupported(node: fx.Node) -> str | None:
    """What the user can do about an op that the FLOAT stage does not have, in this form at least; None if it has it."""
    if node.target in QUANTIZATION_OPS:
        return None
    if node.target not in FLOAT_OPS:
        return _HINTS.get(_packet(node), _GENERAL_HINT)
    if edit.is_call(node, torch.ops.aten.dropout.default, torch.ops.aten.feature_dropout.default) and edit.argument(node, "train"):
        return "it is active in evaluation mode and makes outputs random; pass training=self.training"
    if edit.is_call(node, torch.ops.aten.batch_norm.default) and edit.argument(node, "training"):
        return "it normalizes by the batch at hand, which mixes its samples; train it with track_running_stats=True"
    if edit.is_call(node, torch.ops.aten.pad.default) and edit.argument(node, "mode") != "constant":
        return f"mode '{edit.argument(node, 'mode')}' is not compiled; pad with zeros or another constant"
    return None


def _packet(node: fx.Node) -> str:
    """``dropout`` of ``aten.dropout.default``."""
    name = getattr(node.target, "_schema", None)
    return str(name.name).rpartition("::")[2] if name is not None else getattr(node.target, "__name__", str(node.target))


def _input_specs(exported: ExportedProgram, graph: fx.Graph, dynamic: Resolved | None) -> tuple[ValueSpec, ...]:
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    symbols: dict[sympy.Symbol, DynamicSize | None] = {}
    for position, node in enumerate(nodes):
        for dim, size in enumerate(node.meta["val"].shape):
            symbol = expression(size)
            if isinstance(size, torch.SymInt) and symbol.is_Symbol and symbol not in symbols:
                given = dynamic[position].get(dim) if dynamic is not None else None
                is_batch = given is None and dim == 0 and None not in symbols.values()
                symbols[symbol] = None if is_batch else given or _bounded_size(exported, symbol, node, dim)
    return tuple(_value_spec("input", node.name, node, symbols) for node in nodes)


def _bounded_size(exported: ExportedProgram, symbol: sympy.Symbol, node: fx.Node, dim: int) -> DynamicSize:
    """A symbol of an exported program, which has bounds but has lost its name."""
    bounds = exported.range_constraints.get(symbol)
    if bounds is None or not bounds.upper.is_Integer:
        raise CaptureError(
            f"dimension {dim} of input '{node.name}' has no maximum, and memory is planned for it: export with Dim(name, min=..., max=...)"
        )
    return DynamicSize(f"{node.name}_{dim}", max(1, int(bounds.lower)), int(bounds.upper))


def _outputs(exported: ExportedProgram, graph: fx.Graph) -> tuple[list[str], tuple[fx.Node, ...]]:
    nodes: Any = graph.output_node().args[0]  # _flat_graph_module made it a tuple of nodes
    return _output_names(exported, len(nodes)), nodes


def _output_names(exported: ExportedProgram, count: int) -> list[str]:
    """``output`` of a model that returns one tensor, ``output_0``, … of a tuple, the keys of a dictionary (nested: joined by ``_``)."""
    tree = exported.call_spec.out_spec
    if tree is None or tree.num_leaves != count:
        return ["output"] if count == 1 else [f"output_{position}" for position in range(count)]
    paths = [path for path, _ in pytree.tree_flatten_with_path(pytree.tree_unflatten(range(count), tree))[0]]
    return [_output_name(path) for path in paths]


def _output_name(path: tuple[object, ...]) -> str:
    keys = [str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry)))) for entry in path]
    return "_".join(["output", *keys] if not keys or keys[0].isdigit() else keys)


def _value_spec(kind: str, name: str, node: fx.Node, symbols: Symbols) -> ValueSpec:
    value = node.meta["val"]
    try:
        return ValueSpec(name, value.dtype, tuple(specified(size, symbols) for size in value.shape))
    except QCompilerError as error:
        raise CaptureError(f"{kind} '{name}': {error}; give it a shape of its own dimensions in the model") from error
