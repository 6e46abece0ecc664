"""``remove-identities``: an op that gives back its argument is left out.

1. Ops that are the identity whatever their arguments: clone, contiguous, detach, alias, dropout in evaluation mode.
2. Conversions to the type that a value has already.
3. Movement that moves nothing: a view to the same shape, a permutation in order, a slice of everything, padding by nothing.
4. Arithmetic with the neutral number: x + 0, x - 0, x * 1, x / 1, x ** 1.
5. Pooling over windows of one element, concatenation of one tensor.

Adding +0 turns -0 into +0; nothing that follows tells them apart but a division, where the sign of an infinity would differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Exact
from qcompiler.pipeline.rewrite import RewritePass

_aten = torch.ops.aten


def _always(node: fx.Node) -> bool:
    return True


def _keeps_shape(node: fx.Node) -> bool:
    """For ops that can only leave a value as it is where they leave its shape."""
    return _shape(node) == _shape(_source(node))


def _permutes_nothing(node: fx.Node) -> bool:
    dims = edit.argument(node, "dims")
    return all(dim % len(dims) == position for position, dim in enumerate(dims))


def _swaps_nothing(node: fx.Node) -> bool:
    rank = len(_shape(node))
    return bool(edit.argument(node, "dim0") % rank == edit.argument(node, "dim1") % rank)


def _pads_nothing(node: fx.Node) -> bool:
    return not any(edit.argument(node, "pad"))


def _adds_zero(node: fx.Node) -> bool:
    return _is_number(node.args[1], 0) or _is_number(edit.argument(node, "alpha"), 0)


def _scales_by_one(node: fx.Node) -> bool:
    return _is_number(node.args[1], 1)


def _pools_single_elements(node: fx.Node) -> bool:
    settings = [edit.argument(node, name) for name in ("kernel_size", "stride", "padding")]
    kernel, stride, padding = (list(value) if isinstance(value, list | tuple) else [value] for value in settings)
    return set(kernel) == {1} and set(stride) <= {1} and set(padding) == {0}


_CASES: Mapping[object, Callable[[fx.Node], bool]] = {
    # 1
    _aten.clone.default: _always,
    _aten.contiguous.default: _always,
    _aten.detach.default: _always,
    _aten.alias.default: _always,
    _aten.lift_fresh_copy.default: _always,
    _aten.dropout.default: _always,
    _aten.feature_dropout.default: _always,
    # 2: the type is compared for every case
    _aten.to.dtype: _always,
    _aten.to.dtype_layout: _always,
    _aten.to.device: _always,
    _aten.type_as.default: _always,
    _aten._to_copy.default: _always,
    # 3
    _aten.view.default: _keeps_shape,
    _aten._unsafe_view.default: _keeps_shape,
    _aten.reshape.default: _keeps_shape,
    _aten.flatten.using_ints: _keeps_shape,
    _aten.squeeze.dim: _keeps_shape,
    _aten.squeeze.dims: _keeps_shape,
    _aten.expand.default: _keeps_shape,
    _aten.expand_as.default: _keeps_shape,
    _aten.slice.Tensor: _keeps_shape,
    _aten.permute.default: _permutes_nothing,
    _aten.transpose.int: _swaps_nothing,
    _aten.constant_pad_nd.default: _pads_nothing,
    _aten.pad.default: _pads_nothing,
    # 4
    _aten.add.Tensor: _adds_zero,
    _aten.sub.Tensor: _adds_zero,
    _aten.mul.Tensor: _scales_by_one,
    _aten.div.Tensor: _scales_by_one,
    _aten.pow.Tensor_Scalar: _scales_by_one,
    # 5
    _aten.max_pool2d.default: _pools_single_elements,
    _aten.avg_pool2d.default: _pools_single_elements,
    _aten.max_pool1d.default: _pools_single_elements,
    _aten.avg_pool1d.default: _pools_single_elements,
    _aten.cat.default: _keeps_shape,
}


@dataclass(frozen=True)
class RemoveIdentities(RewritePass[fx.Node]):
    """Let the readers of an identity read its argument."""

    name: ClassVar = "remove-identities"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> fx.Node | None:
        case = _CASES.get(node.target) if node.op == "call_function" else None
        if case is None or not isinstance(_source(node), fx.Node) or not case(node):
            return None
        return node if node.meta["val"].dtype == _source(node).meta["val"].dtype and _keeps_shape(node) else None

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> None:
        edit.replace(match, _source(match))


def _source(node: fx.Node) -> Any:
    """The tensor that the op works on; of a list of tensors its only member, if it has one."""
    first = node.args[0]
    return first[0] if isinstance(first, list | tuple) and len(first) == 1 else first


def _shape(node: fx.Node) -> list[str]:
    """Sizes as text: comparing symbols themselves would add guards to the shape environment."""
    return [str(size) for size in node.meta["val"].shape]


def _is_number(value: object, number: int) -> bool:
    return isinstance(value, int | float) and value == number
