"""``quantize-rest``: what a tool left in float between the pairs of its file is rounded too.

Tools quantize what they have kernels for. The sum that a LayerNorm reads, the scores of a softmax, the mean of all tokens stay in float in
their files; in an integer program they need a scale too. It follows without data from the scales that the file has (``real_ranges``): a
sum of two values of 8 bits lies in the sum of their ranges, a normalized row within sqrt(N). 16 bits over such a range leave steps that are
far finer than those of the 8 bits around it, so that the program computes what the file says.

Rounded are results that wait for their rounding, and int32 sums, where something reads them that reads integers:

1. sums, normalizations, softmax, functions: for all but a quantize, a bound, movement and a change of scale on the way to one
2. sums of products: for all but these, and all but an addition (``qc.add`` reads one int32 operand), a sum and the program's outputs

Bits: 16 at most; of what linear layers and matrix products read as many as leave their sums in int32; 8 for convolution, pooling and
functions that are tables; probabilities 8. Constants in float that are added, multiplied or joined get 16 bits by their own largest number.
Weights in float (of layers that a tool left out, or with a scale for each block, of which no sum of integers has one) get 8 bits, with one
scale for each output channel.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.calibration.statistics import Observation, ObserverSpec
from qcompiler.ir import edit, elementwise
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import INT8, INT16, INT32, UINT8, IntegerType, QuantizedType, Stage, probability_type
from qcompiler.passes.quantize.insertion import insert_rounding, replace_operand
from qcompiler.passes.quantize.parameters import activation_type, quantize_constant, quantize_weight
from qcompiler.passes.quantize.real_ranges import RealRange, real_ranges
from qcompiler.passes.quantize.rules import REDUCTIONS, ROLES, SUMS, WEIGHT_AXIS, Role
from qcompiler.pipeline.contract import Lossy, Pass, PassContext, PassResult

_aten, _qc = torch.ops.aten, torch.ops.qc


class Form(enum.Enum):
    """What lowering has of a value: integers of a type, an int32 sum, or a computation that waits for its rounding."""

    INTEGERS = enum.auto()
    ACCUMULATOR = enum.auto()
    WAITING = enum.auto()


_ACCUMULATORS = frozenset(
    {*WEIGHT_AXIS, *REDUCTIONS, _aten.matmul.default, _aten.mul.Tensor, _aten.div.Tensor, _aten.avg_pool2d.default}
    | {_aten.adaptive_avg_pool2d.default}
)
_WAITING = frozenset(
    {*SUMS, _aten.cat.default, _aten.softmax.int, _aten.layer_norm.default, _aten.rms_norm.default, _aten.prelu.default}
    | {_qc.l2_normalize.default}
)


# Functions that lowering computes from 16 bits.
_COMPUTED = frozenset(
    {_aten.gelu.default, _aten.silu.default, _aten.sigmoid.default, _aten.tanh.default, _aten.exp.default, _aten.erf.default}
)
_TAKES_BYTES = frozenset(
    {_aten.avg_pool2d.default, _aten.adaptive_avg_pool2d.default, _aten.prelu.default, _aten.conv2d.default, _aten.conv_transpose2d.input}
)
# Products of two such, 511 of them, fit int32.
_OPERAND_BITS = 12
_TAKES_CONSTANTS = frozenset({*SUMS, _aten.mul.Tensor, _aten.cat.default})


@dataclass(frozen=True)
class QuantizeRest(Pass):
    """Round to 16 bits what a quantized file has in float, by the ranges that its own scales imply."""

    name: ClassVar = "quantize-rest"
    takes: ClassVar = Stage.QDQ
    gives: ClassVar = Stage.QDQ
    promise: ClassVar = Lossy()

    def run(self, program: Program, context: PassContext) -> PassResult:
        result = edit.copy(program)
        intervals, notes = real_ranges(result.graph), self._quantize_constants(result.graph)
        for node, users in _lacking(result.graph).items():
            interval = intervals.get(node)
            if interval is None or interval.magnitude == 0:
                continue  # lowering names the place
            quantized = _type_of(node, interval, users)
            insert_rounding(node, quantized, self.name, only=frozenset(users).__contains__)
            notes.append(f"{quantized.integer.bits} bits in [{interval.low:.4g}, {interval.high:.4g}]: {describe(node)}")
        if not notes:
            return PassResult(program, False)
        edit.finish(result.graph_module)
        return PassResult(result, True, tuple(notes))

    def _quantize_constants(self, graph: fx.Graph) -> list[str]:
        notes = []
        for node in list(graph.nodes):
            for constant in _float_constants(node):
                values = edit.constant_value(constant)
                assert values is not None  # it is a constant
                if is_weight := node.target in WEIGHT_AXIS:
                    observer = ObserverSpec("min-max", axis=WEIGHT_AXIS[node.target], bits=INT8.bits, symmetric=True)
                    integers = quantize_weight(values, None, None, observer)
                else:
                    integers = quantize_constant(values, INT16, symmetric=True)
                replace_operand(node, constant, integers, self.name)
                notes.append(f"{'weight to 8 bits a channel' if is_weight else 'constant to 16 bits'}: {describe(node)}")
        return notes


def _float_constants(node: fx.Node) -> list[fx.Node]:
    """Constants in float that an op computes with: the weight of a layer, and operands of sums, products and concatenations."""
    if node.target in WEIGHT_AXIS:
        candidates: list[object] = [node.args[1]]
    else:
        candidates = list(node.all_input_nodes) if node.target in _TAKES_CONSTANTS else []
    return [each for each in candidates if isinstance(each, fx.Node) and edit.is_constant(each) and each.meta["val"].is_floating_point()]


def _type_of(node: fx.Node, interval: RealRange, users: Sequence[fx.Node]) -> QuantizedType:
    """The widest that all readers take."""
    if edit.is_call(node, _aten.softmax.int):
        return probability_type(UINT8.bits)
    bits = min(_most_bits(user) for user in users)
    narrow = bits <= UINT8.bits
    return activation_type(Observation((interval.low,), (interval.high,)), UINT8 if narrow else IntegerType(bits, signed=True), not narrow)


def _most_bits(user: fx.Node) -> int:
    if edit.is_call(user, _aten.matmul.default):
        return _OPERAND_BITS
    if edit.is_call(user, _aten.linear.default):
        products = int(user.args[1].meta["val"].shape[-1])  # type: ignore[union-attr]  # the weight
        return min(INT16.bits, INT32.bits - 1 - (products * -INT8.low).bit_length())
    is_table = elementwise.is_function(user) and user.target not in _COMPUTED or user.target in _TAKES_BYTES
    return UINT8.bits if is_table else INT16.bits


def _lacking(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Values to be rounded, each with those who read it so."""
    forms: dict[fx.Node, Form] = {}
    lacking: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        form = _form(node, forms)
        if form is not None:
            forms[node] = form
        for operand in _floats(node):
            if not _takes(node, forms.get(operand, Form.INTEGERS), [forms.get(each) for each in _floats(node) if each is not operand]):
                lacking.setdefault(operand, []).append(node)
    return lacking


