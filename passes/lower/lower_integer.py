"""``lower-integer``: a QDQ program becomes a program of integers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.errors import UnknownNameError, UnsupportedOpError
from qcompiler.ir import edit, elementwise, ranges
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import IntegerType, QuantizedType, Stage
from qcompiler.passes.lower import activations, arithmetic_ops, attention, layers, movement, pooling
from qcompiler.passes.lower.lowering import IntegerValue, Lowering, LoweringFunction, Unrounded, Value
from qcompiler.pipeline.contract import Lossy, Pass, PassContext, PassResult, Promise

_qc = torch.ops.qc

LOWERINGS: Mapping[object, LoweringFunction] = {
    **layers.LOWERINGS,
    **arithmetic_ops.LOWERINGS,
    **activations.LOWERINGS,
    **attention.LOWERINGS,
    **pooling.LOWERINGS,
    **movement.LOWERINGS,
}

REQUANTIZE_OPTIONS = ("auto", "high", "narrow", "exact64")


@dataclass(frozen=True)
class LowerInteger(Pass):
    """Each op between a dequantize and a quantize becomes integer ops; the float scales become shifts and multipliers.

    The integers that come out of a rounding differ from the QDQ program's by at most one: QDQ rounds a float32 sum, this an exact
    int32 sum times a dyadic factor. Input zero points, biases and activation bounds are folded without any loss.

    Options:
        requantize: form of the requantizations; ``auto`` takes ``narrow`` where its proven error is within ``narrow_tolerance``
            of the ideal 1/2 of an output step in every channel, else ``high``.
        narrow_tolerance: see above, in output steps.

    A layer with weights whose result is an output of the program stays in int32, with one scale for each channel.
    """

    name: ClassVar[str] = "lower-integer"
    takes: ClassVar[Stage] = Stage.QDQ
    gives: ClassVar[Stage] = Stage.INTEGER
    promise: ClassVar[Promise] = Lossy()

    requantize: str = "auto"
    narrow_tolerance: float = 0.02

    def __post_init__(self) -> None:
        if self.requantize not in REQUANTIZE_OPTIONS:
            raise UnknownNameError("form of requantization", self.requantize, REQUANTIZE_OPTIONS)

    def run(self, program: Program, context: PassContext) -> PassResult:
        result = edit.copy(program)
        lowering = Lowering(result.graph_module, self.requantize, self.narrow_tolerance)
        for node in list(result.graph.nodes):
            if node.op == "call_function":
                lowering.node = node
                lowering.values[node] = _lower(lowering, node)
        inputs = _input_specs(result)
        outputs = _connect_outputs(result, lowering)
        edit.erase_dead(result)
        result = result.replace(stage=Stage.INTEGER, inputs=inputs, outputs=outputs)
        ranges.annotate(result)
        forms = ", ".join(f"{count} {form}" for form, count in sorted(lowering.forms.items()))
        return PassResult(result, modified=True, notes=(f"requantizations: {forms or 'none'}",))


def _lower(lowering: Lowering, node: fx.Node) -> Value:
    if node.target is _qc.quantize.default:
        return _quantize(lowering, node)
    if node.target is _qc.dequantize.default:
        return _dequantize(lowering, node)
    if elementwise.is_function(node):
        return activations.function(lowering, node)
    lower = LOWERINGS.get(node.target)
    if lower is None:
        raise UnsupportedOpError(
            f"{describe(node)} has no integer form: replace it by supported ops in the model, or compute it after the program"
        )
    return lower(lowering, node)


def _quantize(lowering: Lowering, node: fx.Node) -> IntegerValue:
    """Where integers of a stated type come about: at an input, by the rounding that was waiting, or by a change of type."""
    source, quantized = node.args[0], _type_of(node)
    assert isinstance(source, fx.Node)  # the op's tensor
    if source.op == "placeholder":
        return _integer_input(lowering, source, quantized)
    value = lowering.values.get(source)
    if isinstance(value, Unrounded):
        return lowering.rounded(value.round(quantized), quantized)
    return lowering.rounded(lowering.converted(lowering.integers(source), quantized), quantized)


def _integer_input(lowering: Lowering, node: fx.Node, quantized: QuantizedType) -> IntegerValue:
    if node not in lowering.bounds:
        value = node.meta["val"]
        node.meta["val"] = value.new_empty(value.shape, dtype=quantized.integer.dtype)
        node.meta["quantized"] = quantized
        shape = [1] * node.meta["val"].ndim
        lowering.bounds[node] = ranges.Bounds(torch.full(shape, quantized.integer.low), torch.full(shape, quantized.integer.high))
    value = lowering.rounded(node, node.meta["quantized"])
    return lowering.rounded(lowering.converted(value, quantized), quantized)


def _dequantize(lowering: Lowering, node: fx.Node) -> Value:
    """Integers already; those of constants get their meaning here."""
    source = node.args[0]
    assert isinstance(source, fx.Node)  # the op's tensor
    if source in lowering.values:
        return lowering.values[source]
    quantized = _type_of(node)
    if any(zero_point != quantized.zero_point[0] for zero_point in quantized.zero_point):
        raise UnsupportedOpError(f"{describe(node)} has a zero point for each channel: quantize symmetrically, or per tensor")
    source.meta["quantized"] = quantized
    scale = torch.tensor(quantized.scale, dtype=torch.float64)
    scale = scale.reshape(()) if quantized.axis is None else scale
    return IntegerValue(source, scale, quantized.zero_point[0], quantized.integer)


def _type_of(node: fx.Node) -> QuantizedType:
    """The type that a quantize or dequantize states."""
    scale, zero_point, axis, bits, signed = node.args[1:]
    return QuantizedType(IntegerType(bits, signed), tuple(scale), tuple(zero_point), None if axis < 0 else axis)  # type: ignore[arg-type,operator]


def _input_specs(program: Program) -> tuple[ValueSpec, ...]:
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    return tuple(
        ValueSpec(spec.name, spec.dtype, spec.shape, node.meta.get("quantized"))
        for spec, node in zip(program.inputs, placeholders, strict=True)
    )


def _connect_outputs(program: Program, lowering: Lowering) -> tuple[ValueSpec, ...]:
    """Let the graph give integers, and say in the output specification what they mean."""
    output = program.graph.output_node()
    nodes, specs = [], []
    for spec, node in zip(program.outputs, output.args[0], strict=True):  # type: ignore[arg-type]  # a tuple of nodes
        lowering.node = output
        value = lowering.integers(node)
        quantized = value.node.meta.get("quantized")
        if quantized is None:
            raise UnsupportedOpError(f"output '{spec.name}', {describe(value.node)}, has no scale for each channel: quantize it")
        nodes.append(value.node)
        specs.append(ValueSpec(spec.name, spec.dtype, spec.shape, quantized))
    output.args = (tuple(nodes),)
    output.meta["val"] = tuple(node.meta["val"] for node in nodes)
    return tuple(specs)
