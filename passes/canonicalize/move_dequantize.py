"""``move-dequantize``: movement and the border between reals and integers change places, so that layers find their weights.

    permute(dequantize(constant)) = dequantize(constant')       1. weights that the model transposes or reshapes
    dequantize(reshape(q)) = reshape(dequantize(q))             2. movement and maxima of integers, as QOperator models have them;
                                                                   some have them between casts to float and back
    reshape(quantize(x)) = quantize(reshape(dequantize(quantize(x))))    3. the same at outputs
    dequantize(constant[ids]) = dequantize(constant)[ids]       4. rows of tables, and slices of constants up to an open size

Movement changes no value, and the scale stays with its integers: in case 1 the axis of a scale for each channel is followed, in the
others there is one scale. Maxima of integers are the maxima of their reals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.float_ops import RESHAPE_OPS
from qcompiler.ir.quantized_constants import DequantizedConstant, dequantized_constant, quantized_type
from qcompiler.ir.types import QuantizedType, Stage
from qcompiler.pipeline.contract import Exact
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten, _qc = torch.ops.aten, torch.ops.qc

_PADS = frozenset({_aten.constant_pad_nd.default, _aten.pad.default})
_MOVES = RESHAPE_OPS | {
    _aten.permute.default,
    _aten.transpose.int,
    _aten.t.default,
    _aten.numpy_T.default,
    _aten.movedim.int,
    _aten.slice.Tensor,
    _aten.select.int,
    _aten.narrow.default,
    _aten.expand.default,
    _aten.flip.default,
    _aten.clone.default,
    _aten.contiguous.default,
}
_LOOKUPS = frozenset({_aten.embedding.default, _aten.index.Tensor, _aten.index_select.default})
_OF_INTEGERS = _MOVES | _PADS | _LOOKUPS | {_aten.max_pool2d.default, _aten.amax.default}


@dataclass(frozen=True)
class MoveDequantize(RewritePass[fx.Node]):
    """Let layers read ``qc.dequantize`` of a constant, and movement work on reals."""

    name: ClassVar = "move-dequantize"
    takes: ClassVar = Stage.QDQ
    gives: ClassVar = Stage.QDQ
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> fx.Node | None:
        return node if _moves_constant(node) or _reads_moved(node) or _moves_quantized(node) else None

    def check(self, match: fx.Node) -> str | None:
        if not _moves_constant(match):
            return None if len(_border(match).args[1]) == 1 else "it moves integers that have several scales"  # type: ignore[arg-type]
        constant = dequantized_constant(match.args[0])
        assert constant is not None  # match saw it
        return None if _moved_type(match, constant) is not None else "the scales of the constant do not follow"

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> None:
        site = Site(graph_module, match, self.name)
        if _moves_constant(match):
            _move_constant(site, match)
        elif _reads_moved(match):
            found = _integer_move(match.args[0])
            assert found is not None  # match saw it
            move, integers = found
            site.replace(_moved(site, move, site.call(_qc.dequantize.default, integers, *match.args[1:]), quantized_type(match)))
        else:
            found, border = _integer_move(match), _border(match)
            assert found is not None  # match saw it
            reals = site.call(_qc.dequantize.default, border, *border.args[1:])
            site.replace(site.call(_qc.quantize.default, _moved(site, found[0], reals, quantized_type(border)), *border.args[1:]))


def _moves_constant(node: fx.Node) -> bool:
    return node.target in _MOVES and len(node.all_input_nodes) == 1 and dequantized_constant(node.args[0]) is not None


def _reads_moved(node: fx.Node) -> bool:
    """Cases 2 and 4; movement of constants that depends on nothing else is for ``fold-constants``."""
    if not edit.is_call(node, _qc.dequantize.default):
        return False
    found = _integer_move(node.args[0])
    return found is not None and (not edit.is_constant(found[1]) or len(found[0].all_input_nodes) > 1)


def _moves_quantized(node: fx.Node) -> bool:
    """Case 3, where somebody else than a dequantize reads the result."""
    found = _integer_move(node)
    if found is None or not edit.is_call(found[1], _qc.quantize.default):
        return False
    return any(not edit.is_call(user, _qc.dequantize.default) for user in node.users)


def _border(node: fx.Node) -> fx.Node:
    """The quantize or dequantize that changes places."""
    if edit.is_call(node, _qc.dequantize.default):
        return node
    found = _integer_move(node)
    assert found is not None  # match saw it
    return found[1]


def _integer_move(node: object) -> tuple[fx.Node, fx.Node] | None:
    """The movement that gives the integers of a node, and the integers that it reads; casts around it left out."""
    if not isinstance(node, fx.Node):
        return None
    cast = edit.is_call(node, _aten.to.dtype)
    move = node.args[0] if cast else node
    if not isinstance(move, fx.Node) or move.target not in _OF_INTEGERS:
        return None
    integers = move.args[0]
    if cast and edit.is_call(integers, _aten.to.dtype):
        integers = integers.args[0]  # type: ignore[union-attr]  # a call is a node
    if not isinstance(integers, fx.Node) or integers.meta["val"].dtype is not node.meta["val"].dtype:
        return None
    return None if integers.meta["val"].is_floating_point() else (move, integers)


def _moved(site: Site, move: fx.Node, reals: fx.Node, quantized: QuantizedType) -> fx.Node:
    """The movement of reals in place of their integers; a pad's integer becomes the real that it stands for."""
    if move.target not in _PADS:
        return site.call(move.target, reals, *move.args[1:], **move.kwargs)  # type: ignore[arg-type]  # an op overload
    value = edit.argument(move, "value") or 0
    real = (value - quantized.zero_point[0]) * quantized.scale[0]
    return site.call(_aten.constant_pad_nd.default, reals, move.args[1], real)


def _move_constant(site: Site, node: fx.Node) -> None:
    constant = dequantized_constant(node.args[0])
    assert constant is not None  # match saw it
    quantized = _moved_type(node, constant)
    assert quantized is not None  # check asked for it
    integers = site.constant(node.name, _applied(node, constant.integers).contiguous())
    site.replace(site.call(_qc.dequantize.default, integers, *quantized.arguments))


def _moved_type(node: fx.Node, constant: DequantizedConstant) -> QuantizedType | None:
    """The type behind the movement: its axis is the one along which the index of the channel still counts up."""
    quantized, shape = constant.quantized, constant.integers.shape
    if quantized.axis is None:
        return quantized
    count = torch.arange(shape[quantized.axis])
    index = count.reshape([-1 if dim == quantized.axis else 1 for dim in range(len(shape))]).expand(shape)
    moved = _applied(node, index)
    for axis, size in enumerate(moved.shape):
        along = count.reshape([-1 if dim == axis else 1 for dim in range(moved.ndim)])
        if size == len(count) and torch.equal(moved, along.expand(moved.shape)):
            return QuantizedType(quantized.integer, quantized.scale, quantized.zero_point, axis)
    return None


def _applied(node: fx.Node, tensor: torch.Tensor) -> torch.Tensor:
    moved: torch.Tensor = node.target(tensor, *node.args[1:], **node.kwargs)  # type: ignore[operator]  # an op overload
    return moved
