"""Interval analysis of INTEGER programs: for every value an interval that holds whatever the inputs are.

The analysis *is* the overflow proof: it follows the actual weights from the input types down, and raises VerificationError at
the first accumulator, pre-shift or output that could leave its type. Intervals are kept per channel (wider where that is enough).

- **Sums of products** (convolution, linear). For output channel n, inputs x_k in [l_k, h_k] and weights w_nk::

      high_n = bias_n + sum_k (max(w_nk, 0) h_k + min(w_nk, 0) l_k)        low_n likewise with l and h exchanged

  No bound can be tighter when every x_k is free. Two's-complement additions may wrap on the way and still give the right sum,
  so only the sum itself has to fit, whatever the order in which a kernel adds.
- **Monotone ops** (requantize, add, clamp, pooling by maximum) are evaluated by their own reference kernels at both ends; an operand
  of ``add`` with a negative multiplier, with its ends exchanged.
- **Data movement** is executed on the intervals themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from qcompiler.arithmetic.nonlinear import check_nonlinear
from qcompiler.arithmetic.normalize import MAXIMUM_ROW as MAXIMUM_NORMALIZED_ROW
from qcompiler.arithmetic.normalize import OUTPUT_BOUNDS as NORMALIZED_BOUNDS
from qcompiler.arithmetic.pooling import adaptive_windows
from qcompiler.arithmetic.reciprocal import LARGEST_FRACTION
from qcompiler.arithmetic.softmax import LARGEST_DIFFERENCE, TABLE_ENTRIES, check_softmax
from qcompiler.arithmetic.softmax import MAXIMUM_ROW as MAXIMUM_SOFTMAX_ROW
from qcompiler.errors import VerificationError
from qcompiler.ir.edit import argument, constant_value
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import describe
from qcompiler.ir.stages import INTEGER_COMPARISON_OPS, INTEGER_MASK_OPS, INTEGER_MOVEMENT_OPS
from qcompiler.ir.types import INT32, IntegerRange, IntegerType, Stage

_MOST_INTERVALS = 1 << 16  # kept for one value; past it they are united over the innermost dimensions
_UNBOUNDED = 1 << 48  # of int64 inputs and of sizes without a maximum: leaves room for sums and shifts of bounds
_MOST_ELEMENTS = 1 << 24  # of one value, when data movement is executed on its intervals

_TABLE_ENTRIES = 256
_INT32 = IntegerRange(INT32.low, INT32.high)
_INT16_DIFFERENCE = IntegerRange(-(1 << 16), (1 << 16) - 1)  # of a 16-bit integer and its zero point
_SUM_ADVICE = "requantize to fewer bits first, or reduce in two steps with a requantization between them"

_aten, _qc = torch.ops.aten, torch.ops.qc


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


def analyze(program: Program) -> dict[fx.Node, Bounds]:
    """Bounds of every value of an INTEGER program for all inputs of its input types.

    Raises:
        VerificationError: a value cannot be proven to stay in its type; names the node, the bound and what to change.
    """
    if program.stage is not Stage.INTEGER:
        raise VerificationError(f"ranges are proven at stage integer, the program is at {program.stage.value}: lower it first")
    known: dict[fx.Node, Bounds] = {}
    specs = iter(program.inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = next(specs)
            known[node] = _of_type(node, spec.quantized.integer) if spec.quantized else _of_input(node, spec.range)
        elif node.op != "output" and _has_bounds(node, program):
            known[node] = bounds_of(node, known)
    return known


def _has_bounds(node: fx.Node, program: Program) -> bool:
    """Sizes have none, and neither have the floats of islands that the program declares."""
    value = node.meta["val"]
    return isinstance(value, torch.Tensor) and not (bool(program.islands) and value.is_floating_point())


def bounds_of(node: fx.Node, known: Known) -> Bounds:
    """Bounds of a constant or a call, given those of its operands. Raises as ``analyze``."""
    if node.op == "get_attr":
        return _of_constant(node)
    if node.target is _qc.quantize.default:  # behind a float island: whatever comes out of it saturates
        return _of_type(node, IntegerType(argument(node, "bits"), argument(node, "signed")))
    rule = _RULES.get(node.target) if callable(node.target) else None
    if rule is None:
        raise VerificationError(f"{describe(node)}: no range can be proven for this op at stage integer; lower it to qc:: ops first")
    try:
        bounds = rule(node, known)
    except RuntimeError as error:  # torch cannot broadcast or reshape the parameters
        raise VerificationError(f"{describe(node)}: its operands and parameters do not fit together ({error})") from error
    if not isinstance(node.meta["val"], torch.Tensor):
        return bounds  # a size, no value of the program
    _check_shape(node, bounds)
    bounds = _settled(node, bounds)
    _require(node, bounds, dtype_range(node.meta["val"].dtype), "the result", "choose a wider type for the result")
    return bounds


def annotate(program: Program) -> None:
    """Write the proven range of every value into its ``meta["quantized"]``, in place: the last step of a pass that gives INTEGER."""
    for node, bounds in analyze(program).items():
        if "quantized" in node.meta:
            proven = bounds.range
            node.meta["quantized"] = node.meta["quantized"].with_range(proven.low, proven.high)


def accumulator_bounds(
    x_range: IntegerRange | tuple[torch.Tensor, torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    groups: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tight interval of ``bias + sum_k weight[n, k] x_k`` for each output channel n, the formula of the module's docstring.

    Args:
        x_range: interval of every input element, or (low, high) vectors with one entry per input channel. Where the op pads, the
            padding value has to lie inside.
        weight: integers [N, K] (linear) or [N, C / groups, kernel…] (convolution).
        bias: integers [N] or None.
        groups: as for convolution.

    Returns:
        (low, high), int64 tensors [N].
    """
    outputs, channels = weight.shape[0], weight.shape[1]
    wide = weight.to(torch.int64).reshape(outputs, channels, -1)
    positive, negative = wide.clamp(min=0).sum(2), wide.clamp(max=0).sum(2)
    low, high = (_per_output(end, outputs, channels, groups) for end in _ends(x_range))
    offset = torch.zeros(outputs, dtype=torch.int64) if bias is None else bias.to(torch.int64)
    return (positive * low + negative * high).sum(1) + offset, (positive * high + negative * low).sum(1) + offset


