"""Intervals of a value's elements, and what the rules of all ops ask of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from qcompiler.errors import VerificationError
from qcompiler.ir.edit import argument, constant_value
from qcompiler.ir.provenance import describe
from qcompiler.ir.quantized_constants import integer_constant
from qcompiler.ir.types import INT32, IntegerRange, IntegerType

_MOST_INTERVALS = 1 << 16  # kept for one value; past it they are united over the innermost dimensions
_UNBOUNDED = 1 << 48  # of int64 inputs and of sizes without a maximum: leaves room for sums and shifts of bounds
INT32_RANGE = IntegerRange(INT32.low, INT32.high)


@dataclass(frozen=True, eq=False)
class Bounds:
    """Interval of every element of a value: int64 tensors of the value's rank, of size 1 along dimensions where all share one.

    The batch dimension has size 1 when it is symbolic.
    """

    low: torch.Tensor
    high: torch.Tensor

    @property
    def range(self) -> IntegerRange:
        """One interval for the whole value."""
        return IntegerRange(int(self.low.min()), int(self.high.max()))

    def along(self, dimension: int) -> Bounds:
        """One interval for each index of ``dimension`` (a single one if all share it), as vectors."""
        others = [d for d in range(self.low.ndim) if d != dimension % self.low.ndim]
        return Bounds(self.low.amin(others), self.high.amax(others)) if others else self

    def united(self, *dimensions: int) -> Bounds:
        """One interval along each of ``dimensions``, which stay with size 1."""
        return Bounds(self.low.amin(dimensions, True), self.high.amax(dimensions, True)) if dimensions else self

    def shared_along(self, dimension: int) -> bool:
        """Whether all indices of ``dimension`` have one interval."""
        ends = (self.low,) if self.low is self.high else (self.low, self.high)
        return all(bool((end == end.narrow(dimension, 0, 1)).all()) for end in ends)

    def including(self, value: int) -> Bounds:
        return Bounds(self.low.clamp(max=value), self.high.clamp(min=value))

    def rising_with(self, multiplier: torch.Tensor) -> Bounds:
        """The ends in the order in which their products with ``multiplier`` rise: exchanged where it is negative."""
        negative = multiplier < 0
        return Bounds(torch.where(negative, self.high, self.low), torch.where(negative, self.low, self.high))

    def minus(self, zero_point: int) -> Bounds:
        return Bounds(self.low - zero_point, self.high - zero_point)


Known = Mapping[fx.Node, Bounds]
Rule = Callable[[fx.Node, Known], Bounds]


def of_type(node: fx.Node, kind: IntegerType) -> Bounds:
    """All that an integer type holds."""
    return filled(node, IntegerRange(kind.low, kind.high))


def of_input(node: fx.Node, declared: IntegerRange | None) -> Bounds:
    """An input that is an integer on both sides: what its specification declares, else its type."""
    dtype = node.meta["val"].dtype
    if dtype.is_floating_point or dtype.is_complex:
        raise VerificationError(f"{describe(node)} is {dtype}: inputs of an integer program are integers, quantize outside of it")
    return filled(node, declared or dtype_range(dtype))


def dtype_range(dtype: torch.dtype) -> IntegerRange:
    """What a dtype holds; bool holds 0 and 1. The ends of int64 are those that sums and shifts of bounds can take."""
    if dtype is torch.bool:
        return IntegerRange(0, 1)
    limits = torch.iinfo(dtype)
    return IntegerRange(-_UNBOUNDED, _UNBOUNDED) if dtype is torch.int64 else IntegerRange(limits.min, limits.max)


def of_constant(node: fx.Node) -> Bounds:
    """The entries of an integer constant, each with itself as its interval."""
    tensor = constant_value(node)
    if tensor is None or tensor.is_floating_point() or tensor.numel() == 0:
        raise VerificationError(f"{describe(node)} is no integer constant: make it one with edit.add_constant")
    found = settled(node, Bounds(tensor, tensor))  # in its own narrow type, which is quicker
    return Bounds(found.low.to(torch.int64), found.high.to(torch.int64))


def filled(node: fx.Node, interval: IntegerRange) -> Bounds:
    """One interval for every element of a node's value."""
    shape = [1] * node.meta["val"].ndim
    return Bounds(torch.full(shape, interval.low), torch.full(shape, interval.high))


def check_shape(node: fx.Node, bounds: Bounds) -> None:
    """Parameters may repeat along the result's dimensions, never enlarge them, and know nothing of a symbolic batch."""
    found, shape = tuple(bounds.low.shape), node.meta["val"].shape
    fits = len(found) == len(shape) and all(
        own == 1 or (isinstance(size, int) and own == size) for own, size in zip(found, shape, strict=True)
    )
    if not fits:
        raise VerificationError(f"{describe(node)}: its parameters of shape {list(found)} do not broadcast to its result {list(shape)}")


