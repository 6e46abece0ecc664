"""``quantize-rest``: what a tool left in float between the pairs of its file is rounded to 16 bits.

Tools quantize what they have kernels for. The sum that a LayerNorm reads, the scores of a softmax, the mean of all tokens stay in float in
their files; in an integer program they need a scale too. It follows without data from the scales that the file has (``real_ranges``): a
sum of two values of 8 bits lies in the sum of their ranges, a normalized row within sqrt(N). 16 bits over such a range leave steps that are
far finer than those of the 8 bits around it, so that the program computes what the file says.

Rounded are results that wait for their rounding, and int32 sums, where something reads them that reads integers:

1. sums, normalizations, softmax, functions: for all but a quantize, a bound, movement and a change of scale on the way to one
2. sums of products: for all but these, and all but an addition (``qc.add`` reads one int32 operand), a sum and the program's outputs
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit, elementwise
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import INT16, QuantizedType, Stage
from qcompiler.passes.quantize.insertion import insert_rounding
from qcompiler.passes.quantize.real_ranges import RealRange, real_ranges
from qcompiler.passes.quantize.rules import REDUCTIONS, ROLES, SUMS, WEIGHT_AXIS, Role, is_scaling
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


@dataclass(frozen=True)
class QuantizeRest(Pass):
    """Round to 16 bits what a quantized file has in float, by the ranges that its own scales imply."""

    name: ClassVar = "quantize-rest"
    takes: ClassVar = Stage.QDQ
    gives: ClassVar = Stage.QDQ
    promise: ClassVar = Lossy()

    def run(self, program: Program, context: PassContext) -> PassResult:
        result = edit.copy(program)
        intervals, notes = real_ranges(result.graph), []
        for node, users in _lacking(result.graph).items():
            interval = intervals.get(node)
            if interval is None or interval.magnitude == 0:
                continue  # lowering names the place
            insert_rounding(node, _sixteen_bits(interval), self.name, only=frozenset(users).__contains__)
            notes.append(f"16 bits in [{interval.low:.4g}, {interval.high:.4g}]: {describe(node)}")
        if not notes:
            return PassResult(program, False)
        edit.finish(result.graph_module)
        return PassResult(result, True, tuple(notes))


def _sixteen_bits(interval: RealRange) -> QuantizedType:
    return QuantizedType(INT16, (float(torch.tensor(interval.magnitude / INT16.high, dtype=torch.float32)),))


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
    if is_scaling(node) or ROLES.get(node.target) is Role.MOVE or node.target is operator.getitem:
        return forms.get(source) if isinstance(source, fx.Node) else None
    if node.target in elementwise.CLAMPS:
        known = forms.get(source) if isinstance(source, fx.Node) else None
        return Form.WAITING if known is Form.ACCUMULATOR else known
    if node.target in _ACCUMULATORS:
        return Form.ACCUMULATOR
    return Form.WAITING if node.target in _WAITING or elementwise.is_function(node) else None


def _takes(node: fx.Node, form: Form, others: list[Form | None]) -> bool:
    """Whether an op reads an operand in that form."""
    if form is Form.INTEGERS or node.target in {_qc.quantize.default, *elementwise.CLAMPS} or is_scaling(node) or _moves(node):
        return True
    if form is Form.WAITING:
        return False
    if node.target in SUMS:
        return Form.ACCUMULATOR not in others
    return node.op == "output" or node.target in REDUCTIONS or node.target is _aten.div.Tensor


def _moves(node: fx.Node) -> bool:
    """Whether lowering moves what waits; of maxima it wants integers."""
    return ROLES.get(node.target) is Role.MOVE and node.target not in (
        _aten.max_pool2d.default,
        _aten.amax.default,
        _aten.constant_pad_nd.default,
    )
