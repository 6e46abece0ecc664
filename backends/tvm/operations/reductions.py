"""Pooling and sums."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.backends.tvm.kernels import (
    ITEM_SIZE,
    Operand,
    ReductionKernel,
)
from qcompiler.backends.tvm.operations.handler import Handler
from qcompiler.backends.tvm.operations.windows import window_of
from qcompiler.backends.tvm.views import View, loop_nest, pointer_offset
from qcompiler.ir.edit import argument, is_call

if TYPE_CHECKING:
    from qcompiler.backends.tvm.planner import Planner

_aten, _qc = torch.ops.aten, torch.ops.qc


def _pool(planner: Planner, node: fx.Node) -> None:
    window = window_of(planner, node)
    assert window is not None  # the handlers of poolings only
    planner.check_fixed(window.x)
    padded = any(window.halo)
    x = planner.feature_map(window.x, window.halo, window.pad_value) if padded else planner.value(window.x)
    start = x.offset - window.halo[0] * x.strides[2] - window.halo[2] * x.strides[3]
    output = planner.allocate(node)
    windows = dataclasses.replace(x, offset=start).windows(window.kernel, window.stride, window.dilation, output.maxima[2:])
    _reduce(planner, node, windows, output, (4, 5))


def _adaptive_pool(planner: Planner, node: fx.Node) -> None:
    """Output i covers inputs floor(i * size / outputs) to ceil((i + 1) * size / outputs): regular windows where outputs divide size."""
    planner.check_fixed(argument(node, "x"))
    x, outputs = planner.value(argument(node, "x")), tuple(argument(node, "output_size"))
    output = planner.allocate(node)
    sizes = x.maxima[2:]
    if all(size % count == 0 for size, count in zip(sizes, outputs, strict=True)):
        kernel = [size // count for size, count in zip(sizes, outputs, strict=True)]
        _reduce(planner, node, x.windows(kernel, kernel, (1, 1), outputs), output, (4, 5))
        return
    rows, columns = (
        [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)] for size, count in zip(sizes, outputs, strict=True)
    )
    for row, (top, bottom) in enumerate(rows):
        for column, (left, right) in enumerate(columns):
            cell = output.slice(2, row, row + 1).slice(3, column, column + 1).squeeze((2, 3))
            _reduce(planner, node, x.slice(2, top, bottom).slice(3, left, right), cell, (2, 3))


def _sum(planner: Planner, node: fx.Node) -> None:
    x = planner.value(argument(node, "x"))
    dims = sorted({dim % len(x.shape) for dim in argument(node, "dim")}) or list(range(len(x.shape)))
    output = planner.allocate(node)
    kept = output.squeeze(dims) if argument(node, "keepdim") else output
    _reduce(planner, node, x, kept, dims)


def _reduce(planner: Planner, node: fx.Node, x: View, output: View, dims: Sequence[int]) -> None:
    """Reduce ``dims`` of x; the others are those of ``output`` in order."""
    kept = [d for d in range(len(x.shape)) if d not in dims]
    moved = x.permute([*kept, *dims])
    reduction: Literal["sum", "max"] = "max" if is_call(node, _qc.max_pool2d.default, _qc.adaptive_max_pool2d.default) else "sum"
    inner = dataclasses.replace(moved, shape=moved.shape[len(kept) :], strides=moved.strides[len(kept) :])
    outer = dataclasses.replace(moved, shape=moved.shape[: len(kept)], strides=moved.strides[: len(kept)])
    shape, (source, target) = loop_nest(output.shape, [outer, output])
    window, (steps,) = loop_nest(inner.shape, [inner])
    kernel = ReductionKernel(
        reduction=reduction,
        shape=shape,
        window=window,
        operand=Operand(x.dtype, (*source.strides, *steps.strides), source.offset + steps.offset),
        output=target,
        zero_point=0 if reduction == "max" else argument(node, "zero_point"),
    )
    operands = [(view.storage, pointer_offset(view) * ITEM_SIZE[view.dtype]) for view in (moved, output)]
    planner.call(kernel, operands, node)


HANDLERS: Mapping[object, Handler] = {
    _qc.max_pool2d.default: _pool,
    _qc.sum_pool2d.default: _pool,
    _qc.adaptive_sum_pool2d.default: _adaptive_pool,
    _qc.adaptive_max_pool2d.default: _adaptive_pool,
    _qc.sum.default: _sum,
}
