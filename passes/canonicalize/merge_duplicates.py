"""``merge-duplicates``: a mask that several layers compute alike is computed once.

Two calls of one op with the same operands give the same value, so that the readers of the second may read the first. This is done for
integers and booleans only (masks, positions): values in floats keep a rounding of their own when they are quantized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Exact
from qcompiler.pipeline.rewrite import RewritePass


@dataclass(frozen=True)
class Duplicate:
    """``node`` gives what ``first`` gives, which stands before it."""

    node: fx.Node
    first: fx.Node


@dataclass(frozen=True)
class MergeDuplicates(RewritePass[Duplicate]):
    """Let the readers of a repeated integer or boolean computation read the first one."""

    name: ClassVar = "merge-duplicates"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> Duplicate | None:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor | torch.SymInt):
            return None
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return None
        source = next(iter(node.all_input_nodes), None)
        for other in () if source is None else edit.users_of(source):
            if other is node:
                return None
            if other.target is node.target and _same_arguments(other, node):
                return Duplicate(node, other)
        return None

    def rewrite(self, graph_module: fx.GraphModule, match: Duplicate) -> None:
        edit.replace(match.node, match.first)


def _same_arguments(first: fx.Node, second: fx.Node) -> bool:
    return first.op == "call_function" and first.args == second.args and first.kwargs == second.kwargs
