"""Intervals that hold the reals of a program at stage QDQ, from what its quantized values can be at most.

Every ``qc.dequantize`` gives reals in [(low - z) s, (high - z) s]; from there on it is interval arithmetic. The intervals are wider than
what a model meets: 16 bits between them have 8 and more left for what it does.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

import qcompiler.ir.float_ops  # noqa: F401  # registers qc::l2_normalize
from qcompiler.ir import edit, elementwise
from qcompiler.ir.quantized_constants import dequantized_constant, quantized_type
from qcompiler.passes.quantize.rules import ROLES, WEIGHT_AXIS, Role

_aten, _qc = torch.ops.aten, torch.ops.qc

# Points at which a function of one value is looked at.
_SAMPLES = 4097


@dataclass(frozen=True)
class RealRange:
    """Reals in [low, high]."""

    low: float
    high: float

    @property
    def magnitude(self) -> float:
        return max(abs(self.low), abs(self.high))

    def with_zero(self) -> RealRange:
        return RealRange(min(self.low, 0.0), max(self.high, 0.0))

    def times(self, other: RealRange) -> RealRange:
        ends = [first * second for first in (self.low, self.high) for second in (other.low, other.high)]
        return RealRange(min(ends), max(ends))


Ranges = dict[fx.Node, RealRange]


def real_ranges(graph: fx.Graph) -> Ranges:
    """The interval of each float value; values that follow from float inputs without a quantize between have none."""
    found: Ranges = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            interval = _of_constant(node) if node.op == "get_attr" else _of_call(node, found)
            if interval is not None and math.isfinite(interval.magnitude):
                found[node] = interval
    return found


def _of_constant(node: fx.Node) -> RealRange | None:
    value = edit.constant_value(node)
    return None if value is None or value.numel() == 0 else RealRange(float(value.min()), float(value.max()))


def _of_call(node: fx.Node, found: Ranges) -> RealRange | None:
    if node.op != "call_function":
        return None
    rule = _RULES.get(node.target)
    if rule is not None:
        return rule(node, found)
    source = node.args[0] if node.args else None
    interval = found.get(source) if isinstance(source, fx.Node) else None
    if interval is None:
        return None
    if ROLES.get(node.target) is Role.MOVE:
        return interval.with_zero()  # a pad adds zeros
    return _of_function(node, interval) if elementwise.is_function(node) or node.target in elementwise.CLAMPS else None


def _of_function(node: fx.Node, interval: RealRange) -> RealRange:
    points = torch.linspace(interval.low, interval.high, _SAMPLES, dtype=torch.float64)
    if node.target in elementwise.CLAMPS:
        low, high = elementwise.clamp_bounds(node)
        values = points.clamp(low, high)
    else:
        values = elementwise.scalar_function(node)(points)
    return RealRange(float(values.min()), float(values.max()))


def _dequantized(node: fx.Node, found: Ranges) -> RealRange:
    constant = dequantized_constant(node)
    if constant is not None:
        return RealRange(float(constant.reals.min()), float(constant.reals.max()))
    kind = quantized_type(node)
    scale, zero_point = torch.tensor(kind.scale, dtype=torch.float64), torch.tensor(kind.zero_point, dtype=torch.float64)
    return RealRange(float(((kind.integer.low - zero_point) * scale).min()), float(((kind.integer.high - zero_point) * scale).max()))


def _layer(node: fx.Node, found: Ranges) -> RealRange | None:
    """sum(w+) high + sum(w-) low for each output channel, with zeros from padding among what is multiplied, and its bias."""
    source, weight = found.get(node.args[0]), _reals(node.args[1])  # type: ignore[arg-type]  # the op's tensor
    bias_node = edit.argument(node, "bias")
    bias = torch.zeros(1) if bias_node is None else _reals(bias_node)
    if source is None or weight is None or bias is None:
        return None
    source = source.with_zero()
    dims = [dim for dim in range(weight.ndim) if dim != WEIGHT_AXIS[node.target]]
    positive, negative = weight.clamp(min=0).sum(dims), weight.clamp(max=0).sum(dims)
    low, high = positive * source.low + negative * source.high, positive * source.high + negative * source.low
    low, high = (end.repeat(max(bias.numel() // end.numel(), 1)) + bias for end in (low, high))  # channels of a transposed one repeat
    return RealRange(float(low.min()), float(high.max()))


def _reals(value: object) -> torch.Tensor | None:
    constant = dequantized_constant(value)
    return edit.constant_value(value) if constant is None else constant.reals


def _product_of_matrices(node: fx.Node, found: Ranges) -> RealRange | None:
    """Rows of probabilities average; others add up as many products as they have elements."""
    first, second = (found.get(operand) for operand in node.args[:2])  # type: ignore[arg-type]  # the op's tensors
    length = node.args[0].meta["val"].shape[-1]  # type: ignore[union-attr]  # as above
    if first is None or second is None:
        return None
    if _is_probability(node.args[0]):
        return second.with_zero()
    return None if isinstance(length, torch.SymInt) else first.times(second).times(RealRange(length, length))


def _is_probability(value: object) -> bool:
    while edit.is_call(value, _qc.dequantize.default, _qc.quantize.default):
        value = value.args[0]  # type: ignore[attr-defined]  # a call is a node
    return edit.is_call(value, _aten.softmax.int)


def _sum(node: fx.Node, found: Ranges) -> RealRange | None:
    return _combined(node, found, lambda a, b: RealRange(a.low + b.low, a.high + b.high))


def _difference(node: fx.Node, found: Ranges) -> RealRange | None:
    return _combined(node, found, lambda a, b: RealRange(a.low - b.high, a.high - b.low))


def _product(node: fx.Node, found: Ranges) -> RealRange | None:
    return _combined(node, found, RealRange.times)


def _combined(node: fx.Node, found: Ranges, combine: Callable[[RealRange, RealRange], RealRange]) -> RealRange | None:
    first, second = (_operand(operand, found) for operand in node.args[:2])
    return None if first is None or second is None else combine(first, second)


def _operand(operand: object, found: Ranges) -> RealRange | None:
    if isinstance(operand, int | float):
        return RealRange(float(operand), float(operand))
    return found.get(operand) if isinstance(operand, fx.Node) else None


def _quotient(node: fx.Node, found: Ranges) -> RealRange | None:
    """By a number; and the mean over what a mask keeps, sum(m x) / sum(m), which lies where m x does."""
    dividend, divisor = node.args[:2]
    if isinstance(divisor, int | float):
        interval = found.get(dividend)  # type: ignore[arg-type]  # the op's tensor
        return None if interval is None else interval.times(RealRange(1 / divisor, 1 / divisor))
    while isinstance(divisor, fx.Node) and (divisor.target in elementwise.CLAMPS or ROLES.get(divisor.target) is Role.MOVE):
        divisor = divisor.args[0]
    if not all(edit.is_call(value, _aten.sum.dim_IntList) for value in (dividend, divisor)):
        return None
    return found.get(dividend.args[0])  # type: ignore[union-attr,arg-type]  # a call is a node


def _total(node: fx.Node, found: Ranges) -> RealRange | None:
    source = node.args[0]
    interval = found.get(source)  # type: ignore[arg-type]  # the op's tensor
    sizes = [source.meta["val"].shape[dim] for dim in edit.argument(node, "dim")]  # type: ignore[union-attr]  # as above
    if interval is None or any(isinstance(size, torch.SymInt) for size in sizes):
        return None
    return interval.times(RealRange(math.prod(sizes), math.prod(sizes)))


def _same(node: fx.Node, found: Ranges) -> RealRange | None:
    """Means, maxima, rows of tables and what is masked lie where their operand does, or are 0."""
    interval = found.get(node.args[0])  # type: ignore[arg-type]  # the op's tensor
    return None if interval is None else interval.with_zero()


def _joined(node: fx.Node, found: Ranges) -> RealRange | None:
    intervals = [found.get(operand) for operand in node.all_input_nodes]
    known = [interval for interval in intervals if interval is not None]
    return None if len(known) < len(intervals) else RealRange(min(each.low for each in known), max(each.high for each in known))


def _normalized(node: fx.Node, found: Ranges) -> RealRange | None:
    """|y| <= sqrt(N) |gamma| + |beta| for rows of N values."""
    length = node.meta["val"].shape[-1]
    weight, bias = (_reals(edit.argument(node, name)) for name in ("weight", "bias"))
    gamma = 1.0 if weight is None else float(weight.abs().max())
    bound = math.sqrt(length) * gamma + (0.0 if bias is None else float(bias.abs().max()))
    return RealRange(-bound, bound)


def _without_mean(node: fx.Node, found: Ranges) -> RealRange | None:
    weight = _reals(edit.argument(node, "weight"))
    bound = math.sqrt(node.meta["val"].shape[-1]) * (1.0 if weight is None else float(weight.abs().max()))
    return RealRange(-bound, bound)


_RULES: Mapping[object, Callable[[fx.Node, Ranges], RealRange | None]] = {
    _qc.dequantize.default: _dequantized,
    **dict.fromkeys(WEIGHT_AXIS, _layer),
    _aten.matmul.default: _product_of_matrices,
    _aten.add.Tensor: _sum,
    _aten.sub.Tensor: _difference,
    _aten.mul.Tensor: _product,
    _aten.div.Tensor: _quotient,
    _aten.sum.dim_IntList: _total,
    **dict.fromkeys((_aten.mean.dim, _aten.amax.default, _aten.embedding.default, _aten.masked_fill.Scalar), _same),
    **dict.fromkeys((_aten.avg_pool2d.default, _aten.adaptive_avg_pool2d.default, _aten.max_pool2d.default, operator.getitem), _same),
    _aten.cat.default: _joined,
    _aten.layer_norm.default: _normalized,
    _aten.rms_norm.default: _without_mean,
    _aten.softmax.int: lambda node, found: RealRange(0.0, 1.0),
    _qc.l2_normalize.default: lambda node, found: RealRange(-1.0, 1.0),
}
