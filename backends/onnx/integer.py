"""Integer-only ONNX of an INTEGER program: QuantizeLinear of what is float, standard ops on integers, DequantizeLinear of the results."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from qcompiler.backends.onnx import hadamard, masks, movement, pooling, products, requantization, tables, traced
from qcompiler.backends.onnx.border import dequantize, quantize_exactly
from qcompiler.backends.onnx.graph import GraphWriter
from qcompiler.backends.onnx.program import ProgramWriter
from qcompiler.backends.onnx.writers import Writer
from qcompiler.errors import UnsupportedOpError, VerificationError
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.stages import target_names
from qcompiler.ir.types import Stage

_MODULES = (hadamard, masks, movement, pooling, products, requantization, tables, traced)
_KNOWN = target_names(Stage.INTEGER)
WRITERS: dict[str, Writer] = {name: writer for module in _MODULES for name, writer in module.WRITERS.items() if name in _KNOWN}

_FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"})


def write(program: Program, opset: int) -> ir.Graph:
    """The graph of an INTEGER program.

    Raises:
        UnsupportedOpError: a float island, or an op that ONNX cannot express.
    """
    if program.islands:
        raise UnsupportedOpError(
            f"the program has float islands ({', '.join(program.islands)}), for which an integer-only file has no place: "
            "write those ops otherwise, or export format 'qdq'"
        )
    return ProgramWriter(program, WRITERS, opset, _enter, _leave).graph()


def _enter(w: GraphWriter, value: ir.Value, spec: ValueSpec) -> ir.Value:
    return quantize_exactly(w, value, spec.quantized, len(spec.shape)) if spec.quantized else value


def _leave(w: GraphWriter, value: ir.Value, spec: ValueSpec) -> ir.Value:
    return dequantize(w, value, spec.quantized) if spec.quantized else value


def float_values(model: onnx.ModelProto) -> list[str]:
    """Names of float tensors between the first node that quantizes and the last that dequantizes; a value of unknown type counts.

    Floats may be: inputs of the graph, what is computed from them alone and read by QuantizeLinear, and what DequantizeLinear gives and
    is an output of the graph; scales.
    """
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=False)
    graph = inferred.graph
    floats = _float_types(graph)
    known = {value.name for value in (*graph.value_info, *graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    before, after = _before_border(graph), _after_border(graph)
    computed = [name for node in graph.node for name in node.output]
    return [name for name in computed if name not in known or (name in floats and name not in before | after)]


def check_integer_only(model: onnx.ModelProto) -> None:
    """Prove from the file itself that no float lies between its border nodes.

    Raises:
        VerificationError: naming the first such tensor and the node that it comes from.
    """
    found = float_values(model)
    if found:
        producer = next((node.doc_string for node in model.graph.node if found[0] in node.output), "")
        raise VerificationError(f"'{found[0]}' is a float tensor between the borders of the file ({producer}): report it, it must not be")


def _float_types(graph: onnx.GraphProto) -> set[str]:
    names = set()
    for value in (*graph.value_info, *graph.input, *graph.output):
        if onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type) in _FLOATS:
            names.add(value.name)
    return names


def _before_border(graph: onnx.GraphProto) -> set[str]:
    """What is computed from inputs and constants of the graph by a Mul that QuantizeLinear alone reads."""
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    return {
        name
        for node in graph.node
        if node.op_type == "Mul" and set(node.input) <= given
        for name in node.output
        if readers.get(name) == {"QuantizeLinear"}
    }


def _after_border(graph: onnx.GraphProto) -> set[str]:
    """What DequantizeLinear gives and only an Identity to an output reads, and those outputs."""
    outputs = {value.name for value in graph.output}
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    last = {name for node in graph.node if node.op_type == "Identity" and set(node.input) <= dequantized for name in node.output}
    readers = {name: [node for node in graph.node if name in node.input] for name in dequantized}
    passed = {name for name, nodes in readers.items() if all(set(node.output) <= outputs for node in nodes)}
    return passed | (last & outputs) | (dequantized & outputs)
