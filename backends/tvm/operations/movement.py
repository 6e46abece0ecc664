"""Movement: a change of view where it can be, else copies into the value's own memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.backends.tvm.kernels import (
    Copy,
    Extent,
    Fill,
    Size,
    maximum,
    shifted,
)
from qcompiler.backends.tvm.operations.handler import Handler
from qcompiler.backends.tvm.views import View, splits_alike
from qcompiler.ir.edit import argument

if TYPE_CHECKING:
    from qcompiler.backends.tvm.planner import Planner

_aten, _qc = torch.ops.aten, torch.ops.qc


def _reshape(planner: Planner, node: fx.Node) -> None:
    source, shape = node.args[0], planner.shape(node)
    assert isinstance(source, fx.Node)
    if not splits_alike(planner.shape(source), shape):
        planner.decline(node, "it moves elements across a dynamic dimension; reshape the dimensions before and behind it by themselves")
    planner.set_value(node, planner.value(source).reshape(shape) or reshaped_copy(planner, source, shape))


def reshaped_copy(planner: Planner, source: fx.Node, shape: Sequence[Size]) -> View:
    """The value in row-major memory of its own, with another shape."""
    view = planner.materialize(source).reshape(shape)
    assert view is not None  # row-major memory takes any shape
    return view


def _view_change(change: Callable[[View, fx.Node], View]) -> Handler:
    def handler(planner: Planner, node: fx.Node) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)  # the first operand of every movement op
        planner.set_value(node, change(planner.value(source), node))

    return handler


def _permute(view: View, node: fx.Node) -> View:
    return view.permute([dim % len(view.shape) for dim in argument(node, "dims")])


def _transpose(view: View, node: fx.Node) -> View:
    order = list(range(len(view.shape)))
    first, second = argument(node, "dim0"), argument(node, "dim1")
    order[first], order[second] = order[second], order[first]
    return view.permute(order)


def _slice(planner: Planner, node: fx.Node) -> None:
    """The size is that of the result, whichever of the ends is dynamic; the start has to be a number."""
    view = planner.value(argument(node, "self"))
    dim, start, step = argument(node, "dim") % len(view.shape), argument(node, "start") or 0, argument(node, "step")
    size = planner.shape(node)[dim]
    if isinstance(view.shape[dim], int) and isinstance(start, int):
        start = slice(start, None).indices(view.maxima[dim])[0]
    if not isinstance(start, int) or start < 0:
        planner.decline(node, "it starts at a place that depends on a dynamic size; slice from the front")
    planner.set_value(node, view.slice(dim, start, shifted(size, start) if step == 1 else start + maximum(size) * step, step))


def _select(planner: Planner, node: fx.Node) -> None:
    view, index = planner.value(argument(node, "self")), argument(node, "index")
    dim = argument(node, "dim") % len(view.shape)
    if not isinstance(index, int) or (index < 0 and isinstance(view.shape[dim], Extent)):
        planner.decline(node, "it selects a place that depends on a dynamic size; select by a number from the front")
    planner.set_value(node, view.select(dim, index % view.maxima[dim]))


def _flip(planner: Planner, node: fx.Node) -> None:
    view = planner.value(argument(node, "self"))
    dims = [dim % len(view.shape) for dim in argument(node, "dims")]
    if any(isinstance(view.shape[dim], Extent) for dim in dims):
        planner.decline(node, "it flips a dynamic dimension")
    planner.set_value(node, view.flip(dims))


def _same(view: View, node: fx.Node) -> View:
    return view


def _expand(planner: Planner, node: fx.Node) -> None:
    planner.set_value(node, planner.value(argument(node, "self")).expand(planner.shape(node)))


def _cat(planner: Planner, node: fx.Node) -> None:
    dim = argument(node, "dim") % len(planner.shape(node))
    views = [planner.value(source) for source in argument(node, "tensors")]
    if any(isinstance(view.shape[dim], Extent) for view in views[:-1]):
        planner.decline(node, "it joins something behind a dynamic dimension; only the last part may be dynamic")
    planner.concatenate(node, views, dim)


def _constant_pad(planner: Planner, node: fx.Node) -> None:
    """``pad`` counts from the last dimension, (before, after) each; a negative count crops."""
    pad, view = argument(node, "pad"), planner.value(argument(node, "self"))
    output = planner.allocate(node)
    planner.elementwise(Fill(argument(node, "value")), [], output, node)
    inside = output
    for position in range(len(pad) // 2):
        dim, before, after = len(view.shape) - 1 - position, pad[2 * position], pad[2 * position + 1]
        view = view.slice(dim, max(0, -before), shifted(view.shape[dim], -max(0, -after)))
        inside = inside.slice(dim, max(0, before), shifted(inside.shape[dim], -max(0, after)))
    planner.elementwise(Copy(), [view], inside, node)


def _dilate(planner: Planner, node: fx.Node) -> None:
    output = planner.allocate(node)
    planner.elementwise(Fill(argument(node, "value")), [], output, node)
    inside = output
    for dim, factor in zip((-2, -1), argument(node, "factor"), strict=True):
        inside = inside.slice(dim % len(output.shape), 0, output.shape[dim], factor)
    planner.elementwise(Copy(), [planner.value(argument(node, "x"))], inside, node)


HANDLERS: Mapping[object, Handler] = {
    _qc.dilate.default: _dilate,
    _aten.view.default: _reshape,
    _aten.reshape.default: _reshape,
    _aten.flatten.using_ints: _reshape,
    _aten.unflatten.int: _reshape,
    _aten.squeeze.dims: _reshape,
    _aten.unsqueeze.default: _reshape,
    _aten.permute.default: _view_change(_permute),
    _aten.transpose.int: _view_change(_transpose),
    _aten.slice.Tensor: _slice,
    _aten.select.int: _select,
    _aten.flip.default: _flip,
    _aten.clone.default: _view_change(_same),
    _aten.expand.default: _expand,
    _aten.cat.default: _cat,
    _aten.constant_pad_nd.default: _constant_pad,
}
