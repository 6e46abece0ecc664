"""``normalize-pooling``: adaptive pooling whose windows are all alike becomes pooling with a stride.

Adaptive pooling of n elements into m takes the window [floor(i n / m), ceil((i + 1) n / m)) for output i. Where m divides n, these are
the windows of size n / m at stride n / m.

    adaptive_avg_pool2d(x, [h, w]) = avg_pool2d(x, [H/h, W/w], [H/h, W/w])        likewise max
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

_STRIDED: Mapping[object, edit.Target] = {
    _aten.adaptive_avg_pool2d.default: _aten.avg_pool2d.default,
    _aten.adaptive_max_pool2d.default: _aten.max_pool2d.default,
}


@dataclass(frozen=True)
class NormalizePooling(RewritePass[fx.Node]):
    """Adaptive pooling into a size that divides the input's becomes plain pooling."""

    name: ClassVar = "normalize-pooling"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> fx.Node | None:
        # Adaptive max pooling gives (values, positions).
        if node.target is operator.getitem and edit.is_call(node.args[0], _aten.adaptive_max_pool2d.default):
            return node if node.args[1] == 0 else None
        return node if edit.is_call(node, _aten.adaptive_avg_pool2d.default) else None

    def check(self, match: fx.Node) -> str | None:
        before, after = _spatial_sizes(match)
        divides = all(size % part == 0 for size, part in zip(before, after, strict=True))
        return None if divides else f"its windows differ: {before} elements into {after}"

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> None:
        site = Site(graph_module, match, self.name)
        window = [size // part for size, part in zip(*_spatial_sizes(match), strict=True)]
        pool = _pool(match)
        site.replace(site.call(_STRIDED[pool.target], pool.args[0], window, window))


def _pool(node: fx.Node) -> fx.Node:
    pool = node.args[0] if node.target is operator.getitem else node
    assert isinstance(pool, fx.Node)  # match saw that it is one
    return pool


def _spatial_sizes(node: fx.Node) -> tuple[list[int], list[int]]:
    source = _pool(node).args[0]
    return list(source.meta["val"].shape[-2:]), list(node.meta["val"].shape[-2:])  # type: ignore[union-attr]  # a tensor's node
