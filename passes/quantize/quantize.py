"""``quantize``: a FLOAT program becomes a QDQ program, in which every value is rounded as the integers will round it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import fx

from qcompiler.calibration.statistics import Grouping, Observation, ObserverKind, ObserverSpec, StatisticRequest
from qcompiler.errors import CalibrationError
from qcompiler.ir import edit, elementwise
from qcompiler.ir.layers import channel_axis
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import QuantizedType, Stage, probability_type
from qcompiler.passes.quantize import whole_numbers
from qcompiler.passes.quantize.coding import Coding, coded_values
from qcompiler.passes.quantize.grouping import ValueGroups, Width, group_values
from qcompiler.passes.quantize.insertion import insert_coding, insert_rounding, replace_grouped_weight, replace_operand
from qcompiler.passes.quantize.parameters import (
    GroupedWeight,
    QuantizedConstant,
    accumulator_type,
    activation_type,
    quantize_binary_weight,
    quantize_constant,
    quantize_grouped_weight,
    quantize_weight,
    with_headroom,
)
from qcompiler.passes.quantize.precision import Bits, Precisions
from qcompiler.passes.quantize.rules import CONSUMES_CONSTANTS, NORMALIZATIONS, WEIGHT_AXIS, Role, role_of
from qcompiler.pipeline.contract import Lossy, Pass, PassContext, PassResult, Promise

_aten = torch.ops.aten

_BYTE = 8
_GROUPED_BITS = 4  # the most for which a factor of more than 1 fits int8 with every code, and still means something
_TABLE_BITS = 8  # rows of an embedding are int8

ProbabilityQuantizer = Literal["uniform", "log2", "log-sqrt2", "adalog", "shift-uniform-log2", "tanq", "twin-uniform"]
ActivationQuantizer = Literal["uniform", "adalog", "shift-uniform-log2", "tanq", "twin-uniform"]

Types = dict[tuple[fx.Node, Width], QuantizedType]


@dataclass(frozen=True)
class Quantize(Pass):
    """Post-training quantization from statistics.

    Options:
        w: bits of the weights, 1..8, symmetric in [-(2^(w-1) - 1), 2^(w-1) - 1]; 1: -1 and +1, times the channel's mean magnitude.
        a: bits of the activations, 1..8; unsigned and affine, or signed around 0 if ``symmetric``, which needs 2 bits.
        observer: how the range of an activation is estimated over the calibration data.
        groups: what becomes of group labels of calibration items (time steps, modalities), see ``ObserverSpec``.
        weight_observer: how the range of a weight is estimated from its numbers; of 1 bit none is.
        per_channel: one scale for each output channel of a weight, else one for all of it.
        weight_group: inputs that share a small integer factor beside their channel's scale, for weights of 2 to 4 bits
            (``arithmetic.groups``); 0: no factors. Transposed convolutions have none.
        residual_bits: bits of the residual stream, which leads to normalizations (LayerNorm, RMSNorm); up to ``a``: as all others.
        score_bits: bits of what a softmax reads; more than 8 need a softmax without table at lowering.
        function_bits: bits of what functions such as GELU, and gates (products of two computed values), alone read.
        probability_bits: bits of what a softmax gives, unsigned.
        edge_bits: bits of the weights and inputs of the first and the last layer with weights; none: as all others.
        probability_quantizer: how probabilities are rounded: to equal steps, or to the levels of ``passes/quantize/levels.py``.
        activation_quantizer: likewise for what a GELU gives.
        allow_float: full names of ops ("aten.sin.default") that stay in float, between a dequantize and a quantize.

    Biases stay in float here; lowering rounds them to int32 at the scale of the accumulator. ``Precision`` of single nodes
    overrides the bits, see ``precision``.
    """

    name: ClassVar[str] = "quantize"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.QDQ
    promise: ClassVar[Promise] = Lossy()

    w: int = 8
    a: int = 8
    observer: ObserverKind = "mse"
    groups: Grouping = "pooled"
    weight_observer: ObserverKind = "mse"
    symmetric: bool = False
    per_channel: bool = True
    weight_group: int = 0
    residual_bits: int = 16
    score_bits: int | None = None
    function_bits: int | None = None
    probability_bits: int | None = None
    edge_bits: int | None = None
    probability_quantizer: ProbabilityQuantizer = "uniform"
    activation_quantizer: ActivationQuantizer = "uniform"
    allow_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        limits = {"w": 8, "a": 8, "residual_bits": 16, "score_bits": 16, "function_bits": 8, "probability_bits": 8, "edge_bits": 8}
        for option, most in limits.items():
            bits = getattr(self, option)
            if bits is not None and not 1 <= bits <= most:
                raise CalibrationError(f"quantize: {option} must be 1..{most} bits, got {bits}")
            if bits == 1 and self.symmetric and option not in ("w", "probability_bits"):
                raise CalibrationError(f"quantize: {option}=1 has no integers on both sides of 0: use 2 bits, or symmetric=false")
        if self.weight_group < 0 or (self.weight_group and not self.per_channel):
            raise CalibrationError(
                f"quantize: weight_group={self.weight_group} needs a positive number of inputs and per_channel=true; 0 makes no groups"
            )

    def statistics(self, program: Program) -> Sequence[StatisticRequest]:
        groups = self.value_groups(program)
        precisions = Precisions(program.graph, groups, self.bits())
        requests = [
            StatisticRequest(node.name, self._observer(precisions.value(node, width).bits), _label(node, width))
            for node, width in _representatives(groups)
            if node.target is not _aten.softmax.int
        ]
        return [*requests, *whole_numbers.statistics(program)]

    def run(self, program: Program, context: PassContext) -> PassResult:
        result = edit.copy(program).replace(stage=Stage.QDQ)
        groups = self.value_groups(result)
        precisions = Precisions(result.graph, groups, self.bits())
        result = result.replace(inputs=whole_numbers.input_ranges(result, context.statistics))
        codings = coded_values(result, groups, context, self._codings())
        types = self._rounded_types(groups, precisions, context.statistics)
        coded = {(node, Width.NARROW): codings[owner].quantized for node, owner in groups.narrow.items() if owner in codings}
        types |= coded | {(node, width): found for node, found in whole_numbers.types(result).items() for width in Width}
        for node in list(result.graph.nodes):
            self._quantize_operands(node, groups, precisions, types)
        _note_types(groups, types)
        for node in groups.widths:
            _insert_roundings(node, groups, types, codings, self.name)
        islands = tuple(node.name for node in self._islands(result))
        edit.erase_dead(result)
        return PassResult(result.replace(islands=islands), modified=True, notes=tuple(_notes(groups, codings, islands)))

    # ---- what the options mean -------------------------------------------------------------------------------------------------

    def bits(self) -> Bits:
        """How many bits the options ask for, with those that are left out."""
        score, function, probability = (bits or self.a for bits in (self.score_bits, self.function_bits, self.probability_bits))
        return Bits(self.w, self.a, self.residual_bits, score, function, probability, self.edge_bits, self.symmetric)

    def value_groups(self, program: Program) -> ValueGroups:
        """Which values these options round."""
        return group_values(program.graph, self.residual_bits > self.a, frozenset(self._islands(program)))

    def coded_bits(self, value: fx.Node) -> int | None:
        """Bits of a value that is rounded to levels with unequal steps; None for any other."""
        kind_and_bits = self._codings().get(value.target)
        return kind_and_bits[1] if kind_and_bits is not None else None

    def _islands(self, program: Program) -> tuple[fx.Node, ...]:
        """The calls that the user wants in float: named here, or known from capture."""
        return tuple(
            node
            for node in program.graph.nodes
            if node.op == "call_function" and (node.name in program.islands or str(node.target) in self.allow_float)
        )

    def _codings(self) -> Mapping[object, tuple[str, int]]:
        """Op -> kind and bits of the quantizer with unequal steps for what it gives."""
        chosen = {
            _aten.softmax.int: (self.probability_quantizer, self.bits().probability),
            _aten.gelu.default: (self.activation_quantizer, self.a),
        }
        return {op: (kind, bits) for op, (kind, bits) in chosen.items() if kind != "uniform"}

    def _observer(self, bits: int) -> ObserverSpec:
        """Integers of more than 8 bits have room for everything that was seen."""
        if bits > _BYTE:
            return ObserverSpec("min-max", bits=bits, symmetric=True, groups=self.groups)
        return ObserverSpec(self.observer, bits=bits, symmetric=self.symmetric, groups=self.groups)

    # ---- types -----------------------------------------------------------------------------------------------------------------

    def _rounded_types(self, groups: ValueGroups, precisions: Precisions, statistics: Mapping[str, Observation]) -> Types:
        decided: Types = {}
        for node, width in _representatives(groups):
            integer = precisions.value(node, width)
            if node.target is _aten.softmax.int:
                decided[node, width] = probability_type(integer.bits)
                continue
            observation = statistics.get(_label(node, width))
            if observation is None:
                raise CalibrationError(f"no statistics of {describe(node)}: give calibration data")
            if integer.bits > _BYTE:
                decided[node, width] = activation_type(with_headroom(observation), integer, symmetric=True)
            else:
                decided[node, width] = activation_type(observation, integer, self.symmetric)
        narrow = {(node, Width.NARROW): decided[owner, Width.NARROW] for node, owner in groups.narrow.items()}
        return narrow | {(node, Width.WIDE): decided[owner, Width.WIDE] for node, owner in groups.wide.items()}

    def _quantize_operands(self, node: fx.Node, groups: ValueGroups, precisions: Precisions, types: Types) -> None:
        """Round the constants that ``node`` computes with; note the type of its result where that follows from the operands."""
        if node.op != "call_function" or node not in groups.widths or node in groups.without_integer_form:
            return
        if node.target in WEIGHT_AXIS:
            self._quantize_layer(node, groups, precisions, types)
        elif edit.is_call(node, _aten.embedding.default):
            self._quantize_table(node, types)
        elif node.target not in CONSUMES_CONSTANTS:
            self._quantize_constants(node, groups, precisions, types)
        if node in groups.exact:
            _derive_type(node, groups, types)

    def _quantize_constants(self, node: fx.Node, groups: ValueGroups, precisions: Precisions, types: Types) -> None:
        for constant in _constant_operands(node):
            values = edit.constant_value(constant)
            assert values is not None  # it is a constant
            wide = Width.WIDE in groups.widths[node] or (node.target is _aten.mul.Tensor and _normalizes(node.graph))
            integer = precisions.constant(Width.WIDE if wide and self.residual_bits > self.a else Width.NARROW)
            quantized = quantize_constant(values, integer, self.symmetric or integer.bits > _BYTE)
            replace_operand(node, constant, quantized, self.name)
            if node in groups.exact:
                types |= {(node, width): types.get((node, width), quantized.quantized) for width in groups.widths[node]}

    def _quantize_table(self, node: fx.Node, types: Types) -> None:
        """Rows of an embedding: one scale, so that they may be added; symmetric. No row is clipped: each may be all that a token says."""
        constant = edit.argument(node, "weight")
        values = edit.constant_value(constant)
        assert values is not None  # what role_of asks for
        spec = ObserverSpec("min-max", bits=_TABLE_BITS, symmetric=True)
        quantized = quantize_weight(values, None, None, spec)
        replace_operand(node, constant, quantized, self.name)
        types |= {(node, width): quantized.quantized for width in Width}

    def _quantize_layer(self, node: fx.Node, groups: ValueGroups, precisions: Precisions, types: Types) -> None:
        source, weight = node.args[0], node.args[1]
        assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)  # what role_of asks for
        input_type = types[source, groups.width_read(source, node)]
        rounded = self.round_weight(node, precisions.weight(node), input_type)
        if isinstance(rounded, GroupedWeight):
            replace_grouped_weight(node, weight, rounded, self.name)
        else:
            replace_operand(node, weight, rounded, self.name)
        if node in groups.internal:
            shape = node.meta["val"].shape
            axis = len(shape) + channel_axis(node)
            types[node, Width.NARROW] = accumulator_type(input_type, rounded.quantized, shape[axis], axis)

    def round_weight(self, layer: fx.Node, bits: int, input_type: QuantizedType | None) -> QuantizedConstant | GroupedWeight:
        """A layer's weight in so many bits, with factors for groups where the option asks for them; ``input_type`` bounds its bias."""
        weight, bias = edit.constant_value(layer.args[1]), edit.constant_value(edit.argument(layer, "bias"))
        assert weight is not None  # what role_of asks for
        axis = WEIGHT_AXIS[layer.target] if self.per_channel else None
        if bits == 1:
            return quantize_binary_weight(weight, bias, input_type, axis)
        spec = ObserverSpec(self.weight_observer, axis=axis, bits=bits, symmetric=True)
        if self.weight_factors(layer, bits):
            return quantize_grouped_weight(weight, bias, input_type, spec, self.weight_group)
        return quantize_weight(weight, bias, input_type, spec)

    def weight_factors(self, layer: fx.Node, bits: int) -> int:
        """How many integer factors a layer's weight of so many bits has: one for each output channel and group of inputs; 0: none."""
        weight = edit.constant_value(layer.args[1])
        assert weight is not None  # what role_of asks for
        channels, inputs = weight.shape[:2]
        grouped = 1 < bits <= _GROUPED_BITS and WEIGHT_AXIS[layer.target] == 0 and self.per_channel
        # With no more inputs than one group factors say no more than the scales of channels.
        return channels * -(-inputs // self.weight_group) if grouped and 0 < self.weight_group < inputs else 0


def _representatives(groups: ValueGroups) -> list[tuple[fx.Node, Width]]:
    narrow = [(node, Width.NARROW) for node in dict.fromkeys(groups.narrow.values())]
    return narrow + [(node, Width.WIDE) for node in dict.fromkeys(groups.wide.values())]


def _label(node: fx.Node, width: Width) -> str:
    return node.name if width is Width.NARROW else f"{node.name}, wide"


def _derive_type(node: fx.Node, groups: ValueGroups, types: Types) -> None:
    """The type of an exact value that has it from its operand."""
    source = node.args[0]
    assert isinstance(source, fx.Node)  # the op's tensor
    if (node, Width.NARROW) in types and (node, Width.WIDE) in types or source not in groups.widths:
        return
    base = types[source, groups.width_read(source, node)]
    if role_of(node) is Role.SCALE:
        base = whole_numbers.scaled(base, elementwise.scaling_factor(node))
    for width in groups.widths[node]:
        types.setdefault((node, width), base)


def _insert_roundings(node: fx.Node, groups: ValueGroups, types: Types, codings: Mapping[fx.Node, Coding], made_by: str) -> None:
    """Round a value for its readers: to the wide type, and from there to the narrow one for those who want it."""
    if node in codings:
        insert_coding(node, codings[node].levels, made_by)
        return
    narrow = {user for user in node.users if groups.width_read(node, user) is Width.NARROW}
    value = node
    if node in groups.wide:
        value = insert_rounding(node, types[node, Width.WIDE], made_by)
    if node in groups.narrow:
        only_narrow = node not in groups.wide and node not in groups.exact
        name = None if only_narrow else f"{node.name}_narrow"
        insert_rounding(value, types[node, Width.NARROW], made_by, name, None if only_narrow else narrow.__contains__)


def _note_types(groups: ValueGroups, types: Types) -> None:
    """Annotate every value: the wide type where it has both; an internal value with that of its reader."""
    noted: dict[fx.Node, QuantizedType] = {}
    for node in reversed(list(groups.widths)):
        found = types.get((node, Width.WIDE), types.get((node, Width.NARROW)))
        if found is None and node in groups.internal:  # it is seen only by its reader, which is rounded
            found = noted.get(next(iter(node.users)))
        if found is not None:
            noted[node] = node.meta["quantized"] = found


def _normalizes(graph: fx.Graph) -> bool:
    return any(node.target in NORMALIZATIONS for node in graph.nodes)


def _constant_operands(node: fx.Node) -> list[fx.Node]:
    """Float constants among the values that an op adds, multiplies, moves or concatenates."""
    return [operand for operand in node.all_input_nodes if operand.op == "get_attr" and operand.meta["val"].is_floating_point()]


def _notes(groups: ValueGroups, codings: Mapping[fx.Node, Coding], islands: Sequence[str]) -> list[str]:
    rounded, both = len({*groups.narrow, *groups.wide}), len({*groups.narrow} & {*groups.wide})
    notes = [f"{rounded} values rounded, {len(groups.internal)} kept exact inside fused layers and at outputs"]
    if groups.wide:
        notes.append(f"residual stream: {len(groups.wide)} values in the wide type, {both} of them in both types")
    notes += [f"{node.name}: {coding.kind} levels" for node, coding in codings.items()]
    for node in groups.without_integer_form:
        place = "left in float, as allowed" if node.name in islands else "left in float"
        reason = "" if node.name in islands else ": the op has no integer form"
        notes.append(f"{place}: {describe(node)}{reason}")
    return notes
