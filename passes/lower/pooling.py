"""Pooling and reductions. A mean is an exact integer sum whose scale is divided by the count: no rounding but the one after it."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx

from qcompiler.arithmetic.pooling import adaptive_windows
from qcompiler.ir import edit
from qcompiler.ir.edit import argument
from qcompiler.passes.lower.lowering import IntegerValue, Lowering, LoweringFunction, Value, quotient, sizes_along, unsupported

_aten, _qc = torch.ops.aten, torch.ops.qc


def max_pool(lowering: Lowering, node: fx.Node) -> Value:
    """The maximum of integers means the maximum of the reals; padding is the lowest integer."""
    x = lowering.integers(argument(node, "self"))
    kernel, dilation = _pair(argument(node, "kernel_size")), _pair(argument(node, "dilation"))
    stride = _pair(argument(node, "stride") or kernel)
    padding = _window_padding(node, kernel, stride, _pair(argument(node, "padding")), dilation)
    pooled = lowering.call(_qc.max_pool2d.default, x.node, kernel, stride, padding, dilation, name=f"{node.name}_integers")
    return _same_parameters(x, pooled)


def adaptive_max_pool(lowering: Lowering, node: fx.Node) -> Value:
    """As ``max_pool``, over torch's adaptive windows."""
    x = lowering.integers(argument(node, "self"))
    pooled = lowering.call(_qc.adaptive_max_pool2d.default, x.node, _pair(argument(node, "output_size")), name=f"{node.name}_integers")
    return _same_parameters(x, pooled)


def item(lowering: Lowering, node: fx.Node) -> Value:
    """The maxima that ``adaptive_max_pool2d`` gives beside their positions."""
    source = node.args[0]
    if not edit.is_call(source, _aten.adaptive_max_pool2d.default) or node.args[1] != 0:
        raise unsupported(node, "it is not the values of adaptive max pooling", "use the first result alone")
    return lowering.integers(source)


def maximum_over_positions(lowering: Lowering, node: fx.Node) -> Value:
    """``amax`` over height and width, which is global pooling."""
    source = argument(node, "self")
    x, dims = lowering.integers(source), _dimensions(node, source)
    if source.meta["val"].ndim != 4 or dims != [2, 3]:
        raise unsupported(node, "it is not a maximum over height and width", "use max pooling")
    pooled = lowering.call(_qc.adaptive_max_pool2d.default, x.node, [1, 1], name=f"{node.name}_integers")
    if not argument(node, "keepdim"):
        pooled.meta["quantized"] = x.quantized
        pooled = lowering.call(_aten.reshape.default, pooled, [-1, source.meta["val"].shape[1]])
    return _same_parameters(x, pooled)


def average_pool(lowering: Lowering, node: fx.Node) -> Value:
    """``qc.sum_pool2d``; windows that count fewer elements than others (at borders) have their own scale."""
    x = lowering.activation(argument(node, "self"))
    kernel = _pair(argument(node, "kernel_size"))
    stride, padding = _pair(argument(node, "stride") or kernel), _pair(argument(node, "padding"))
    sides = _window_padding(node, kernel, stride, padding, [1, 1])
    counts = _window_counts(node, kernel, stride, padding)
    total = lowering.call(_qc.sum_pool2d.default, x.node, kernel, stride, sides, x.zero_point, name=f"{node.name}_accumulator")
    return lowering.accumulator(total, _mean_scale(x, counts))


def adaptive_average_pool(lowering: Lowering, node: fx.Node) -> Value:
    """``qc.adaptive_sum_pool2d``; global pooling is the case of one window."""
    source = argument(node, "self")
    x, size = lowering.activation(source), _pair(argument(node, "output_size"))
    rows, columns = (
        torch.tensor([end - start for start, end in adaptive_windows(int(length), count)])
        for length, count in zip(source.meta["val"].shape[-2:], size, strict=True)
    )
    total = lowering.call(_qc.adaptive_sum_pool2d.default, x.node, size, x.zero_point, name=f"{node.name}_accumulator")
    return lowering.accumulator(total, _mean_scale(x, rows[:, None] * columns))


def mean(lowering: Lowering, node: fx.Node) -> Value:
    """The sum, with its scale divided by the number of elements; divided by it in integers where only the call knows the number."""
    source = argument(node, "self")
    dims = _dimensions(node, source)
    if 0 not in dims and any(isinstance(source.meta["val"].shape[dim], torch.SymInt) for dim in dims):
        return _mean_of_any_length(lowering, node, dims)
    return _reduced(lowering, node, sizes_along(source, dims))


