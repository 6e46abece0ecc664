"""``quantize``: a FLOAT program becomes a QDQ program, in which every value is rounded as the integers will round it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.calibration.statistics import ObserverKind, ObserverSpec, StatisticRequest
from qcompiler.errors import CalibrationError
from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import IntegerType, QuantizedType, Stage, probability_type
from qcompiler.passes.quantize.grouping import ValueGroups, group_values
from qcompiler.passes.quantize.insertion import insert_rounding, replace_operand
from qcompiler.passes.quantize.parameters import accumulator_type, activation_type, quantize_constant, quantize_weight
from qcompiler.passes.quantize.rules import CONSUMES_CONSTANTS, WEIGHT_AXIS, role_of
from qcompiler.pipeline.contract import Lossy, Pass, PassContext, PassResult, Promise

_aten = torch.ops.aten


@dataclass(frozen=True)
class Quantize(Pass):
    """Post-training quantization from statistics.

    Options:
        w: bits of the weights, 2..8, symmetric in [-(2^(w-1) - 1), 2^(w-1) - 1].
        a: bits of the activations, 2..8; unsigned and affine, or signed around 0 if ``symmetric``.
        observer: how the range of an activation is estimated over the calibration data.
        weight_observer: how the range of a weight is estimated from its numbers.
        per_channel: one scale for each output channel of a weight, else one for all of it.

    Biases stay in float here; lowering rounds them to int32 at the scale of the accumulator.
    """

    name: ClassVar[str] = "quantize"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.QDQ
    promise: ClassVar[Promise] = Lossy()

    w: int = 8
    a: int = 8
    observer: ObserverKind = "mse"
    weight_observer: ObserverKind = "mse"
    symmetric: bool = False
    per_channel: bool = True

    def __post_init__(self) -> None:
        for option, bits in (("w", self.w), ("a", self.a)):
            if not 2 <= bits <= 8:
                raise CalibrationError(f"quantize: {option} must be 2..8 bits, got {bits}")

    def statistics(self, program: Program) -> Sequence[StatisticRequest]:
        groups = group_values(program.graph)
        spec = ObserverSpec(self.observer, bits=self.a, symmetric=self.symmetric)
        return [StatisticRequest(node.name, spec) for node in dict.fromkeys(groups.representative.values())]

    def run(self, program: Program, context: PassContext) -> PassResult:
        result = edit.copy(program).replace(stage=Stage.QDQ)
        graph = result.graph
        groups = group_values(graph)
        types = self._rounded_types(groups, context)
        for node in list(graph.nodes):
            self._quantize_constants(node, types)
        for node in reversed(graph.nodes):
            if node in groups.internal and node not in types:  # it is seen only by its reader, which is rounded
                types[node] = types[next(iter(node.users))]
        for node, quantized in types.items():
            node.meta["quantized"] = quantized
            if node in groups.representative:
                insert_rounding(node, quantized, self.name)
        edit.erase_dead(result)
        return PassResult(result, modified=True, notes=tuple(_notes(groups)))

    def _rounded_types(self, groups: ValueGroups, context: PassContext) -> dict[fx.Node, QuantizedType]:
        integer = IntegerType(self.a, signed=self.symmetric)
        decided: dict[fx.Node, QuantizedType] = {}
        for node in dict.fromkeys(groups.representative.values()):
            if node.target is _aten.softmax.int:
                decided[node] = probability_type(self.a)
                continue
            observation = context.statistics.get(node.name)
            if observation is None:
                raise CalibrationError(f"no statistics of {describe(node)}: give calibration data")
            decided[node] = activation_type(observation, integer, self.symmetric)
        return {node: decided[representative] for node, representative in groups.representative.items()}

    def _quantize_constants(self, node: fx.Node, types: dict[fx.Node, QuantizedType]) -> None:
        """Round the constants that ``node`` computes with, and note the type of its accumulator."""
        if node.op != "call_function" or role_of(node) is None:
            return
        if node.target in WEIGHT_AXIS:
            self._quantize_layer(node, types)
            return
        for constant in _constant_operands(node):
            values = edit.constant_value(constant)
            assert values is not None  # it is a constant
            replace_operand(node, constant, quantize_constant(values, IntegerType(self.a, self.symmetric), self.symmetric), self.name)

    def _quantize_layer(self, node: fx.Node, types: dict[fx.Node, QuantizedType]) -> None:
        source, weight_node = node.args[0], node.args[1]
        weight, bias = edit.constant_value(weight_node), edit.constant_value(edit.argument(node, "bias"))
        assert isinstance(source, fx.Node) and isinstance(weight_node, fx.Node) and weight is not None  # what role_of asks for
        axis = WEIGHT_AXIS[node.target] if self.per_channel else None
        spec = ObserverSpec(self.weight_observer, axis=axis, bits=self.w, symmetric=True)
        integers = quantize_weight(weight, bias, types[source], spec)
        replace_operand(node, weight_node, integers, self.name)
        if node not in types:
            shape = node.meta["val"].shape
            channels = shape[-1] if node.target is _aten.linear.default else shape[1]
            channel_axis = len(shape) - 1 if node.target is _aten.linear.default else 1
            types[node] = accumulator_type(types[source], integers.quantized, channels, channel_axis)


def _constant_operands(node: fx.Node) -> list[fx.Node]:
    """Float constants among the values that an op adds, multiplies or concatenates."""
    if node.target in CONSUMES_CONSTANTS:
        return []
    return [operand for operand in node.all_input_nodes if operand.op == "get_attr" and operand.meta["val"].is_floating_point()]


def _notes(groups: ValueGroups) -> list[str]:
    notes = [f"{len(groups.representative)} values rounded, {len(groups.internal)} kept exact inside fused layers and at outputs"]
    return notes + [f"left in float: {describe(node)}: the op has no integer form" for node in groups.without_integer_form]
