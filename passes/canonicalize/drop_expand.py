"""``drop-expand``: what is repeated only to fit the other operand is left as it was, since elementwise ops broadcast.

f(expand(x), y) = f(x, y)        where x and y broadcast to the same shape
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.float_ops import MASK_OPS
from qcompiler.ir.types import Stage
from qcompiler.passes.canonicalize import patterns
from qcompiler.pipeline.contract import Exact
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

_BROADCASTS = MASK_OPS | {
    _aten.add.Tensor,
    _aten.sub.Tensor,
    _aten.mul.Tensor,
    _aten.div.Tensor,
    _aten.maximum.default,
    _aten.minimum.default,
}


@dataclass(frozen=True)
class Operand:
    """Operand ``position`` of ``node`` repeats ``source``."""

    node: fx.Node
    position: int
    source: fx.Node


@dataclass(frozen=True)
class DropExpand(RewritePass[Operand]):
    """Let elementwise ops read what an ``expand`` repeats."""

    name: ClassVar = "drop-expand"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> Operand | None:
        if node.op != "call_function" or node.target not in _BROADCASTS:
            return None
        for position, operand in enumerate(node.args):
            if not isinstance(operand, fx.Node) or not edit.is_call(operand, _aten.expand.default):
                continue
            source = operand.args[0]
            assert isinstance(source, fx.Node)  # expand works on a tensor
            shapes = [patterns.sizes(source if each is operand else each) for each in node.all_input_nodes]
            if _broadcast(shapes) == patterns.sizes(node):
                return Operand(node, position, source)
        return None

    def rewrite(self, graph_module: fx.GraphModule, match: Operand) -> None:
        site = Site(graph_module, match.node, self.name)
        operand = match.node.args[match.position]
        args = [match.source if each is operand else each for each in match.node.args]
        site.replace(site.call(match.node.target, *args, **match.node.kwargs))  # type: ignore[arg-type]  # an op overload


def _broadcast(shapes: list[list[str]]) -> list[str]:
    rank = max(map(len, shapes))
    padded = [["1"] * (rank - len(shape)) + shape for shape in shapes]
    return [next((size for size in column if size != "1"), "1") for column in zip(*padded, strict=True)]
