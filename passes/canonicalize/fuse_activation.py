"""``fuse-activation``: bounds in one form, and activations that were written out become one op.

Bounds, with relu(x) = clamp(x, 0, none):

    1. relu6, hardtanh, clamp_min, clamp_max, clip = clamp(x, low, high); clamp(x, 0, none) = relu(x)
    2. clamp(clamp(x, a, b), c, d) = clamp(x, clamp(a, c, d), clamp(b, c, d)) for a <= b, c <= d: both are constant below a and above b,
       and in between where [a, b] and [c, d] do not meet

Activations, by the factors of a product (however nested, in any order):

    3. hardsigmoid(x) = clamp(x + 3, 0, 6) * 1/6 = clamp(x * 1/6 + 1/2, 0, 1)
    4. hardswish(x)   = x * clamp(x + 3, 0, 6) * 1/6 = x * hardsigmoid(x)
    5. silu(x)        = x * sigmoid(x)
    6. mish(x)        = x * tanh(softplus(x))
    7. gelu(x)        = x * 1/2 * (erf(x * sqrt(1/2)) + 1)
    8. gelu(x, tanh)  = x * 1/2 * (tanh((x³ * 0.044715 + x) * sqrt(2/pi)) + 1)
    9. sigmoid(x)     = reciprocal(exp(-x) + 1)

The numbers must agree to 1e-6 of their size, or with what float16 has in their place; expects the forms that ``normalize-arithmetic``
leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.passes.canonicalize import patterns
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

# Names of the lower and upper limit in the schema of each bounding op; None where it has none.
_BOUNDS: Mapping[object, tuple[str | None, str | None]] = {
    _aten.clamp.default: ("min", "max"),
    _aten.clip.default: ("min", "max"),
    _aten.hardtanh.default: ("min_val", "max_val"),
    _aten.clamp_min.default: ("min", None),
    _aten.clamp_max.default: (None, "max"),
}
_FIXED_BOUNDS: Mapping[object, tuple[float, float]] = {_aten.relu.default: (0.0, math.inf), _aten.relu6.default: (0.0, 6.0)}


@dataclass(frozen=True)
class Replacement:
    """``node`` is ``target(*args)``."""

    node: fx.Node
    target: edit.Target
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FuseActivation(RewritePass[Replacement]):
    """Raise clamps and products to the activation that they are."""

    name: ClassVar = "fuse-activation"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-4)

    def match(self, node: fx.Node) -> Replacement | None:
        if node.op != "call_function":
            return None
        if _bounds(node) is not None:
            return _hard_sigmoid_of_clamp(node) or _canonical_clamp(node)
        if edit.is_call(node, _aten.reciprocal.default):
            return _sigmoid_of_reciprocal(node)
        return _activation_of_product(node) if edit.is_call(node, _aten.mul.Tensor) else None

    def rewrite(self, graph_module: fx.GraphModule, match: Replacement) -> None:
        site = Site(graph_module, match.node, self.name)
        site.replace(site.call(match.target, *match.args, **match.kwargs))


def _bounds(node: object) -> tuple[float, float] | None:
    """The limits of a bounding op, infinite where there is none; None for any other node and for limits out of order."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    if node.target in _FIXED_BOUNDS:
        return _FIXED_BOUNDS[node.target]
    if node.target not in _BOUNDS:
        return None
    low, high = (None if name is None else edit.argument(node, name) for name in _BOUNDS[node.target])
    limits = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    return limits if limits[0] <= limits[1] else None


def _canonical_clamp(node: fx.Node) -> Replacement | None:
    """Cases 1 and 2."""
    source, limits = node.args[0], _bounds(node)
    assert limits is not None  # match looked already
    inner = _bounds(source)
    merged = inner is not None and len(source.users) == 1  # type: ignore[union-attr]  # only a node has bounds
    if inner is not None and merged:
        source = source.args[0]  # type: ignore[union-attr]  # as above
        limits = (min(max(inner[0], limits[0]), limits[1]), min(max(inner[1], limits[0]), limits[1]))
    if limits == (0.0, math.inf):
        return None if edit.is_call(node, _aten.relu.default) and not merged else Replacement(node, _aten.relu.default, (source,))
    if edit.is_call(node, _aten.clamp.default) and not merged:
        return None
    return Replacement(node, _aten.clamp.default, (source, *(None if math.isinf(limit) else limit for limit in limits)))


def _hard_sigmoid_of_clamp(node: fx.Node) -> Replacement | None:
    """Case 3, its second form."""
    source = _plus(node.args[0], 0.5)
    if source is None or _bounds(node) != (0.0, 1.0):
        return None
    coefficient, factors = _factors(source)
    return Replacement(node, _aten.hardsigmoid.default, (factors[0],)) if len(factors) == 1 and patterns.close(coefficient, 1 / 6) else None


def _activation_of_product(node: fx.Node) -> Replacement | None:
    """Cases 3 to 7."""
    coefficient, factors = _factors(node)
    if len(factors) == 1:
        source = _hard_gate(factors[0])
        fits = source is not None and patterns.close(coefficient, 1 / 6)
        return Replacement(node, _aten.hardsigmoid.default, (source,)) if fits else None
    if len(factors) != 2:
        return None
    for value, gate in (factors, factors[::-1]):
        for recognize, expected, target, named in _GATED:
            if recognize(gate) is value and patterns.close(coefficient, expected):
                return Replacement(node, target, (value,), named)
    return None