def _floats(node: fx.Node) -> Iterator[fx.Node]:
    return (
        each for each in node.all_input_nodes if isinstance(each.meta.get("val"), torch.Tensor) and each.meta["val"].is_floating_point()
    )


def _form(node: fx.Node, forms: dict[fx.Node, Form]) -> Form | None:
    """None: no float that a rule here is about."""
    if node.op != "call_function":
        return None
    source = node.args[0] if node.args else None
    if elementwise.is_scaling(node) or ROLES.get(node.target) is Role.MOVE or node.target is operator.getitem:
        return forms.get(source) if isinstance(source, fx.Node) else None
    if node.target in elementwise.CLAMPS:
        known = forms.get(source) if isinstance(source, fx.Node) else None
        return Form.WAITING if known is Form.ACCUMULATOR else known
    if node.target in _ACCUMULATORS:
        return Form.ACCUMULATOR
    return Form.WAITING if node.target in _WAITING or elementwise.is_function(node) else None


def _takes(node: fx.Node, form: Form, others: list[Form | None]) -> bool:
    """Whether an op reads an operand in that form."""
    if form is Form.INTEGERS or node.target in {_qc.quantize.default, *elementwise.CLAMPS} or elementwise.is_scaling(node) or _moves(node):
        return True
    if form is Form.WAITING:
        return False
    if node.target in SUMS:
        return Form.ACCUMULATOR not in others
    return node.op == "output" or node.target in {*REDUCTIONS, _aten.div.Tensor, _aten.to.dtype}


def _moves(node: fx.Node) -> bool:
    """Whether lowering moves what waits; of maxima it wants integers."""
    return ROLES.get(node.target) is Role.MOVE and node.target not in (
        _aten.max_pool2d.default,
        _aten.amax.default,
        _aten.constant_pad_nd.default,
    )
