"""``split-linear``: one product that is cut into parts, each with a type of its own, becomes one product for each part.

Queries, keys and values often come out of one linear layer::

    linear -> [reshape] -> [permute ...] -> slice, slice, slice

Rounded together they share one scale, which the part with the largest values decides. Rounded apart each has its own, as in RepQ-ViT
(arXiv 2212.08254) and most papers on fewer than 8 bits. Each part takes its rows of the weight; the function stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.layers import as_layer
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

_SPLITS = (_aten.reshape.default, _aten.unflatten.int)


@dataclass(frozen=True)
class Cut:
    """A linear layer, the moves after it, and the slices of the last move that part its channels along dimension ``dim``."""

    linear: fx.Node
    moves: tuple[fx.Node, ...]
    slices: tuple[fx.Node, ...]
    dim: int

    @property
    def moved(self) -> fx.Node:
        return self.moves[-1] if self.moves else self.linear

    @property
    def part_dim(self) -> int:
        """The dimension that is cut, as it is before the permutations: of what the first move, or the layer, gives."""
        dim = self.dim
        for move in reversed(self.moves):
            if move.target is _aten.permute.default:
                dim = int(move.args[1][dim])  # type: ignore[index,arg-type]  # a list of dimensions
        return dim

    @property
    def factors(self) -> tuple[int, ...]:
        """The sizes that the layer's channels are taken apart into; the channels themselves where nothing takes them apart."""
        first = self.moves[0] if self.moves and self.moves[0].target in _SPLITS else self.linear
        rank = self.linear.meta["val"].ndim
        return tuple(first.meta["val"].shape[rank - 1 :])


@dataclass(frozen=True)
class SplitLinear(RewritePass[Cut]):
    """Linear layers whose results are cut into parts (queries, keys, values) become one layer for each part."""

    name: ClassVar = "split-linear"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> Cut | None:
        if node.target is not _aten.linear.default or as_layer(node) is None:
            return None
        moves: list[fx.Node] = []
        value = node
        while len(value.users) == 1:
            (value,) = value.users
            if value.target is not _aten.permute.default and not (value.target in _SPLITS and not moves):
                return None
            moves.append(value)
        slices = edit.users_of(value)
        if len(slices) < 2 or any(user.target is not _aten.slice.Tensor for user in slices):
            return None
        dims = {edit.argument(user, "dim") % value.meta["val"].ndim for user in slices}
        return Cut(node, tuple(moves), slices, dims.pop()) if len(dims) == 1 else None

    def check(self, match: Cut) -> str | None:
        rank = match.linear.meta["val"].ndim
        first = match.moves[0].meta["val"].shape if match.moves else match.linear.meta["val"].shape
        if tuple(first[: rank - 1])[1:] != tuple(match.linear.meta["val"].shape[1:-1]) or _count(match.factors) != _channels(match.linear):
            return "a reshape mixes its channels with other dimensions"
        if match.part_dim < rank - 1:
            return "it is not cut along its channels"
        size = match.moved.meta["val"].shape[match.dim]
        ends = [_ends(cut, size) for cut in match.slices]
        if any(edit.argument(cut, "step") != 1 for cut in match.slices) or not _tile(ends, size):
            return "the parts overlap or leave channels out"
        return None

    def rewrite(self, graph_module: fx.GraphModule, match: Cut) -> str:
        offset = match.part_dim - (match.linear.meta["val"].ndim - 1)
        rows = torch.arange(_count(match.factors)).reshape(match.factors)
        site = Site(graph_module, match.slices[0], self.name)
        parts = []
        for cut in match.slices:
            start, end = _ends(cut, match.factors[offset])
            parts.append(_part(site, match, rows.narrow(offset, start, end - start).reshape(-1), end - start))
        for cut, part in zip(match.slices, parts, strict=True):
            cut.replace_all_uses_with(part)
        return f"is cut into {len(parts)} layers"


def _part(site: Site, match: Cut, rows: torch.Tensor, size: int) -> fx.Node:
    """The layer with some of the rows, and its own copy of the moves; the size along the cut dimension becomes ``size``."""
    linear = match.linear
    constants = [edit.argument(linear, name) for name in ("weight", "bias")]
    value = site.call(_aten.linear.default, linear.args[0], *(_rows(site, constant, rows) for constant in constants))
    for move in match.moves:
        arguments = list(move.args[1:])
        if move.target in _SPLITS:
            position = match.part_dim if move.target is _aten.reshape.default else match.part_dim - (linear.meta["val"].ndim - 1)
            sizes = list(arguments[-1])  # type: ignore[arg-type]  # a list of sizes
            sizes[position] = size
            arguments[-1] = sizes
        value = site.call(move.target, value, *arguments)  # type: ignore[arg-type]  # an op overload
    return value


def _rows(site: Site, constant: object, rows: torch.Tensor) -> fx.Node | None:
    values = edit.constant_value(constant)
    if values is None or not isinstance(constant, fx.Node):
        return None
    return site.constant(str(constant.target), values[rows].contiguous())


def _ends(cut: fx.Node, size: int) -> tuple[int, int]:
    start, end = edit.argument(cut, "start") or 0, edit.argument(cut, "end")
    start = start + size if start < 0 else start
    return start, min(size if end is None else end + size if end < 0 else end, size)


def _tile(ends: Sequence[tuple[int, int]], size: int) -> bool:
    """Whether the ranges follow one another from 0 to ``size``."""
    reached = 0
    for start, end in sorted(ends):
        if start != reached or end <= start:
            return False
        reached = end
    return reached == size


def _count(factors: Sequence[int]) -> int:
    return int(torch.Size(factors).numel()) if all(isinstance(factor, int) for factor in factors) else -1


def _channels(linear: fx.Node) -> int:
    return int(linear.meta["val"].shape[-1])
