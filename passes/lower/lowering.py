"""What lowering an op needs: the integers that stand for its operands, what is proven about them, and how to round a result.

The QDQ graph is walked once. Each of its float values becomes one of two things:

- ``IntegerValue``: integers that stand for the value exactly, ``real = scale * (integer - zero_point)``. Rounded values are such, and
  the int32 results of convolutions, products and sums, whose scale follows from their operands.
- ``Unrounded``: a computation that gives integers only once it is known what type they are rounded to: a sum of two values, a
  table, or an accumulator after an activation. ``qc.quantize`` says the type, and the one rounding happens there.

and, on the way to one of these, ``Masked`` scores and ``Coded`` values. What is integer in the QDQ graph already (ids, masks) stays.

Real bounds (relu, clamp) gather in ``Unrounded`` and become the limits of the rounding. That is exact with respect to the QDQ
graph, because rounding is monotone: ``quantize(clamp(x, a, b)) = clamp(quantize(x), quantize(a), quantize(b))``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler import arithmetic
from qcompiler.arithmetic.reciprocal import LARGEST_FRACTION
from qcompiler.errors import UnsupportedOpError, VerificationError
from qcompiler.ir import edit
from qcompiler.ir.provenance import describe
from qcompiler.ir.ranges import Bounds, bounds_of
from qcompiler.ir.types import INT32, IntegerType, QuantizedType

MADE_BY = "lower-integer"
_qc = torch.ops.qc


@dataclass(frozen=True, eq=False)
class IntegerValue:
    """``real = scale * (integer - zero_point)``; ``scale`` is float64 and broadcasts against the value by torch's rules."""

    node: fx.Node
    scale: torch.Tensor
    zero_point: int
    integer: IntegerType

    @property
    def is_accumulator(self) -> bool:
        return self.integer == INT32

    @property
    def quantized(self) -> QuantizedType:
        """The type of a value with one scale."""
        return QuantizedType(self.integer, (float(self.scale.reshape(())),), (self.zero_point,))

    def scaled(self, factor: float) -> IntegerValue:
        """The positive multiple: the same integers."""
        return replace(self, scale=self.scale * factor)

    def has_parameters_of(self, other: QuantizedType) -> bool:
        """Whether the same integers of the other type mean the same."""
        same = self.scale.numel() == 1 and other.scale == (float(self.scale),)
        return same and other.zero_point == (self.zero_point,) and self.integer == other.integer


# Builds the rounding to a type whose integers are further limited to [low, high].
Rounding = Callable[[QuantizedType, int, int], fx.Node]


@dataclass(frozen=True, eq=False)
class Unrounded:
    """A computation that waits for the type to round to, and the real bounds to apply before."""

    rounding: Rounding
    low: float = -math.inf
    high: float = math.inf

    def clamped(self, low: float, high: float) -> Unrounded:
        """Bounded once more, as torch.clamp does it: max with ``low``, then min with ``high``."""
        return replace(self, low=min(max(self.low, low), high), high=min(max(self.high, low), high))

    def scaled(self, factor: float) -> Unrounded:
        """The positive multiple: rounded as the value itself to a step that is smaller by the factor."""

        def rounding(quantized: QuantizedType, low: int, high: int) -> fx.Node:
            return self.rounding(replace(quantized, scale=(quantized.scale[0] / factor,)), low, high)

        return Unrounded(rounding, self.low * factor, self.high * factor)

    def round(self, quantized: QuantizedType) -> fx.Node:
        return self.rounding(quantized, limit(self.low, quantized), limit(self.high, quantized))


@dataclass(frozen=True, eq=False)
class OwnScale(IntegerValue):
    """Integers whose scale their op fixes, as the papers' softmax does: a quantize of this value leaves them as they are."""


@dataclass(frozen=True, eq=False)
class Masked:
    """Scores and the mask beside them: ``drop`` is a bool node, True where an element is left out of the softmax."""

    scores: IntegerValue
    drop: fx.Node


@dataclass(frozen=True, eq=False)
class Coded:
    """Codes of a quantizer with unequal steps that wait for what the codes mean: ``qc.decode`` says it."""

    decoding: Callable[[Sequence[float]], IntegerValue]


