"""From an ONNX file to a checked ``Model``: read, inlined, its types inferred, every defect one line.

1. The protobuf is parsed; external data stay in their files.
2. ``onnx.checker`` looks at the structure: order, names, attributes, known ops.
3. ``onnx.inliner`` replaces calls of the model's own functions, and of ops that ONNX itself defines as functions and that have no
   converter here, by their bodies.
4. ``onnx.shape_inference`` checks the types of all operands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, checker, defs, helper, inliner

from qcompiler.capture.onnx import control_flow, ops, registry
from qcompiler.capture.onnx.inference import inferred
from qcompiler.capture.onnx.model import Graph, Input, Model, Node
from qcompiler.capture.onnx.tensors import to_torch
from qcompiler.capture.onnx.types import dtype_of
from qcompiler.errors import CaptureError, UnsupportedOpError
from qcompiler.ir.types import IntegerRange

OLDEST_OPSET = 7
# Subgraphs within subgraphs: no real model comes near.
_DEEPEST = 32
_MICROSOFT = "com.microsoft"
_RANGE_OF, _RANGE = "qcompiler.range.", re.compile(r"(-?\d{1,10}) (-?\d{1,10})")
_NODE_IN_MESSAGE = re.compile(r"Name: (\S+)")


def load(source: str | Path | ModelProto) -> Model:
    """Read a model.

    Raises:
        CaptureError: the file is missing or damaged, the graph is not well-formed, an operand has another type than the op takes, external
            data are missing or outside of the model's folder.
        UnsupportedOpError: an op has neither a converter nor a definition by others.
    """
    ops.register_all()
    folder = None if isinstance(source, ModelProto) else Path(source).resolve().parent
    proto = source if isinstance(source, ModelProto) else _read(Path(source))
    name = proto.graph.name or "model" if isinstance(source, ModelProto) else Path(source).name
    try:
        opsets = _opsets(proto)
        _check_depth(proto.graph, 0)
        _check_external_data(proto, folder)
        imported = _with_imports(proto)
        _check(source if folder is not None and imported is proto else _without_external_data(imported))
        proto = imported
        proto = _inlined(proto, opsets)
        opsets = _opsets(proto)
        _check_ops(proto.graph, opsets)
        proto = inferred(proto)
        return _model(name, proto, opsets, folder)
    except CaptureError as error:
        error.within(name)
        raise


# ---- reading and checking ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> ModelProto:
    if not path.is_file():
        raise CaptureError(f"{path}: no such file")
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise CaptureError(f"{path}: not a readable ONNX file: it is truncated or damaged; export or copy it again") from error


def _opsets(proto: ModelProto) -> dict[str, int]:
    opsets = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in proto.opset_import}
    version, newest = opsets.get(""), defs.onnx_opset_version()
    if version is not None and not OLDEST_OPSET <= version <= newest:
        raise CaptureError(
            f"opset {version} is not read: opsets {OLDEST_OPSET} to {newest} are; convert the model with onnx.version_converter"
        )
    return opsets


def _with_imports(proto: ModelProto) -> ModelProto:
    """The model, or a copy that imports the domain of onnxruntime's ops, where the file uses it unsaid (NNCF's compressed weights)."""
    used = any(node.domain == _MICROSOFT for node in _nodes(proto.graph))
    if not used or any(entry.domain == _MICROSOFT for entry in proto.opset_import):
        return proto
    result = ModelProto()
    result.CopyFrom(proto)
    result.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))
    return result


def _check_depth(graph: GraphProto, depth: int) -> None:
    if depth > _DEEPEST:
        raise CaptureError(f"graph '{graph.name}' is nested more than {_DEEPEST} deep")
    for node in graph.node:
        for subgraph in _subgraphs(node):
            _check_depth(subgraph, depth + 1)


def _check_external_data(proto: ModelProto, folder: Path | None) -> None:
    """Before anything else opens such a file."""
    for tensor in _tensors(proto.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            to_torch(tensor, folder)


def _without_external_data(proto: ModelProto) -> ModelProto:
    """A copy for the checker, which looks for the files of a model that it gets without a path in the working directory.

    The model itself where it has no such files: it may be large.
    """
    if all(tensor.data_location != TensorProto.EXTERNAL for tensor in _tensors(proto.graph)):
        return proto
    result = ModelProto()
    result.CopyFrom(proto)
    for tensor in _tensors(result.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.dims[:] = [0]
    return result


def _check(source: str | Path | ModelProto) -> None:
    try:
        checker.check_model(source)
    except Exception as error:  # C++ exceptions of several kinds
        raise CaptureError(f"not a valid ONNX model: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """The message, and of the context that the checker prints behind it the node's name."""
    message, _, context = str(error).partition("==> Context:")
    text = " ".join(message.split()) or type(error).__name__
    found = _NODE_IN_MESSAGE.search(context)
    return f"{text} (node '{found[1]}')" if found and found[1] not in text else text