def total(lowering: Lowering, node: fx.Node) -> Value:
    """The sum over given dimensions."""
    return _reduced(lowering, node, 1)


LOWERINGS: dict[object, LoweringFunction] = {
    _aten.max_pool2d.default: max_pool,
    _aten.adaptive_max_pool2d.default: adaptive_max_pool,
    operator.getitem: item,
    _aten.amax.default: maximum_over_positions,
    _aten.avg_pool2d.default: average_pool,
    _aten.adaptive_avg_pool2d.default: adaptive_average_pool,
    _aten.mean.dim: mean,
    _aten.sum.dim_IntList: total,
}


def _reduced(lowering: Lowering, node: fx.Node, divisor: int) -> IntegerValue:
    """Of integers of any width: whether the sum fits int32 is proven."""
    source = argument(node, "self")
    x, dims = lowering.activation(source, bits=32), _dimensions(node, source)
    summed = lowering.call(_qc.sum.default, x.node, dims, argument(node, "keepdim"), x.zero_point, name=f"{node.name}_accumulator")
    return lowering.accumulator(summed, x.scale.reshape(()) / divisor)


def _mean_of_any_length(lowering: Lowering, node: fx.Node, dims: Sequence[int]) -> Value:
    """``qc.divide`` of the sum by a sum of ones: one element of each place that is summed over, clamped to 1."""
    total = _reduced(lowering, node, 1)
    x = lowering.activation(argument(node, "self"), bits=32)
    one = x.node
    for dim, size in enumerate(x.node.meta["val"].shape):
        if dim not in dims and dim > 0 and not isinstance(size, torch.SymInt) and size > 1:
            one = lowering.call(_aten.slice.Tensor, one, dim, 0, 1, name=f"{node.name}_places")
    ones = lowering.call(_qc.clamp.default, one, 1, 1, name=f"{node.name}_ones")
    count = lowering.call(_qc.sum.default, ones, dims, argument(node, "keepdim"), 0, name=f"{node.name}_count")
    return quotient(lowering, node, total, count)


def _dimensions(node: fx.Node, source: fx.Node) -> list[int]:
    """The reduced dimensions, counted from the front; none given means all."""
    rank = source.meta["val"].ndim
    dims = argument(node, "dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(rank))
    return sorted(dim % rank for dim in dims)


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else (list(value) * 2)[:2]


def _same_parameters(x: IntegerValue, node: fx.Node) -> IntegerValue:
    node.meta["quantized"] = x.quantized
    return IntegerValue(node, x.scale, x.zero_point, x.integer)


def _window_padding(
    node: fx.Node, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """[top, bottom, left, right] such that exactly the windows of the result fit; ``ceil_mode`` may need more than ``padding``."""
    source = argument(node, "self").meta["val"]
    sides: list[int] = []
    for axis in (0, 1):
        windows, size = int(node.meta["val"].shape[axis - 2]), int(source.shape[axis - 2])
        reach = (windows - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        sides += [padding[axis], max(reach - size - padding[axis], 0)]
    return sides


def _window_counts(node: fx.Node, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> torch.Tensor:
    """What torch divides each window's sum by, [H, W]: elements inside the input, or inside the padded input."""
    divisor = argument(node, "divisor_override")
    height, width = (int(size) for size in node.meta["val"].shape[-2:])
    if divisor is not None:
        return torch.full((height, width), int(divisor))
    source = argument(node, "self").meta["val"]
    lengths = []
    for axis, windows in enumerate((height, width)):
        size, pad = int(source.shape[axis - 2]), padding[axis]
        low, high = (-pad, size + pad) if argument(node, "count_include_pad") else (0, size)
        starts = [index * stride[axis] - pad for index in range(windows)]
        lengths.append(torch.tensor([min(start + kernel[axis], high) - max(start, low) for start in starts]))
    return lengths[0][:, None] * lengths[1]


def _mean_scale(x: IntegerValue, counts: torch.Tensor) -> torch.Tensor:
    """One scale where all windows count alike, else one for each position [H, W]."""
    uniform = bool((counts == counts.reshape(-1)[0]).all())
    scale = x.scale.reshape(()) / counts.to(torch.float64)
    return scale.reshape(-1)[0] if uniform else scale
