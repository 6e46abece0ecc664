"""Ranges of pooling, sums and dilation."""

from __future__ import annotations

import torch
from torch import fx

from qcompiler.arithmetic.pooling import adaptive_windows
from qcompiler.ir.edit import argument
from qcompiler.ir.ranges.bounds import INT32_RANGE, Bounds, Known, require, sizes_of

_SUM_ADVICE = "requantize to fewer bits first, or reduce in two steps with a requantization between them"


def max_pool(node: fx.Node, known: Known) -> Bounds:
    """A window's largest value is one of its values, or the padding, which is the type's lowest."""
    operand = argument(node, "x")
    bounds = known[operand].united(2, 3)
    top, bottom, left, right = argument(node, "padding")
    kernel, dilation = argument(node, "kernel"), argument(node, "dilation")
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    # A window may miss the input altogether, and gives the padding then.
    missing = max(top, bottom) > reach[0] or max(left, right) > reach[1] or (max(dilation) > 1 and any((top, bottom, left, right)))
    return bounds.including(torch.iinfo(operand.meta["val"].dtype).min) if missing else bounds


def adaptive_max_pool(node: fx.Node, known: Known) -> Bounds:
    """A window's largest value is one of its values."""
    return known[argument(node, "x")].united(2, 3)


def sum_pool(node: fx.Node, known: Known) -> Bounds:
    """So many values as a window has; padding counts as zero."""
    x = known[argument(node, "x")].united(2, 3).minus(argument(node, "zero_point"))
    height, width = argument(node, "kernel")
    x = x.including(0) if any(argument(node, "padding")) else x
    return _pooled_sum(node, x, height * width, height * width)


def adaptive_sum_pool(node: fx.Node, known: Known) -> Bounds:
    """Windows of different sizes; the largest and the smallest bound the sum."""
    operand = argument(node, "x")
    sides = zip(operand.meta["val"].shape[2:], argument(node, "output_size"), strict=True)
    rows, columns = ([end - start for start, end in adaptive_windows(int(size), count)] for size, count in sides)
    x = known[operand].united(2, 3).minus(argument(node, "zero_point"))
    return _pooled_sum(node, x, min(rows) * min(columns), max(rows) * max(columns))


def _pooled_sum(node: fx.Node, x: Bounds, fewest: int, most: int) -> Bounds:
    bounds = Bounds(torch.minimum(x.low * fewest, x.low * most), torch.maximum(x.high * fewest, x.high * most))
    require(node, bounds, INT32_RANGE, f"the sum of {most} values", _SUM_ADVICE)
    return bounds


def total(node: fx.Node, known: Known) -> Bounds:
    """As many values as the reduced dimensions have."""
    operand = argument(node, "x")
    x, sizes = known[operand].minus(argument(node, "zero_point")), operand.meta["val"].shape
    dims = [dim % len(sizes) for dim in argument(node, "dim")] or list(range(len(sizes)))
    fixed = [dim for dim in dims if isinstance(sizes[dim], int)]
    whole = [int(sizes[dim]) if dim in fixed else size for dim, size in enumerate(x.low.shape)]
    fewest, most = 1, 1
    for ends in (sizes_of(node, sizes[dim]) for dim in dims if dim not in fixed):
        fewest, most = fewest * ends[0], most * ends[1]
    low, high = (end.expand(whole).sum(fixed, True) if fixed else end for end in (x.low, x.high))
    bounds = Bounds(torch.minimum(low * fewest, low * most), torch.maximum(high * fewest, high * most))
    if not argument(node, "keepdim"):
        bounds = Bounds(bounds.low.squeeze(dims), bounds.high.squeeze(dims))
    require(node, bounds, INT32_RANGE, "the sum", _SUM_ADVICE)
    return bounds


def dilate(node: fx.Node, known: Known) -> Bounds:
    """The values and what is put between them."""
    x = known[argument(node, "x")].united(-2, -1)
    return x.including(argument(node, "value")) if max(argument(node, "factor")) > 1 else x
