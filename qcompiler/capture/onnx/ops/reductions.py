"""Reductions over dimensions, and what runs along one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qcompiler.capture.onnx.call import Call
from qcompiler.capture.onnx.registry import converter

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.sum(x, dims, keepdim=keep, dtype=None if x.is_floating_point() else x.dtype)


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.mean(x, dims, keepdim=keep) if x.is_floating_point() else torch.mean(x.float(), dims, keepdim=keep).to(x.dtype)


def _max(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.amax(x, dims, keepdim=keep)


def _min(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    """min(x) = -max(-x), for which stage FLOAT has an op."""
    return -torch.amax(-x, dims, keepdim=keep) if x.is_floating_point() else torch.amin(x, dims, keepdim=keep)


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = torch.prod(x, dim, keepdim=keep, dtype=x.dtype)
    return x


def _log_sum_exp(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    largest = torch.amax(x, dims, keepdim=True)
    result = torch.log(_sum(torch.exp(x - largest), dims, True)) + largest
    return result if keep else result.squeeze(dims)


_REDUCTIONS: Mapping[str, Reduce] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceMax": _max,
    "ReduceMin": _min,
    "ReduceProd": _product,
    "ReduceL1": lambda x, dims, keep: _sum(torch.abs(x), dims, keep),
    "ReduceL2": lambda x, dims, keep: torch.sqrt(_sum(torch.square(x), dims, keep)),
    "ReduceLogSum": lambda x, dims, keep: torch.log(_sum(x, dims, keep)),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceSumSquare": lambda x, dims, keep: _sum(torch.square(x), dims, keep),
}


@converter(*_REDUCTIONS)
def reduction(call: Call) -> Tensor:
    """The axes are an attribute before opset 13 (sum) and 18 (the others), then an input."""
    x, axes = call.tensor(0), call.integers("axes")
    axes = [int(axis) for axis in call.numbers(1)] if axes is None and call.has(1) else axes
    if not axes and call.flag("noop_with_empty_axes"):
        return _REDUCTIONS[call.node.op_type](x[None], [0], False)
    if x.ndim == 0:
        return _REDUCTIONS[call.node.op_type](x.reshape(1), [0], False)
    dims = axes or list(range(x.ndim))
    if any(not -x.ndim <= dim < x.ndim for dim in dims):
        raise call.fail(f"reduces axes {dims} of {x.ndim}")
    return _REDUCTIONS[call.node.op_type](x, [dim % x.ndim for dim in dims], call.flag("keepdims", True))


@converter("ArgMax", "ArgMin")
def position_of_extremum(call: Call) -> Tensor:
    """The first position, or the last: counted from the end, of the flipped tensor."""
    x, axis, keep = call.tensor(0), call.integer("axis"), call.flag("keepdims", True)
    x = -x if call.node.op_type == "ArgMin" else x
    if not call.flag("select_last_index"):
        return torch.argmax(x, axis, keepdim=keep)
    return torch.rsub(torch.argmax(torch.flip(x, [axis]), axis, keepdim=keep), x.shape[axis] - 1)


@converter("TopK")
def largest(call: Call) -> tuple[Tensor, Tensor]:
    """One is a maximum and its position. Several are the first of a stable sort: of equal elements ONNX asks for the lower position."""
    x, axis = call.tensor(0), call.integer("axis", -1)
    count = call.integer("k") if call.opset < 10 else int(call.number(1))
    if not -x.ndim <= axis < x.ndim or count < 1 or (isinstance(x.shape[axis], int) and count > x.shape[axis]):
        raise call.fail(f"takes {count} along axis {axis} of a value of shape {list(x.shape)}")
    downwards, axis = call.flag("largest", True), axis % x.ndim
    if count == 1 and x.is_floating_point():
        x = x if downwards else -x
        values = torch.amax(x, [axis], keepdim=True)
        return values if downwards else -values, torch.argmax(x, axis, keepdim=True)
    positions = torch.argsort(x, dim=axis, descending=downwards, stable=True).narrow(axis, 0, count)
    return torch.gather(x, axis, positions), positions


@converter("CumSum", "CumProd")
def cumulative(call: Call) -> Tensor:
    x, axis = call.tensor(0), int(call.number(1))
    product = call.node.op_type == "CumProd"
    x = torch.flip(x, [axis]) if call.flag("reverse") else x
    if call.flag("exclusive"):
        first = torch.full_like(x.narrow(axis, 0, 1), 1 if product else 0)
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    result = torch.cumprod(x, axis, dtype=x.dtype) if product else torch.cumsum(x, axis, dtype=x.dtype)
    return torch.flip(result, [axis]) if call.flag("reverse") else result
