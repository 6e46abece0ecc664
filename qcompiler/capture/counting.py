"""Indexing by counting is a view.

``mask[torch.arange(B)[:, None, None, None], torch.arange(S)[None, None, None, :]]``, with B and S the sizes of the mask, takes each
element where it stands: the result is the mask with dimensions of size 1 between its own. (The masks of ``transformers`` are made so.)
"""

from __future__ import annotations

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.provenance import provenance_of

_aten = torch.ops.aten

# What keeps the elements of a count in order, one behind the other.
_KEEPS_COUNT = frozenset(
    {
        _aten.unsqueeze.default,
        _aten.view.default,
        _aten.reshape.default,
        _aten.clone.default,
        _aten.contiguous.default,
        _aten.to.dtype,
        _aten.to.device,
        _aten.to.dtype_layout,
        _aten.alias.default,
    }
)


def replace_counting(graph: fx.Graph) -> None:
    """Rewrite every ``aten.index`` that counts into ``aten.unsqueeze``, in place."""
    for node in edit.calls(graph, _aten.index.Tensor):
        positions = _positions(node)
        if positions is None:
            continue
        result = node.args[0]
        for dim in range(node.meta["val"].ndim):
            if dim not in positions:
                result = edit.insert_call(graph, _aten.unsqueeze.default, (result, dim), before=node, provenance_from=[node])
        assert isinstance(result, fx.Node)  # index works on a tensor
        result.meta["provenance"] = provenance_of(node)
        edit.replace(node, result)


def _positions(node: fx.Node) -> list[int] | None:
    """The dimension of the result in which each dimension of the tensor is counted, in order; None if one is not."""
    source: fx.Node = node.args[0]  # type: ignore[assignment]  # aten.index(Tensor, Tensor?[])
    indices: list[fx.Node | None] = list(node.args[1])  # type: ignore[arg-type]  # as above
    shape, rank = source.meta["val"].shape, node.meta["val"].ndim
    counting = [index for index, size in zip(indices, shape, strict=False) if index is not None and _counts(index) == str(size)]
    if not len(counting) == len(indices) == len(shape):
        return None
    positions = [_long_dimension(index) + rank - index.meta["val"].ndim for index in counting]
    return positions if positions == sorted(set(positions)) else None


def _counts(index: fx.Node) -> str | None:
    """n, as text, of an index that holds 0, 1, …, n - 1 along one dimension."""
    while _keeps_count(index):
        index = index.args[0]  # type: ignore[assignment]  # these work on a tensor
    if edit.is_call(index, _aten.arange.default):
        return str(index.meta["val"].shape[0])
    constant = edit.constant_value(index)
    count = constant.numel() if constant is not None else 0
    return str(count) if constant is not None and torch.equal(constant.flatten(), torch.arange(count)) else None


def _keeps_count(node: fx.Node) -> bool:
    if edit.is_call(node, _aten.add.Tensor, _aten.add.Scalar):
        return bool(node.args[1] == 0)
    if edit.is_call(node, _aten.slice.Tensor):
        return str(node.meta["val"].shape) == str(node.args[0].meta["val"].shape)  # type: ignore[union-attr]  # works on a tensor
    return node.target in _KEEPS_COUNT


def _long_dimension(index: fx.Node) -> int:
    """The one dimension that is not of size 1; the last where all are."""
    long = [dim for dim, size in enumerate(index.meta["val"].shape) if str(size) != "1"]
    return long[0] if long else index.meta["val"].ndim - 1