def _check_ops(graph: GraphProto, opsets: Mapping[str, int]) -> None:
    for position, node in enumerate(graph.node):
        if _converter(node, opsets) is None and node.op_type not in control_flow.OPS:
            what = f"node '{node.name or f'{node.op_type}_{position}'}' ({_domain(node) + '.' if _domain(node) else ''}{node.op_type})"
            raise UnsupportedOpError(f"{what} is not supported: docs/onnx-support.md lists the ops that are; keep that part outside")
        for subgraph in _subgraphs(node):
            _check_ops(subgraph, opsets)


def _converter(node: NodeProto, opsets: Mapping[str, int]) -> registry.Converter | None:
    return registry.find(_domain(node), node.op_type, opsets.get(_domain(node), 1))


def _domain(node: NodeProto) -> str:
    return "" if node.domain == "ai.onnx" else str(node.domain)


# ---- functions and types ----------------------------------------------------------------------------------------------------------


def _inlined(proto: ModelProto, opsets: Mapping[str, int]) -> ModelProto:
    try:
        if proto.functions:
            proto = inliner.inline_local_functions(proto)
        for _ in range(_DEEPEST):  # the body of a function may call another
            others = [node for node in _nodes(proto.graph) if _is_defined_by_others(node, opsets)]
            if not others:
                break
            selected = sorted({(_domain(node), node.op_type) for node in others})
            proto = inliner.inline_selected_functions(_prepared(proto, opsets), selected, inline_schema_functions=True)
        return proto
    except CaptureError:
        raise
    except Exception as error:  # C++ exceptions of several kinds
        raise CaptureError(f"its functions cannot be inlined: {_one_line(error)}") from error


def _prepared(proto: ModelProto, opsets: Mapping[str, int]) -> ModelProto:
    """What the inliner does not find out by itself: types of initializers and of values, attributes that are not given."""
    prepared = inferred(proto)
    known = {value.name for value in (*prepared.graph.value_info, *prepared.graph.input, *prepared.graph.output)}
    for tensor in prepared.graph.initializer:
        if tensor.name not in known:
            prepared.graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    # It aborts on an optional operand that is not given, whose type it looks up though nothing reads it.
    if "" not in known:
        prepared.graph.value_info.append(helper.make_tensor_value_info("", TensorProto.FLOAT, None))
    for node in _nodes(prepared.graph):
        if _is_defined_by_others(node, opsets):
            schema = defs.get_schema(node.op_type, opsets.get(_domain(node), 1), _domain(node))
            given = {attribute.name for attribute in node.attribute}
            defaults = (attribute.default_value for name, attribute in schema.attributes.items() if name not in given)
            node.attribute.extend(default for default in defaults if default.name)
    return prepared


def _is_defined_by_others(node: NodeProto, opsets: Mapping[str, int]) -> bool:
    """Whether ONNX defines the op by other ops, and only so can we convert it."""
    domain = _domain(node)
    if _converter(node, opsets) is not None or not defs.has(node.op_type, domain):
        return False
    try:
        schema = defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
    except defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]  # not in onnx's stubs