def _ends(x_range: IntegerRange | tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(x_range, IntegerRange):
        return torch.tensor([x_range.low]), torch.tensor([x_range.high])
    return x_range[0].to(torch.int64), x_range[1].to(torch.int64)


def _per_output(end: torch.Tensor, outputs: int, channels: int, groups: int) -> torch.Tensor:
    """[1] or [groups * channels] -> [outputs, channels]: what each output channel's group reads."""
    return end.expand(groups * channels).reshape(groups, channels).repeat_interleave(outputs // groups, 0)


# ---- rules: one for each op of stage INTEGER -------------------------------------------------------------------------------------


def _convolution(node: fx.Node, known: Known) -> Bounds:
    x = known[argument(node, "x")].along(1)
    if any(argument(node, "padding")):
        x = x.including(argument(node, "pad_value"))
    return _accumulator(node, x, argument(node, "groups"), (1, -1, 1, 1))


def _linear(node: fx.Node, known: Known) -> Bounds:
    x = known[argument(node, "x")]
    return _accumulator(node, x.along(-1), 1, (*[1] * (x.low.ndim - 1), -1))


def _accumulator(node: fx.Node, x: Bounds, groups: int, shape: tuple[int, ...]) -> Bounds:
    weight, bias = _constant(node, "weight"), _constant(node, "bias")
    low, high = accumulator_bounds((x.low, x.high), weight, bias, groups)
    bounds = Bounds(low.reshape(shape), high.reshape(shape))
    _require(
        node,
        bounds,
        _INT32,
        f"the accumulator over {weight[0].numel()} products",
        "split the layer's input channels, or quantize weights or activations to fewer bits",
    )
    return bounds


def _requantize(node: fx.Node, known: Known) -> Bounds:
    x = known[argument(node, "x")]
    a = x.minus(argument(node, "input_zero_point"))
    _require(node, a, _INT32, "x - input_zero_point", "use a smaller input zero point")
    _FORMS[argument(node, "form")](node, a)
    _check_limits(node)
    return _at_ends(node, {"x": x})


def _prove_high(node: fx.Node, a: Bounds) -> None:
    _check_parameter(node, "shift", 1, 30)
    _check_high_multiplier(node, "multiplier")
    _prove_pre_shift(node, a, "pre_shift")


def _prove_narrow(node: fx.Node, a: Bounds) -> None:
    pre_shift = _check_parameter(node, "pre_shift", 0, 31)
    _check_parameter(node, "shift", 0, 15)
    _check_parameter(node, "multiplier", 0, (1 << 15) - 1)
    half = (torch.ones_like(pre_shift) << pre_shift) >> 1
    _require(node, Bounds(a.low, a.high + half), _INT32, "a + 2^(pre_shift - 1)", "use the form 'high'")


def _prove_exact64(node: fx.Node, a: Bounds) -> None:
    # |a m| + 2^61 < 2^62 + 2^61 fits int64 for every int32 a.
    _check_parameter(node, "pre_shift", 0, 0)
    _check_parameter(node, "shift", 0, 62)
    _check_parameter(node, "multiplier", 0, (1 << 31) - 1)


_FORMS: dict[str, Callable[[fx.Node, Bounds], None]] = {"high": _prove_high, "narrow": _prove_narrow, "exact64": _prove_exact64}


def _add(node: fx.Node, known: Known) -> Bounds:
    operands = {name: known[argument(node, name)] for name in ("a", "b")}
    shift = argument(node, "shift")
    if not 1 <= shift <= 31:
        raise VerificationError(f"{describe(node)}: shift is {shift}, outside [1, 31]; choose the multipliers anew")
    low, high = torch.tensor(1 << (shift - 1)), torch.tensor(1 << (shift - 1))
    for name, bounds in list(operands.items()):
        centred = bounds.minus(argument(node, f"zero_point_{name}"))
        _require(node, centred, _INT32, f"{name} - zero_point_{name}", "use a smaller zero point")
        multiplier = _check_add_multiplier(node, f"multiplier_{name}")
        # Proven before the ends are exchanged: afterwards the low one may be the larger.
        shifted = _prove_pre_shift(node, centred, f"pre_shift_{name}").rising_with(multiplier)
        operands[name] = bounds.rising_with(multiplier)
        # High halves as arithmetic.residual_add takes them; both fit int64 for int32 factors.
        low, high = low + (shifted.low * multiplier >> 32), high + (shifted.high * multiplier >> 32)
    _require(node, Bounds(low, high), _INT32, "the sum of both high halves and the rounding term", "choose smaller pre-shifts and shift")
    _check_limits(node)
    return _at_ends(node, operands)


def _multiply(node: fx.Node, known: Known) -> Bounds:
    a, b = (known[argument(node, name)].minus(argument(node, f"zero_point_{name}")) for name in ("a", "b"))
    corners = torch.stack(torch.broadcast_tensors(a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high))
    bounds = Bounds(corners.amin(0), corners.amax(0))
    _require(node, bounds, _INT32, "the product", "requantize the operands to fewer bits first")
    return bounds


def _matmul(node: fx.Node, known: Known) -> Bounds:
    a, b = (known[argument(node, name)].minus(argument(node, f"zero_point_{name}")).range for name in ("a", "b"))
    length = _largest(node, argument(node, "a").meta["val"].shape[-1])
    corners = [length * x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    bounds = _filled(node, IntegerRange(min(corners), max(corners)))
    _require(node, bounds, _INT32, f"the accumulator over {length} products", "quantize the operands to fewer bits")
    return bounds


def _softmax(node: fx.Node, known: Known) -> Bounds:
    x, form = known[argument(node, "x")].range, argument(node, "form")
    table = None if argument(node, "table") is None else _constant(node, "table")
    largest = _checked(node, check_softmax, form, table, argument(node, "constants"), argument(node, "bits"))
    _check_row(node, MAXIMUM_SOFTMAX_ROW)
    most = TABLE_ENTRIES - 1 if form == "table" else LARGEST_DIFFERENCE
    if x.high - x.low > most:
        raise VerificationError(
            f"{describe(node)}: scores lie in {x}, form '{form}' is proven for differences up to {most}; use fewer bits"
        )
    return _filled(node, IntegerRange(0, largest))


def _normalize(node: fx.Node, known: Known) -> Bounds:
    x = known[argument(node, "x")].minus(argument(node, "zero_point"))
    _require(node, x, _INT16_DIFFERENCE, "x - zero_point", "requantize it to 16 bits first")
    _check_row(node, MAXIMUM_NORMALIZED_ROW)
    if not 0 <= argument(node, "epsilon") < 1 << 62:
        raise VerificationError(f"{describe(node)}: its epsilon is outside [0, 2^62); clamp it")
    largest = NORMALIZED_BOUNDS[argument(node, "form")]
    return _filled(node, IntegerRange(-largest, largest))


def _nonlinear(node: fx.Node, known: Known) -> Bounds:
    x = known[argument(node, "x")].minus(argument(node, "zero_point"))
    _require(node, x, _INT16_DIFFERENCE, "x - zero_point", "requantize it to 16 bits first")
    function, form, constants = (argument(node, name) for name in ("function", "form", "constants"))
    low, high = _checked(node, check_nonlinear, function, form, constants, x.range.low, x.range.high)
    return _filled(node, IntegerRange(low, high))


def _checked(node: fx.Node, check: Callable[..., Any], *parameters: Any) -> Any:
    """What a check of the arithmetic gives; its error names the node."""
    try:
        return check(*parameters)
    except VerificationError as error:
        raise VerificationError(f"{describe(node)}: {error}") from error


def _check_row(node: fx.Node, most: int) -> None:
    length = _largest(node, argument(node, "x").meta["val"].shape[-1])
    if length > most:
        raise VerificationError(f"{describe(node)}: rows of {length} values, of {most} at most is proven; split them")


def _largest(node: fx.Node, size: int | torch.SymInt) -> int:
    """The size, or the most that its symbol allows."""
    return _sizes(node, size)[1]


def _sizes(node: fx.Node, size: int | torch.SymInt) -> tuple[int, int]:
    """Least and largest value of a size. Raises VerificationError where nothing bounds it."""
    if isinstance(size, int):
        return size, size
    interval = size.node.shape_env.bound_sympy(size.node.expr)
    if not interval.upper.is_finite or interval.upper >= _UNBOUNDED:
        raise VerificationError(
            f"{describe(node)} reads whole rows of the dynamic size {size}, which has no maximum: give it one at capture"
        )
    return max(0, int(interval.lower)), int(interval.upper)


def _embedding(node: fx.Node, known: Known) -> Bounds:
    weight, ids = argument(node, "weight"), known[argument(node, "ids")].range
    rows = weight.meta["val"].shape[0]
    if not 0 <= ids.low <= ids.high < rows:
        raise VerificationError(f"{describe(node)}: its ids lie in {ids}, its table has {rows} rows; give the input that range")
    columns = known[weight].along(1)
    shape = [1] * (node.meta["val"].ndim - 1) + [-1]
    return Bounds(columns.low.reshape(shape), columns.high.reshape(shape))


def _bucketize(node: fx.Node, known: Known) -> Bounds:
    boundaries, bits = _constant(node, "boundaries"), argument(node, "bits")
    if bool((boundaries.diff() < 0).any()) or boundaries.numel() >= 1 << bits:
        raise VerificationError(f"{describe(node)}: its {boundaries.numel()} boundaries are not sorted, or too many for {bits} bits")
    return _at_ends(node, {"x": known[argument(node, "x")]})


def _divide(node: fx.Node, known: Known) -> Bounds:
    x, divisor, bits = known[argument(node, "x")].range, known[argument(node, "divisor")].range, argument(node, "fraction_bits")
    if divisor.low < 1 or not 0 <= bits <= LARGEST_FRACTION:
        raise VerificationError(
            f"{describe(node)}: divisors lie in {divisor} with {bits} fraction bits; clamp them to 1 and use 0 to {LARGEST_FRACTION} bits"
        )
    ends = [(end << bits) // divisor.low for end in (x.low, x.high)] + [0]
    # Half a step of rounding and 2^-27 of the quotient, as arithmetic.divide promises.
    bounds = IntegerRange(min(ends) - 1 - (abs(min(ends)) >> 27), max(ends) + 1 + (max(ends) >> 27))
    _require(node, _filled(node, bounds), _INT32, "the quotient", "use fewer fraction bits")
    return _filled(node, bounds)


def _argmax(node: fx.Node, known: Known) -> Bounds:
    shape, dim = argument(node, "self").meta["val"].shape, argument(node, "dim")
    if dim is None:
        raise VerificationError(f"{describe(node)} runs over the whole batch; give it a dimension")
    return _filled(node, IntegerRange(0, _largest(node, shape[dim]) - 1))


def _mask(node: fx.Node, known: Known) -> Bounds:
    return _filled(node, IntegerRange(0, 1))


def _cast(node: fx.Node, known: Known) -> Bounds:
    """Integers keep their values, which ``bounds_of`` proves to fit; to bool everything but 0 is 1."""
    x = known[argument(node, "self")]
    return _filled(node, IntegerRange(0, 1)) if node.meta["val"].dtype is torch.bool else x


def _size(node: fx.Node, known: Known) -> Bounds:
    """Sizes are no values; what they shape has its own rule."""
    return Bounds(torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64))


def _lookup(node: fx.Node, known: Known) -> Bounds:
    operand = argument(node, "x")
    x = known[operand].along(min(1, known[operand].low.ndim - 1))
    table, first = _constant(node, "table"), torch.iinfo(operand.meta["val"].dtype).min
    if table.shape[-1] != _TABLE_ENTRIES:
        raise VerificationError(f"{describe(node)}: its table has {table.shape[-1]} entries; give one for each of the 256 values")
    entries = torch.arange(first, first + _TABLE_ENTRIES)
    reached = (entries >= x.low[:, None]) & (entries <= x.high[:, None])
    limits = torch.iinfo(torch.int64)
    low = table.masked_fill(~reached, limits.max).amin(1)
    high = table.masked_fill(~reached, limits.min).amax(1)
    shape = (1, -1, *[1] * (known[operand].low.ndim - 2)) if known[operand].low.ndim > 1 else (-1,)
    bounds = Bounds(low.reshape(shape), high.reshape(shape))
    _require(node, bounds, _type_range(node), "the table", "rebuild it for the type that the op declares")
    return bounds


def _clamp(node: fx.Node, known: Known) -> Bounds:
    low, high, limits = argument(node, "low"), argument(node, "high"), torch.iinfo(node.meta["val"].dtype)
    if low > high or low > limits.max or high < limits.min:
        raise VerificationError(f"{describe(node)}: no value of its type lies in [{low}, {high}]; correct low and high")
    return _at_ends(node, {"x": known[argument(node, "x")]})


def _max_pool(node: fx.Node, known: Known) -> Bounds:
    operand = argument(node, "x")
    bounds = known[operand].united(2, 3)
    top, bottom, left, right = argument(node, "padding")
    kernel, dilation = argument(node, "kernel"), argument(node, "dilation")
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    # A window may miss the input altogether, and gives the padding then.
    missing = max(top, bottom) > reach[0] or max(left, right) > reach[1] or (max(dilation) > 1 and any((top, bottom, left, right)))
    return bounds.including(torch.iinfo(operand.meta["val"].dtype).min) if missing else bounds


def _adaptive_max_pool(node: fx.Node, known: Known) -> Bounds:
    return known[argument(node, "x")].united(2, 3)


def _sum_pool(node: fx.Node, known: Known) -> Bounds:
    x = known[argument(node, "x")].united(2, 3).minus(argument(node, "zero_point"))
    height, width = argument(node, "kernel")
    x = x.including(0) if any(argument(node, "padding")) else x
    return _pooled_sum(node, x, height * width, height * width)


def _adaptive_sum_pool(node: fx.Node, known: Known) -> Bounds:
    operand = argument(node, "x")
    sides = zip(operand.meta["val"].shape[2:], argument(node, "output_size"), strict=True)
    rows, columns = ([end - start for start, end in adaptive_windows(int(size), count)] for size, count in sides)
    x = known[operand].united(2, 3).minus(argument(node, "zero_point"))
    return _pooled_sum(node, x, min(rows) * min(columns), max(rows) * max(columns))


def _pooled_sum(node: fx.Node, x: Bounds, fewest: int, most: int) -> Bounds:
    bounds = Bounds(torch.minimum(x.low * fewest, x.low * most), torch.maximum(x.high * fewest, x.high * most))
    _require(node, bounds, _INT32, f"the sum of {most} values", _SUM_ADVICE)
    return bounds


def _sum(node: fx.Node, known: Known) -> Bounds:
    operand = argument(node, "x")
    x, sizes = known[operand].minus(argument(node, "zero_point")), operand.meta["val"].shape
    dims = [dim % len(sizes) for dim in argument(node, "dim")] or list(range(len(sizes)))
    fixed = [dim for dim in dims if isinstance(sizes[dim], int)]
    whole = [int(sizes[dim]) if dim in fixed else size for dim, size in enumerate(x.low.shape)]
    fewest, most = 1, 1
    for ends in (_sizes(node, sizes[dim]) for dim in dims if dim not in fixed):
        fewest, most = fewest * ends[0], most * ends[1]
    low, high = (end.expand(whole).sum(fixed, True) if fixed else end for end in (x.low, x.high))
    bounds = Bounds(torch.minimum(low * fewest, low * most), torch.maximum(high * fewest, high * most))
    if not argument(node, "keepdim"):
        bounds = Bounds(bounds.low.squeeze(dims), bounds.high.squeeze(dims))
    _require(node, bounds, _INT32, "the sum", _SUM_ADVICE)
    return bounds


def _dilate(node: fx.Node, known: Known) -> Bounds:
    x = known[argument(node, "x")].united(-2, -1)
    return x.including(argument(node, "value")) if max(argument(node, "factor")) > 1 else x


def _movement(node: fx.Node, known: Known) -> Bounds:
    """Every element of the result is one of an operand's (or the padding), so the op itself moves the intervals."""
    operands = _tensor_operands(node)
    if len(operands) < len(node.all_input_nodes):  # a size among the arguments is known at run time only
        return _united_operands(node, known)
    whole = [[1 if isinstance(size, torch.SymInt) else size for size in operand.meta["val"].shape] for operand in operands]
    uniform = all(known[operand].low.numel() == 1 for operand in operands) and node.target is not _aten.constant_pad_nd.default
    if uniform or any(torch.Size(sizes).numel() > _MOST_ELEMENTS for sizes in whole):
        return _united_operands(node, known)
    low = {operand: known[operand].low.expand(sizes) for operand, sizes in zip(operands, whole, strict=True)}
    high = {operand: known[operand].high.expand(sizes) for operand, sizes in zip(operands, whole, strict=True)}
    try:
        return _settled(node, Bounds(_executed(node, low), _executed(node, high)))
    except RuntimeError:  # a view that splits a batch into samples and something else cannot be taken of one sample
        return _united_operands(node, known)


def _united_operands(node: fx.Node, known: Known) -> Bounds:
    first, *others = _tensor_operands(node)
    union = known[first].range
    for operand in others:
        union = union.union(known[operand].range)
    if node.target is _aten.constant_pad_nd.default:
        value = int(argument(node, "value"))
        union = union.union(IntegerRange(value, value))
    return _filled(node, union)


def _tensor_operands(node: fx.Node) -> list[fx.Node]:
    return [operand for operand in node.all_input_nodes if isinstance(operand.meta["val"], torch.Tensor)]


def _executed(node: fx.Node, values: Mapping[fx.Node, torch.Tensor]) -> torch.Tensor:
    assert callable(node.target)  # bounds_of found a rule for it
    result = node.target(*map_arg(node.args, values.__getitem__), **map_arg(node.kwargs, values.__getitem__))
    assert isinstance(result, torch.Tensor)
    return result


_RULES: dict[Callable[..., Any], Rule] = {
    _qc.convolution.default: _convolution,
    _qc.linear.default: _linear,
    _qc.matmul.default: _matmul,
    _qc.softmax.default: _softmax,
    _qc.normalize.default: _normalize,
    _qc.nonlinear.default: _nonlinear,
    _qc.embedding.default: _embedding,
    _qc.bucketize.default: _bucketize,
    _qc.divide.default: _divide,
    _qc.requantize.default: _requantize,
    _qc.add.default: _add,
    _qc.multiply.default: _multiply,
    _qc.lookup.default: _lookup,
    _qc.clamp.default: _clamp,
    _qc.max_pool2d.default: _max_pool,
    _qc.adaptive_max_pool2d.default: _adaptive_max_pool,
    _qc.sum_pool2d.default: _sum_pool,
    _qc.adaptive_sum_pool2d.default: _adaptive_sum_pool,
    _qc.sum.default: _sum,
    _qc.dilate.default: _dilate,
    _aten.argmax.default: _argmax,
    _aten.to.dtype: _cast,
    _aten.sym_size.int: _size,
    **dict.fromkeys(INTEGER_COMPARISON_OPS | INTEGER_MASK_OPS, _mask),
    **dict.fromkeys(INTEGER_MOVEMENT_OPS, _movement),
}


# ---- what the rules share ---------------------------------------------------------------------------------------------------------


def _of_type(node: fx.Node, kind: IntegerType) -> Bounds:
    return _filled(node, IntegerRange(kind.low, kind.high))


def _of_input(node: fx.Node, declared: IntegerRange | None) -> Bounds:
    """An input that is an integer on both sides: what its specification declares, else its type."""
    dtype = node.meta["val"].dtype
    if dtype.is_floating_point or dtype.is_complex:
        raise VerificationError(f"{describe(node)} is {dtype}: inputs of an integer program are integers, quantize outside of it")
    return _filled(node, declared or dtype_range(dtype))


def dtype_range(dtype: torch.dtype) -> IntegerRange:
    """What a dtype holds; bool holds 0 and 1. The ends of int64 are those that sums and shifts of bounds can take."""
    if dtype is torch.bool:
        return IntegerRange(0, 1)
    limits = torch.iinfo(dtype)
    return IntegerRange(-_UNBOUNDED, _UNBOUNDED) if dtype is torch.int64 else IntegerRange(limits.min, limits.max)


def _of_constant(node: fx.Node) -> Bounds:
    tensor = constant_value(node)
    if tensor is None or tensor.is_floating_point() or tensor.numel() == 0:
        raise VerificationError(f"{describe(node)} is no integer constant: make it one with edit.add_constant")
    wide = tensor.to(torch.int64)
    return _settled(node, Bounds(wide, wide))


def _filled(node: fx.Node, interval: IntegerRange) -> Bounds:
    shape = [1] * node.meta["val"].ndim
    return Bounds(torch.full(shape, interval.low), torch.full(shape, interval.high))


def _check_shape(node: fx.Node, bounds: Bounds) -> None:
    """Parameters may repeat along the result's dimensions, never enlarge them, and know nothing of a symbolic batch."""
    found, shape = tuple(bounds.low.shape), node.meta["val"].shape
    fits = len(found) == len(shape) and all(
        own == 1 or (isinstance(size, int) and own == size) for own, size in zip(found, shape, strict=True)
    )
    if not fits:
        raise VerificationError(f"{describe(node)}: its parameters of shape {list(found)} do not broadcast to its result {list(shape)}")


def _settled(node: fx.Node, bounds: Bounds) -> Bounds:
    """The same intervals with size 1 wherever a dimension is the batch or all its indices share one; not more than a limit."""
    for dim, size in enumerate(node.meta["val"].shape):
        shared = all(bool((end == end.narrow(dim, 0, 1)).all()) for end in (bounds.low, bounds.high))
        if shared or isinstance(size, torch.SymInt):
            bounds = bounds.united(dim)
    for dim in reversed(range(bounds.low.ndim)):
        if bounds.low.numel() > _MOST_INTERVALS:
            bounds = bounds.united(dim)
    return bounds


def _at_ends(node: fx.Node, operands: Mapping[str, Bounds]) -> Bounds:
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


def _constant(node: fx.Node, name: str) -> torch.Tensor:
    """The constant argument ``name`` as int64."""
    tensor = constant_value(argument(node, name))
    if tensor is None:
        raise VerificationError(f"{describe(node)}: {name} is computed, but must be a constant for its range to be proven")
    return tensor.to(torch.int64)


def _check_parameter(node: fx.Node, name: str, low: int, high: int) -> torch.Tensor:
    tensor = _constant(node, name)
    if tensor.numel() and not low <= int(tensor.min()) <= int(tensor.max()) <= high:
        found = IntegerRange(int(tensor.min()), int(tensor.max()))
        raise VerificationError(f"{describe(node)}: {name} lies in {found}, outside [{low}, {high}]; choose the factor's form anew")
    return tensor


def _check_high_multiplier(node: fx.Node, name: str) -> torch.Tensor:
    return _check_even(node, name, _check_parameter(node, name, 0, (1 << 31) - 1))


def _check_add_multiplier(node: fx.Node, name: str) -> torch.Tensor:
    return _check_even(node, name, _check_parameter(node, name, -(1 << 31) + 2, (1 << 31) - 1))


def _check_even(node: fx.Node, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if bool((tensor & 1).any()):
        raise VerificationError(
            f"{describe(node)}: {name} has odd entries, which targets that double the product cannot use; make them even"
        )
    return tensor


def _prove_pre_shift(node: fx.Node, a: Bounds, name: str) -> Bounds:
    pre_shift = _check_parameter(node, name, 0, 31)
    shifted = Bounds(a.low << pre_shift, a.high << pre_shift)
    _require(node, shifted, _INT32, f"a << {name} (up to {int(pre_shift.max())})", f"use a smaller {name}")
    return shifted


def _check_limits(node: fx.Node) -> None:
    """low <= high and both, like the zero point, in the type that the op declares."""
    kind = _type_range(node)
    low, high = argument(node, "low"), argument(node, "high")
    if not kind.low <= low <= high <= kind.high:
        raise VerificationError(f"{describe(node)}: the clamp [{low}, {high}] does not lie in its type's {kind}; correct low and high")


def _type_range(node: fx.Node) -> IntegerRange:
    kind = IntegerType(argument(node, "bits"), argument(node, "signed"))
    return IntegerRange(kind.low, kind.high)


def _require(node: fx.Node, bounds: Bounds, allowed: IntegerRange, what: str, advice: str) -> None:
    found = bounds.range
    if not (allowed.low <= found.low and found.high <= allowed.high):
        raise VerificationError(f"{describe(node)}: {what} lies in {found}, outside {allowed}; {advice}")
