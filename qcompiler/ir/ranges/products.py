"""Ranges of sums of products: convolution, linear, matmul, and elementwise products."""

from __future__ import annotations

import torch
from torch import fx

from qcompiler.arithmetic import expand_factors
from qcompiler.ir.edit import argument
from qcompiler.ir.ranges.bounds import INT32_RANGE, Bounds, Known, constant_of, filled, largest_size, require
from qcompiler.ir.types import IntegerRange


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


def convolution(node: fx.Node, known: Known) -> Bounds:
    """Sums of products over a window; where it pads, the padding value is an input too."""
    x = known[argument(node, "x")].along(1)
    if any(argument(node, "padding")):
        x = x.including(argument(node, "pad_value"))
    return _accumulator(node, x, argument(node, "groups"), (1, -1, 1, 1))


def linear(node: fx.Node, known: Known) -> Bounds:
    """Sums of products over the last dimension."""
    x = known[argument(node, "x")]
    return _accumulator(node, x.along(-1), 1, (*[1] * (x.low.ndim - 1), -1))


def _accumulator(node: fx.Node, x: Bounds, groups: int, shape: tuple[int, ...]) -> Bounds:
    weight, bias = constant_of(node, "weight"), constant_of(node, "bias")
    low, high = accumulator_bounds((x.low, x.high), weight, bias, groups)
    bounds = Bounds(low.reshape(shape), high.reshape(shape))
    require(
        node,
        bounds,
        INT32_RANGE,
        f"the accumulator over {weight[0].numel()} products",
        "split the layer's input channels, or quantize weights or activations to fewer bits",
    )
    return bounds


def scale_groups(node: fx.Node, known: Known) -> Bounds:
    """The products themselves, of each output channel: codes and factors are constants."""
    codes, factors, length = constant_of(node, "codes"), constant_of(node, "factors"), argument(node, "length")
    products = codes * expand_factors(factors, length, codes)
    return Bounds(products, products).united(*range(1, products.dim()))


def multiply(node: fx.Node, known: Known) -> Bounds:
    """The least and the largest of the products of the ends."""
    a, b = (known[argument(node, name)].minus(argument(node, f"zero_point_{name}")) for name in ("a", "b"))
    corners = torch.stack(torch.broadcast_tensors(a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high))
    bounds = Bounds(corners.amin(0), corners.amax(0))
    require(node, bounds, INT32_RANGE, "the product", "requantize the operands to fewer bits first")
    return bounds


def matmul(node: fx.Node, known: Known) -> Bounds:
    """The inner dimension times the largest product of two elements."""
    a, b = (known[argument(node, name)].minus(argument(node, f"zero_point_{name}")).range for name in ("a", "b"))
    length = largest_size(node, argument(node, "a").meta["val"].shape[-1])
    corners = [length * x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    bounds = filled(node, IntegerRange(min(corners), max(corners)))
    require(node, bounds, INT32_RANGE, f"the accumulator over {length} products", "quantize the operands to fewer bits")
    return bounds
