"""Which values are made in their place of a concatenation that reads them, so that joining them takes no copies.

Along channels, which follow each other in memory, the parts of a concatenation lie side by side in every pixel. A kernel that leaves room
between its pixels writes its part there at once. A value has its place in the last concatenation that reads it: where maps are joined with
more and more others (DenseNet), each earlier concatenation is then the first channels of the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.backends.tvm.kernels import Size
from qcompiler.ir import edit

_aten, _qc = torch.ops.aten, torch.ops.qc

CONCATENATION = _aten.cat.default
# Fewer channels cost a kernel whose loops end with them more than the copy does, measured. A pooling's windows run along rows of a map.
_FEWEST, _FEWEST_POOLED = 16, 32
_POOLINGS = (_qc.max_pool2d.default, _qc.sum_pool2d.default)
# What reads elements wherever they lie. Others may want rows or maps without gaps, or with a halo of their own.
_READS_ANYWHERE = (
    CONCATENATION,
    _qc.add.default,
    _qc.clamp.default,
    _qc.lookup.default,
    _qc.multiply.default,
    _qc.requantize.default,
)


@dataclass(frozen=True)
class Place:
    """Channels ``start`` to ``start + size`` of a concatenation, which are its indices along ``dim``."""

    concatenation: fx.Node
    dim: int
    start: int
    size: int


def find_places(
    graph: fx.Graph,
    tensors: Mapping[fx.Node, torch.Tensor],
    shape: Callable[[fx.Node], Sequence[Size]],
    layers: Collection[fx.Node],
) -> dict[fx.Node, Place]:
    """Of each value that may be made in its place of a concatenation; ``layers``: values that convolutions and linear layers make."""
    places: dict[fx.Node, Place] = {}
    for concatenation in edit.calls(graph, CONCATENATION):
        places |= {
            node: place
            for node, place in _parts(concatenation, shape)
            if _can_lie_in(node, concatenation, tensors) and (node in layers or place.size >= _fewest(node))
        }
    return places


def channel_dim(shape: Sequence[Size]) -> int:
    """The dimension that is innermost in memory: a map of fixed sizes lies as NHWC, all else row by row."""
    return 1 if len(shape) == 4 and all(isinstance(size, int) for size in shape) else len(shape) - 1


def _parts(concatenation: fx.Node, shape: Callable[[fx.Node], Sequence[Size]]) -> Iterator[tuple[fx.Node, Place]]:
    """The values that are joined along channels, each at its first occurrence."""
    whole = shape(concatenation)
    dim, start = edit.argument(concatenation, "dim") % len(whole), 0
    seen: set[fx.Node] = set()
    for node in edit.argument(concatenation, "tensors"):
        size = shape(node)[dim]
        if dim != channel_dim(whole) or not isinstance(size, int):
            return
        if node not in seen:
            yield node, Place(concatenation, dim, start, size)
        seen.add(node)
        start += size


def _fewest(node: fx.Node) -> int:
    return _FEWEST_POOLED if edit.is_call(node, *_POOLINGS) else _FEWEST


def _can_lie_in(node: fx.Node, concatenation: fx.Node, tensors: Mapping[fx.Node, torch.Tensor]) -> bool:
    if node.op == "get_attr" or tensors[node].dtype != tensors[concatenation].dtype:
        return False
    return all(user.op == "output" or edit.is_call(user, *_READS_ANYWHERE) for user in node.users)
