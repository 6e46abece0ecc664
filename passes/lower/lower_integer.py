"""``lower-integer``: a QDQ program becomes a program of integers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from qcompiler.arithmetic import NORMALIZE_FORMS, ROUNDINGS, SOFTMAX_FORMS
from qcompiler.errors import UnknownNameError, UnsupportedOpError
from qcompiler.ir import edit, elementwise, ranges
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.provenance import describe
from qcompiler.ir.quantized_constants import quantized_type
from qcompiler.ir.types import IntegerRange, QuantizedType, Stage
from qcompiler.passes.lower import activations, arithmetic_ops, attention, codes, islands, layers, movement, pooling, tokens
from qcompiler.passes.lower.lowering import Functions, IntegerValue, Lowering, LoweringFunction, OwnScale, Real, Unrounded, Value
from qcompiler.pipeline.contract import Lossy, Pass, PassContext, PassResult, Promise

_aten, _qc = torch.ops.aten, torch.ops.qc

LOWERINGS: Mapping[object, LoweringFunction] = {
    **layers.LOWERINGS,
    **arithmetic_ops.LOWERINGS,
    **activations.LOWERINGS,
    **attention.LOWERINGS,
    **pooling.LOWERINGS,
    **movement.LOWERINGS,
    **tokens.LOWERINGS,
    **codes.LOWERINGS,
}

REQUANTIZE_OPTIONS = ("auto", "high", "narrow", "exact64")
ACTIVATION_OPTIONS = ("table", "poly", "shift", "shift-gelu", "i-gelu", "auto")


@dataclass(frozen=True)
class LowerInteger(Pass):
    """Each op between a dequantize and a quantize becomes integer ops; the float scales become shifts and multipliers.

    The integers that come out of a rounding differ from the QDQ program's by at most one: QDQ rounds a float32 sum, this an exact
    int32 sum times a dyadic factor. Input zero points, biases and activation bounds are folded without any loss.

    Options:
        requantize: form of the requantizations; ``auto`` takes ``narrow`` where its proven error is within ``narrow_tolerance``
            of the ideal 1/2 of an output step in every channel, else ``high``.
        narrow_tolerance: see above, in output steps.
        softmax: ``table`` (8-bit scores), ``wide-table`` (8-bit scores, rounded as reals are; slower), ``poly``, ``shift`` (scores of up
            to 16 bits), or as a paper has it: ``shiftmax`` (I-ViT), ``i-softmax`` (I-BERT); ``auto``: ``wide-table`` for scores of 8
            bits, ``poly`` for more.
        activation: GELU, SiLU, sigmoid, tanh, exp and erf: ``table`` (8-bit inputs), ``poly``, ``shift`` (up to 16 bits), ``shift-gelu``
            (I-ViT; what is no GELU takes ``shift``), ``i-gelu`` (I-BERT: GELU, erf and exp; the rest ``poly``); ``auto``: ``table`` for
            inputs of 8 bits, ``poly`` for more.
        normalize: ``newton``, or ``i-layernorm`` (I-ViT), ``i-bert``, which ignore epsilon.
        rounding: of probabilities and of the entries of tables, ``nearest`` or ``floor``. The papers' softmax has its own, and so have
            requantizations: to nearest.
        allow_float: full names of ops ("aten.sin.default") that stay in float: islands between a dequantize and a quantize, which the
            notes list. Those that ``quantize`` left in float for this reason are known.

    A layer with weights whose result is an output of the program stays in int32, with one scale for each channel.
    """

    name: ClassVar[str] = "lower-integer"
    takes: ClassVar[Stage] = Stage.QDQ
    gives: ClassVar[Stage] = Stage.INTEGER
    promise: ClassVar[Promise] = Lossy()

    requantize: str = "auto"
    narrow_tolerance: float = 0.02
    softmax: str = "table"
    activation: str = "table"
    normalize: str = "newton"
    rounding: str = "nearest"
    allow_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {
            "form of requantization": (self.requantize, REQUANTIZE_OPTIONS),
            "form of softmax": (self.softmax, (*SOFTMAX_FORMS, "auto")),
            "form of activation": (self.activation, ACTIVATION_OPTIONS),
            "form of normalization": (self.normalize, NORMALIZE_FORMS),
            "rounding": (self.rounding, ROUNDINGS),
        }
        for what, (form, forms) in known.items():
            if form not in forms:
                raise UnknownNameError(what, form, forms)

    def run(self, program: Program, context: PassContext) -> PassResult:
        result = edit.copy(program)
        functions = Functions(self.softmax, self.activation, self.normalize, self.rounding)
        lowering = Lowering(result.graph_module, self.requantize, self.narrow_tolerance, functions)
        _declare_inputs(result, lowering)
        allowed = frozenset(node for node in result.graph.nodes if node.name in program.islands or str(node.target) in self.allow_float)
        for node in list(result.graph.nodes):
            if node.op == "call_function":
                lowering.node = node
                _visit(lowering, node, allowed)
        inputs = _input_specs(result)
        outputs = _connect_outputs(result, lowering)
        edit.erase_dead(result)
        result = result.replace(stage=Stage.INTEGER, inputs=inputs, outputs=outputs, islands=tuple(lowering.islands))
        ranges.annotate(result)
        return PassResult(result, modified=True, notes=tuple(_notes(lowering, result)))


def _visit(lowering: Lowering, node: fx.Node, allowed: frozenset[fx.Node]) -> None:
    """Lower a call, or leave it where it works on integers already."""
    if node.target is _aten.argmax.default:
        tokens.position_of_maximum(lowering, node)
    elif node in allowed:
        lowering.values[node] = islands.island(lowering, node)
        return
    elif _is_lowered(node):
        lowering.values[node] = _lower(lowering, node)
        return
    if isinstance(node.meta["val"], torch.Tensor):
        for operand in node.all_input_nodes:
            if operand.op == "get_attr":
                lowering.bounds_of(operand)
        lowering.bounds_of(node)


def _is_lowered(node: fx.Node) -> bool:
    """Whether a float goes in or comes out; the size of a float does not count."""
    if edit.is_call(node, _aten.sym_size.int):
        return False
    values = [node.meta["val"], *(operand.meta.get("val") for operand in node.all_input_nodes)]
    return any(isinstance(value, torch.Tensor) and value.is_floating_point() for value in values)


def _lower(lowering: Lowering, node: fx.Node) -> Value:
    if node.target is _qc.quantize.default:
        return _quantize(lowering, node)
    if node.target is _qc.dequantize.default:
        return _dequantize(lowering, node)
    if elementwise.is_function(node) and not elementwise.is_scaling(node):
        return activations.function(lowering, node)
    lower = LOWERINGS.get(node.target)
    if lower is None:
        raise UnsupportedOpError(
            f"{describe(node)} has no integer form: replace it by supported ops in the model, compute it after the program, or let it "
            f"stay in float with allow_float=('{node.target}',)"
        )
    return lower(lowering, node)


def _quantize(lowering: Lowering, node: fx.Node) -> IntegerValue:
    """Where integers of a stated type come about: at an input, by the rounding that was waiting, or by a change of type."""
    source, quantized = node.args[0], quantized_type(node)
    assert isinstance(source, fx.Node)  # the op's tensor
    if source.op == "placeholder":
        return _integer_input(lowering, source, quantized)
    value = lowering.values.get(source)
    if isinstance(value, OwnScale):
        return value
    if isinstance(value, Real):
        return islands.quantize(lowering, value, quantized)
    if isinstance(value, Unrounded):
        return lowering.rounded(value.round(quantized), quantized)
    return lowering.rounded(lowering.converted(lowering.integers(source), quantized), quantized)


def _integer_input(lowering: Lowering, node: fx.Node, quantized: QuantizedType) -> IntegerValue:
    if "quantized" not in node.meta:
        value = node.meta["val"]
        node.meta["val"] = value.new_empty(value.shape, dtype=quantized.integer.dtype)
        node.meta["quantized"] = quantized
        lowering.bounds[node] = _filled(node, IntegerRange(quantized.integer.low, quantized.integer.high))
    value = lowering.rounded(node, node.meta["quantized"])
    return lowering.rounded(lowering.converted(value, quantized), quantized)


def _dequantize(lowering: Lowering, node: fx.Node) -> Value:
    """Integers already; those of constants get their meaning here."""
    source = node.args[0]
    assert isinstance(source, fx.Node)  # the op's tensor
    known = lowering.values.get(source)
    if known is not None and edit.is_call(source, _qc.quantize.default):
        return known
    quantized = quantized_type(node)
    if any(zero_point != quantized.zero_point[0] for zero_point in quantized.zero_point):
        raise UnsupportedOpError(f"{describe(node)} has a zero point for each channel: quantize symmetrically, or per tensor")
    source = known.node if isinstance(known, IntegerValue) else source  # whole numbers that casts gave
    source.meta["quantized"] = quantized
    scale = torch.tensor(quantized.scale, dtype=torch.float64)
    scale = scale.reshape(()) if quantized.axis is None else scale
    return IntegerValue(source, scale, quantized.zero_point[0], quantized.integer)


def _declare_inputs(program: Program, lowering: Lowering) -> None:
    """Bounds of the integers that the user gives; what was noted of other inputs at QDQ is decided anew."""
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, program.inputs, strict=True):
        node.meta.pop("quantized", None)
        if not node.meta["val"].is_floating_point():
            lowering.bounds[node] = _filled(node, spec.range or ranges.dtype_range(node.meta["val"].dtype))


def _filled(node: fx.Node, interval: IntegerRange) -> ranges.Bounds:
    shape = [1] * node.meta["val"].ndim
    return ranges.Bounds(torch.full(shape, interval.low), torch.full(shape, interval.high))


def _input_specs(program: Program) -> tuple[ValueSpec, ...]:
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    return tuple(
        replace(spec, quantized=node.meta.get("quantized") if spec.dtype.is_floating_point else None)
        for spec, node in zip(program.inputs, placeholders, strict=True)
    )


def _connect_outputs(program: Program, lowering: Lowering) -> tuple[ValueSpec, ...]:
    """Let the graph give integers, and say in the output specification what they mean."""
    output = program.graph.output_node()
    nodes, specs = [], []
    for spec, node in zip(program.outputs, output.args[0], strict=True):  # type: ignore[arg-type]  # a tuple of nodes
        lowering.node = output
        result, quantized = _output(lowering, spec, node)
        nodes.append(result)
        specs.append(replace(spec, quantized=quantized))
    output.args = (tuple(nodes),)
    output.meta["val"] = tuple(node.meta["val"] for node in nodes)
    return tuple(specs)


def _output(lowering: Lowering, spec: ValueSpec, node: fx.Node) -> tuple[fx.Node, QuantizedType | None]:
    if not node.meta["val"].is_floating_point():
        known = lowering.values.get(node)
        return known.node if isinstance(known, IntegerValue) else node, None
    value = lowering.integers(node)
    if value.scale.numel() == 1:
        return value.node, replace(value.quantized, range=None)
    quantized = value.node.meta.get("quantized")
    if quantized is None:
        raise UnsupportedOpError(f"output '{spec.name}', {describe(value.node)}, has no scale for each channel: quantize it")
    return value.node, quantized


def _notes(lowering: Lowering, program: Program) -> list[str]:
    forms = ", ".join(f"{count} {form}" for form, count in sorted(lowering.forms.items()))
    notes = [f"requantizations: {forms or 'none'}"]
    nodes = {node.name: node for node in program.graph.nodes}
    if lowering.islands:
        notes.append(f"float islands, as allowed: {len(lowering.islands)}")
    return notes + [f"stays in float: {describe(nodes[name])}" for name in lowering.islands]