# ---- from protobuf to plain data --------------------------------------------------------------------------------------------------


def _model(name: str, proto: ModelProto, opsets: Mapping[str, int], folder: Path | None) -> Model:
    graph = _graph(proto.graph, folder)
    stated = _ranges(proto)
    inputs = tuple(_input(value, stated) for value in proto.graph.input if value.name not in graph.constants)
    values = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values if value.name and value.type.HasField("tensor_type")}
    types |= {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    return Model(name, graph, inputs, opsets, types)


def _graph(proto: GraphProto, folder: Path | None) -> Graph:
    if proto.sparse_initializer:
        raise CaptureError(f"graph '{proto.name}' has sparse initializers: store them dense")
    constants = {tensor.name: to_torch(tensor, folder) for tensor in proto.initializer}
    return Graph(
        tuple(value.name for value in proto.input if value.name not in constants),
        tuple(value.name for value in proto.output),
        tuple(_node(node, position, folder) for position, node in enumerate(proto.node)),
        constants,
    )


def _node(proto: NodeProto, position: int, folder: Path | None) -> Node:
    name = proto.name or f"{proto.op_type}_{position}"
    try:
        attributes = {attribute.name: _attribute(attribute, folder) for attribute in proto.attribute}
    except CaptureError as error:
        error.within(f"node '{name}' ({proto.op_type})")
        raise
    return Node(name, proto.op_type, _domain(proto), tuple(proto.input), tuple(proto.output), attributes)


def _attribute(proto: AttributeProto, folder: Path | None) -> Any:
    if proto.ref_attr_name:
        raise CaptureError(f"attribute '{proto.name}' refers to one of a function, and stands outside of any")
    if proto.type == AttributeProto.TENSOR:
        return to_torch(proto.t, folder)
    if proto.type == AttributeProto.GRAPH:
        return _graph(proto.g, folder)
    value = helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if proto.type == AttributeProto.STRINGS:
        return [item.decode(errors="replace") for item in value]
    return list(value) if isinstance(value, list | tuple) or hasattr(value, "append") else value


def _ranges(proto: ModelProto) -> dict[str, IntegerRange]:
    """Integer inputs whose range the metadata state: ``qcompiler.range.mask`` = ``0 1``."""
    found = {}
    for entry in proto.metadata_props:
        bounds = _RANGE.fullmatch(entry.value)
        if entry.key.startswith(_RANGE_OF) and bounds is not None:
            found[entry.key.removeprefix(_RANGE_OF)] = IntegerRange(int(bounds[1]), int(bounds[2]))
    return found


def _input(proto: onnx.ValueInfoProto, stated: Mapping[str, IntegerRange]) -> Input:
    what = f"input '{proto.name}'"
    if not proto.type.HasField("tensor_type"):
        raise CaptureError(f"{what} is no tensor: every input must be a tensor")
    tensor = proto.type.tensor_type
    if not tensor.HasField("shape"):
        raise CaptureError(f"{what} has no shape: give it one (its sizes may be open) when the model is exported")
    sizes = tuple(_size(dim) for dim in tensor.shape.dim)
    if any(isinstance(size, int) and size < 1 for size in sizes):
        raise CaptureError(f"{what} has the shape {list(sizes)}: sizes must be positive")
    return Input(proto.name, dtype_of(tensor.elem_type, what), sizes, stated.get(proto.name))


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """-1, "?" and no name at all are how exporters write a size that is open and equal to no other."""
    if dim.HasField("dim_value"):
        return None if dim.dim_value == -1 else int(dim.dim_value)
    return None if dim.dim_param in ("", "?") else str(dim.dim_param)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for subgraph in _subgraphs(node):
            yield from _nodes(subgraph)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
        for subgraph in _subgraphs(node):
            yield from _tensors(subgraph)