def settled(node: fx.Node, bounds: Bounds) -> Bounds:
    """The same intervals with size 1 wherever a dimension is the batch or all its indices share one; not more than a limit."""
    for dim, size in enumerate(node.meta["val"].shape):
        if bounds.low.shape[dim] == bounds.high.shape[dim] == 1:
            continue
        if isinstance(size, torch.SymInt):
            bounds = bounds.united(dim)
        elif bounds.shared_along(dim):
            bounds = Bounds(bounds.low.narrow(dim, 0, 1).clone(), bounds.high.narrow(dim, 0, 1).clone())
    outer, count = bounds.low.ndim, bounds.low.numel()
    while count > _MOST_INTERVALS:
        outer -= 1
        count //= bounds.low.shape[outer]
    return bounds.united(*range(outer, bounds.low.ndim))


def at_ends(node: fx.Node, operands: Mapping[str, Bounds]) -> Bounds:
    """A monotone op at both ends of its operands, by its own reference kernel."""
    schema = node.target._schema  # type: ignore[union-attr]  # only called for op overloads
    values = {parameter.name: argument(node, parameter.name) for parameter in schema.arguments}
    dtypes = {name: values[name].meta["val"].dtype for name in operands}
    constants = {name: constant_value(value) for name, value in values.items() if isinstance(value, fx.Node)}
    values.update({name: tensor for name, tensor in constants.items() if tensor is not None})
    ends = []
    for end in ("low", "high"):
        values.update({name: getattr(bounds, end).to(dtypes[name]) for name, bounds in operands.items()})
        ends.append(node.target(**values).to(torch.int64))  # type: ignore[operator]
    return Bounds(*torch.broadcast_tensors(*ends))


def constant_of(node: fx.Node, name: str) -> torch.Tensor:
    """The constant argument ``name`` as int64."""
    tensor = integer_constant(argument(node, name))
    if tensor is None:
        raise VerificationError(f"{describe(node)}: {name} is computed, but must be a constant for its range to be proven")
    return tensor.to(torch.int64)


def check_parameter(node: fx.Node, name: str, low: int, high: int) -> torch.Tensor:
    """A constant argument all of whose entries lie in [low, high]. Raises VerificationError."""
    tensor = constant_of(node, name)
    if tensor.numel() and not low <= int(tensor.min()) <= int(tensor.max()) <= high:
        found = IntegerRange(int(tensor.min()), int(tensor.max()))
        raise VerificationError(f"{describe(node)}: {name} lies in {found}, outside [{low}, {high}]; choose the factor's form anew")
    return tensor


def check_high_multiplier(node: fx.Node, name: str) -> torch.Tensor:
    """A multiplier of the form ``high``: even, without sign."""
    return _check_even(node, name, check_parameter(node, name, 0, (1 << 31) - 1))


def check_add_multiplier(node: fx.Node, name: str) -> torch.Tensor:
    """A multiplier of ``qc::add``: even, of any sign."""
    return _check_even(node, name, check_parameter(node, name, -(1 << 31) + 2, (1 << 31) - 1))


def _check_even(node: fx.Node, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if bool((tensor & 1).any()):
        raise VerificationError(
            f"{describe(node)}: {name} has odd entries, which targets that double the product cannot use; make them even"
        )
    return tensor


def prove_pre_shift(node: fx.Node, a: Bounds, name: str) -> Bounds:
    """The intervals of ``a << pre_shift``, which must fit int32. Raises VerificationError."""
    pre_shift = check_parameter(node, name, 0, 31)
    shifted = Bounds(a.low << pre_shift, a.high << pre_shift)
    require(node, shifted, INT32_RANGE, f"a << {name} (up to {int(pre_shift.max())})", f"use a smaller {name}")
    return shifted


def check_limits(node: fx.Node) -> None:
    """low <= high and both, like the zero point, in the type that the op declares."""
    kind = type_range(node)
    low, high = argument(node, "low"), argument(node, "high")
    if not kind.low <= low <= high <= kind.high:
        raise VerificationError(f"{describe(node)}: the clamp [{low}, {high}] does not lie in its type's {kind}; correct low and high")


def type_range(node: fx.Node) -> IntegerRange:
    """The range of the type that an op's ``bits`` and ``signed`` declare."""
    kind = IntegerType(argument(node, "bits"), argument(node, "signed"))
    return IntegerRange(kind.low, kind.high)


def require(node: fx.Node, bounds: Bounds, allowed: IntegerRange, what: str, advice: str) -> None:
    """Raises VerificationError unless the intervals lie in ``allowed``: names the node, ``what`` it is about, and what to do."""
    found = bounds.range
    if not (allowed.low <= found.low and found.high <= allowed.high):
        raise VerificationError(f"{describe(node)}: {what} lies in {found}, outside {allowed}; {advice}")


def largest_size(node: fx.Node, size: int | torch.SymInt) -> int:
    """The size, or the most that its symbol allows."""
    return sizes_of(node, size)[1]


def sizes_of(node: fx.Node, size: int | torch.SymInt) -> tuple[int, int]:
    """Least and largest value of a size. Raises VerificationError where nothing bounds it."""
    if isinstance(size, int):
        return size, size
    interval = size.node.shape_env.bound_sympy(size.node.expr)
    if not interval.upper.is_finite or interval.upper >= _UNBOUNDED:
        raise VerificationError(
            f"{describe(node)} reads whole rows of the dynamic size {size}, which has no maximum: give it one at capture"
        )
    return max(0, int(interval.lower)), int(interval.upper)
