"""Ranges of what works on rows: softmax, normalization, non-linear functions, embedding, division, argmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from qcompiler.arithmetic.hadamard import hadamard as transform
from qcompiler.arithmetic.nonlinear import check_nonlinear
from qcompiler.arithmetic.normalize import LARGEST_EPSILON
from qcompiler.arithmetic.normalize import MAXIMUM_ROW as MAXIMUM_NORMALIZED_ROW
from qcompiler.arithmetic.normalize import OUTPUT_BOUNDS as NORMALIZED_BOUNDS
from qcompiler.arithmetic.reciprocal import LARGEST_FRACTION
from qcompiler.arithmetic.softmax import LARGEST_DIFFERENCE, TABLE_ENTRIES, TABLE_FORMS, check_softmax
from qcompiler.arithmetic.softmax import MAXIMUM_ROW as MAXIMUM_SOFTMAX_ROW
from qcompiler.errors import VerificationError
from qcompiler.ir.edit import argument
from qcompiler.ir.provenance import describe
from qcompiler.ir.ranges.bounds import INT32_RANGE, Bounds, Known, constant_of, dtype_range, filled, largest_size, require
from qcompiler.ir.types import INT16, IntegerRange, IntegerType

_INT16_DIFFERENCE = IntegerRange(-(1 << 16), (1 << 16) - 1)  # of a 16-bit integer and its zero point


def softmax(node: fx.Node, known: Known) -> Bounds:
    """0 to the largest probability of the form, after the proof of its parameters."""
    x, form = known[argument(node, "x")].range, argument(node, "form")
    table = None if argument(node, "table") is None else constant_of(node, "table")
    largest = _checked(node, check_softmax, form, table, *(argument(node, name) for name in ("constants", "bits", "rounding")))
    _check_row(node, MAXIMUM_SOFTMAX_ROW)
    most = TABLE_ENTRIES - 1 if form in TABLE_FORMS else LARGEST_DIFFERENCE
    if x.high - x.low > most:
        raise VerificationError(
            f"{describe(node)}: scores lie in {x}, form '{form}' is proven for differences up to {most}; use fewer bits"
        )
    return filled(node, IntegerRange(0, largest))


def normalize(node: fx.Node, known: Known) -> Bounds:
    """The form's own bound."""
    x = known[argument(node, "x")]
    if not any(x.range.within(kind) for kind in (INT16, IntegerType(16, signed=False))):
        raise VerificationError(f"{describe(node)}: its rows lie in {x.range}, neither int16 nor uint16; requantize them to 16 bits first")
    require(node, x.minus(argument(node, "zero_point")), _INT16_DIFFERENCE, "x - zero_point", "choose a zero point of 16 bits")
    _check_row(node, MAXIMUM_NORMALIZED_ROW)
    if not 0 <= argument(node, "epsilon") <= LARGEST_EPSILON:
        raise VerificationError(f"{describe(node)}: its epsilon is outside [0, 2^61]; clamp it")
    largest = NORMALIZED_BOUNDS[argument(node, "form")]
    return filled(node, IntegerRange(-largest, largest))


def nonlinear(node: fx.Node, known: Known) -> Bounds:
    """The form's own bound over the proven inputs."""
    x = known[argument(node, "x")].minus(argument(node, "zero_point"))
    require(node, x, _INT16_DIFFERENCE, "x - zero_point", "requantize it to 16 bits first")
    function, form, constants = (argument(node, name) for name in ("function", "form", "constants"))
    low, high = _checked(node, check_nonlinear, function, form, constants, x.range.low, x.range.high)
    return filled(node, IntegerRange(low, high))


def _checked(node: fx.Node, check: Callable[..., Any], *parameters: Any) -> Any:
    """What a check of the arithmetic gives; its error names the node."""
    try:
        return check(*parameters)
    except VerificationError as error:
        raise VerificationError(f"{describe(node)}: {error}") from error


def _check_row(node: fx.Node, most: int) -> None:
    length = largest_size(node, argument(node, "x").meta["val"].shape[-1])
    if length > most:
        raise VerificationError(f"{describe(node)}: rows of {length} values, of {most} at most is proven; split them")


def embedding(node: fx.Node, known: Known) -> Bounds:
    """The table's entries, column by column; ids must be rows."""
    weight, ids = argument(node, "weight"), known[argument(node, "ids")].range
    rows = weight.meta["val"].shape[0]
    if not 0 <= ids.low <= ids.high < rows:
        raise VerificationError(f"{describe(node)}: its ids lie in {ids}, its table has {rows} rows; give the input that range")
    columns = known[weight].along(1)
    shape = [1] * (node.meta["val"].ndim - 1) + [-1]
    return Bounds(columns.low.reshape(shape), columns.high.reshape(shape))


def hadamard(node: fx.Node, known: Known) -> Bounds:
    """As a product with +-1: high_j = sum of high_i where the entry is 1, less low_i where it is -1, over the channels of the block.

    With c = low + high and d = high - low that is (c H + sum d) / 2, and low_j is (c H - sum d) / 2.
    """
    source, block, zero_point = (argument(node, name) for name in ("x", "block", "zero_point"))
    kind = dtype_range(source.meta["val"].dtype)
    if not kind.low <= zero_point <= kind.high:
        raise VerificationError(f"{describe(node)}: its zero point {zero_point} is no value of what it reads; choose one that is")
    channels, x = source.meta["val"].shape[-1], known[source].minus(zero_point).along(-1)
    low, high = (end.expand(channels).reshape(-1, block).double() for end in (x.low, x.high))
    middle, width = transform(low + high, block), (high - low).sum(-1, keepdim=True)  # exact: integers below 2^53
    shape = [1] * (node.meta["val"].ndim - 1) + [-1]
    bounds = Bounds(*((end / 2).long().reshape(shape) for end in (middle - width, middle + width)))
    require(node, bounds, INT32_RANGE, "the sum of a block", "use smaller blocks or fewer bits")
    return bounds


def divide(node: fx.Node, known: Known) -> Bounds:
    """The quotient of the ends, rounded; divisors are at least 1."""
    x, divisor, bits = known[argument(node, "x")].range, known[argument(node, "divisor")].range, argument(node, "fraction_bits")
    if divisor.low < 1 or not 0 <= bits <= LARGEST_FRACTION:
        raise VerificationError(
            f"{describe(node)}: divisors lie in {divisor} with {bits} fraction bits; clamp them to 1 and use 0 to {LARGEST_FRACTION} bits"
        )
    ends = [(end << bits) // divisor.low for end in (x.low, x.high)] + [0]
    # Half a step of rounding and 2^-27 of the quotient, as arithmetic.divide promises.
    bounds = IntegerRange(min(ends) - 1 - (abs(min(ends)) >> 27), max(ends) + 1 + (max(ends) >> 27))
    require(node, filled(node, bounds), INT32_RANGE, "the quotient", "use fewer fraction bits")
    return filled(node, bounds)


def argmax(node: fx.Node, known: Known) -> Bounds:
    """Positions along the reduced dimension."""
    shape, dim = argument(node, "self").meta["val"].shape, argument(node, "dim")
    if dim is None:
        raise VerificationError(f"{describe(node)} runs over the whole batch; give it a dimension")
    return filled(node, IntegerRange(0, largest_size(node, shape[dim]) - 1))