def _factors(node: fx.Node) -> tuple[float, list[fx.Node]]:
    """The product that a tree of multiplications computes: a number times values. Inner products that others read stay whole."""
    coefficient, values = 1.0, []
    pending: list[Any] = [node]
    while pending:
        operand = pending.pop()
        if isinstance(operand, int | float):
            coefficient *= operand
        elif edit.is_call(operand, _aten.mul.Tensor) and (operand is node or len(operand.users) == 1):
            pending += operand.args
        else:
            values.append(operand)
    return coefficient, values


def _plus(node: object, number: float) -> fx.Node | None:
    """x of ``x + number``."""
    if not isinstance(node, fx.Node) or not edit.is_call(node, _aten.add.Tensor) or len(node.args) != 2:
        return None
    source, operand = node.args
    return source if isinstance(source, fx.Node) and isinstance(operand, int | float) and patterns.close(operand, number) else None


def _argument_of(node: object, target: edit.Target) -> fx.Node | None:
    """x of ``target(x)`` with every other argument at its default."""
    if not isinstance(node, fx.Node) or not edit.is_call(node, target) or len(node.args) != 1 or node.kwargs:
        return None
    return node.args[0] if isinstance(node.args[0], fx.Node) else None


def _hard_gate(gate: object) -> fx.Node | None:
    """x of ``clamp(x + 3, 0, 6)``."""
    return _plus(gate.args[0], 3) if isinstance(gate, fx.Node) and _bounds(gate) == (0.0, 6.0) else None


def _hard_sigmoid(gate: object) -> fx.Node | None:
    return _argument_of(gate, _aten.hardsigmoid.default)


def _sigmoid(gate: object) -> fx.Node | None:
    return _argument_of(gate, _aten.sigmoid.default)


def _tanh_of_softplus(gate: object) -> fx.Node | None:
    return _argument_of(_argument_of(gate, _aten.tanh.default), _aten.softplus.default)


def _error_function_gate(gate: object) -> fx.Node | None:
    """x of ``erf(x * sqrt(1/2)) + 1``."""
    scaled = _argument_of(_plus(gate, 1), _aten.erf.default)
    if scaled is None:
        return None
    coefficient, factors = _factors(scaled)
    return factors[0] if len(factors) == 1 and patterns.close(coefficient, math.sqrt(0.5)) else None


def _tanh_gate(gate: object) -> fx.Node | None:
    """x of ``tanh((x³ * 0.044715 + x) * sqrt(2/pi)) + 1``."""
    scaled = _argument_of(_plus(gate, 1), _aten.tanh.default)
    coefficient, factors = (0.0, []) if scaled is None else _factors(scaled)
    if len(factors) != 1 or not patterns.close(coefficient, math.sqrt(2 / math.pi)):
        return None
    (sum_,) = factors
    if not edit.is_call(sum_, _aten.add.Tensor) or len(sum_.args) != 2:
        return None
    for value, cube in (sum_.args, sum_.args[::-1]):
        if isinstance(value, fx.Node) and isinstance(cube, fx.Node):
            weight, powers = _factors(cube)
            if patterns.close(weight, 0.044715) and _is_cube(powers, value):
                return value
    return None


def _is_cube(factors: list[fx.Node], value: fx.Node) -> bool:
    """Whether the product of ``factors`` is the third power of ``value``."""
    powers = [1 if factor is value else factor.args[1] for factor in factors if factor is value or _is_power(factor, value)]
    return len(powers) == len(factors) and sum(power for power in powers if isinstance(power, int | float)) == 3


def _is_power(factor: fx.Node, value: fx.Node) -> bool:
    return edit.is_call(factor, _aten.pow.Tensor_Scalar) and factor.args[0] is value


def _sigmoid_of_reciprocal(node: fx.Node) -> Replacement | None:
    """Case 9."""
    exponent = _argument_of(_plus(node.args[0], 1), _aten.exp.default)
    if exponent is None:
        return None
    if edit.is_call(exponent, _aten.neg.default):
        return Replacement(node, _aten.sigmoid.default, (exponent.args[0],))
    coefficient, factors = _factors(exponent)
    return Replacement(node, _aten.sigmoid.default, (factors[0],)) if coefficient == -1 and len(factors) == 1 else None


# x of a gate(x), the coefficient, and what coefficient * x * gate(x) is.
_GATED: tuple[tuple[Callable[[object], fx.Node | None], float, edit.Target, Mapping[str, Any]], ...] = (
    (_hard_gate, 1 / 6, _aten.hardswish.default, {}),
    (_hard_sigmoid, 1.0, _aten.hardswish.default, {}),
    (_sigmoid, 1.0, _aten.silu.default, {}),
    (_tanh_of_softplus, 1.0, _aten.mish.default, {}),
    (_error_function_gate, 0.5, _aten.gelu.default, {}),
    (_tanh_gate, 0.5, _aten.gelu.default, {"approximate": "tanh"}),
)