@dataclass(frozen=True, eq=False)
class Real:
    """A float: the result of an op that the user lets stay in float."""

    node: fx.Node


Value = IntegerValue | Unrounded | Masked | Coded | Real
LoweringFunction = Callable[["Lowering", fx.Node], Value]


def limit(bound: float, quantized: QuantizedType) -> int:
    """The integer that a real bound becomes; infinite bounds are the ends of the type."""
    return int(arithmetic.quantize(torch.tensor([bound]), quantized))


def single_scale(quantized: QuantizedType) -> torch.Tensor:
    """The scale of a type with one, as float64 without dimensions."""
    return torch.tensor(quantized.scale[0], dtype=torch.float64)


@dataclass(frozen=True)
class Functions:
    """Which integer form each kind of non-linear function takes: the options of the pass."""

    softmax: str = "table"
    activation: str = "table"
    normalize: str = "newton"
    rounding: str = "nearest"


@dataclass
class Lowering:
    """State of one run over one graph. ``node`` is the QDQ node that is being lowered: new nodes go before it and stand for it."""

    graph_module: fx.GraphModule
    requantize_form: str
    narrow_tolerance: float
    functions: Functions = Functions()
    node: fx.Node = field(init=False)
    values: dict[fx.Node, Value] = field(default_factory=dict)
    bounds: dict[fx.Node, Bounds] = field(default_factory=dict)
    forms: Counter[str] = field(default_factory=Counter)
    islands: list[str] = field(default_factory=list)

    # ---- operands ------------------------------------------------------------------------------------------------------------

    def integers(self, operand: object) -> IntegerValue:
        """The integers that stand for an operand.

        Raises:
            UnsupportedOpError: the operand was not quantized.
        """
        value = self.values.get(operand) if isinstance(operand, fx.Node) else None
        if not isinstance(value, IntegerValue):
            raise UnsupportedOpError(f"{describe(self.node)} reads {operand}, which is not quantized: insert qc.quantize and qc.dequantize")
        return value

    def activation(self, operand: object, bits: int = 8) -> IntegerValue:
        """As ``integers``, for ops that multiply or look up: at most ``bits`` bits, one scale."""
        value = self.integers(operand)
        if value.integer.bits > bits or value.scale.numel() != 1:
            raise UnsupportedOpError(f"{describe(self.node)} needs {operand} in at most {bits} bits with one scale: quantize it so")
        return replace(value, scale=value.scale.reshape(()))

    def bounds_of(self, node: fx.Node) -> Bounds:
        if node not in self.bounds:
            self.bounds[node] = bounds_of(node, self.bounds)
        return self.bounds[node]

    def magnitude(self, value: IntegerValue, shape: torch.Size | None = None) -> torch.Tensor:
        """Proven bound on ``|integer - zero_point|`` for each entry of ``shape``, which broadcasts against the value."""
        bounds = self.bounds_of(value.node).minus(value.zero_point)
        largest = torch.maximum(bounds.low.abs(), bounds.high.abs())
        wanted = value.scale.shape if shape is None else shape
        padded = (*[1] * (largest.ndim - len(wanted)), *wanted)
        united = [dim for dim, size in enumerate(padded) if size == 1]
        largest = largest.amax(united, keepdim=True) if united else largest
        return largest.expand(padded).reshape(wanted)

    # ---- new nodes -----------------------------------------------------------------------------------------------------------

    def call(self, target: Callable[..., Any], *args: Any, name: str | None = None) -> fx.Node:
        """Insert a call for the current node, with its bounds proven."""
        new = self.insert(target, args, {}, name)
        for operand in new.all_input_nodes:
            if isinstance(operand.meta["val"], torch.Tensor):
                self.bounds_of(operand)
        self.bounds_of(new)
        return new

    def insert(self, target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], name: str | None = None) -> fx.Node:
        """Insert a call for the current node."""
        return edit.insert_call(
            self.node.graph, target, args, kwargs, before=self.node, name=name, provenance_from=[self.node], made_by=MADE_BY
        )

    def constant(self, name: str, tensor: torch.Tensor) -> fx.Node:
        return edit.add_constant(self.graph_module, name, tensor, provenance_from=[self.node], made_by=MADE_BY)

    def accumulator(self, node: fx.Node, scale: torch.Tensor, axis: int | None = None) -> IntegerValue:
        """int32 integers without zero point; ``axis`` is that of a scale per channel."""
        if scale.numel() == 1 or axis is not None:
            scales = tuple(scale.float().reshape(-1).tolist())
            node.meta["quantized"] = QuantizedType(INT32, scales, axis=axis if len(scales) > 1 else None)
        return IntegerValue(node, scale, 0, INT32)

    def rounded(self, node: fx.Node, quantized: QuantizedType, scale: torch.Tensor | None = None) -> IntegerValue:
        """Integers of the given type; ``scale``: its scale in more digits than the type's, where it is known."""
        node.meta["quantized"] = quantized
        scale = single_scale(quantized) if scale is None else scale
        return IntegerValue(node, scale, quantized.zero_point[0], quantized.integer)

    # ---- rounding ------------------------------------------------------------------------------------------------------------

    def requantize(self, value: IntegerValue, quantized: QuantizedType, low: int, high: int) -> fx.Node:
        """``clamp(rint(real / scale) + zero_point, low, high)`` of the type, by ``qc.requantize`` in the form of the pass's option."""
        factor = value.scale / quantized.scale[0]
        zero_point = quantized.zero_point[0]
        reach = max(high - zero_point, zero_point - low, 1)
        dyadic = self._chosen(factor, self.magnitude(value), reach)
        self.forms[dyadic.form] += 1
        name = self.node.name.removesuffix("_quantize")
        parameters = [self.constant(f"{name}_{what}", getattr(dyadic, what)) for what in arithmetic.DYADIC_PARAMETERS]
        integer = quantized.integer
        return self.call(
            _qc.requantize.default,
            value.node,
            *parameters,
            value.zero_point,
            zero_point,
            low,
            high,
            dyadic.form,
            integer.bits,
            integer.signed,
            name=f"{name}_requantized",
        )

    def _chosen(self, factor: torch.Tensor, magnitude: torch.Tensor, reach: int) -> arithmetic.Dyadic:
        """Of the form of the option; where that is ``high``, and integers that the output cuts off are too large for it, ``exact64``."""
        for form in (self.requantize_form, *(["exact64"] if self.requantize_form == "high" else [])):
            try:
                return arithmetic.choose(factor, magnitude, form, self.narrow_tolerance, reach)
            except VerificationError as error:
                refused = error
        raise VerificationError(f"{describe(self.node)}: {refused}") from refused

    def round_accumulator(self, value: IntegerValue) -> Unrounded:
        return Unrounded(lambda quantized, low, high: self.requantize(value, quantized, low, high))

    def converted(self, value: IntegerValue, quantized: QuantizedType) -> fx.Node:
        """The integers of ``value`` in another type; the very node where that changes nothing."""
        if value.has_parameters_of(quantized):
            return value.node
        return self.requantize(value, quantized, quantized.integer.low, quantized.integer.high)


def unsupported(node: fx.Node, reason: str, advice: str) -> UnsupportedOpError:
    """The error for an op that has an integer form, but not with these arguments."""
    return UnsupportedOpError(f"{describe(node)} has no integer form: {reason}; {advice}")


def sizes_along(node: fx.Node, dims: Sequence[int]) -> int:
    """Number of elements along the dimensions of a value; they must not be symbolic."""
    shape = node.meta["val"].shape
    sizes = [shape[dim] for dim in dims]
    if any(isinstance(size, torch.SymInt) for size in sizes):
        raise unsupported(node, "it reduces over the batch", "reduce over other dimensions")
    return math.prod(sizes)


def quotient(lowering: Lowering, node: fx.Node, x: IntegerValue, count: fx.Node) -> IntegerValue:
    """``x / count`` for counts of 1 at least, with all fraction bits that int32 and ``qc.divide`` have."""
    bits = min(max(30 - int(lowering.magnitude(x).max()).bit_length(), 0), LARGEST_FRACTION)
    result = lowering.call(_qc.divide.default, x.node, count, bits, name=f"{node.name}_quotient")
    return lowering.accumulator(result, x.scale * 2.0**-bits)
