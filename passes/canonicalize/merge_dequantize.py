"""``merge-dequantize``: integers that several nodes read are dequantized once.

Tools write a DequantizeLinear of its own for each reader. Equal ones are one value, so that patterns in which a value occurs twice
(``x * sigmoid(x)``) are recognized.
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

_qc = torch.ops.qc


@dataclass(frozen=True)
class MergeDequantize(RewritePass[tuple[fx.Node, fx.Node]]):
    """Let the readers of a repeated ``qc.dequantize`` read the first one."""

    name: ClassVar = "merge-dequantize"
    takes: ClassVar = Stage.QDQ
    gives: ClassVar = Stage.QDQ
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        if not edit.is_call(node, _qc.dequantize.default) or not node.users:
            return None
        source = node.args[0]
        assert isinstance(source, fx.Node)  # the op's tensor
        first = next(user for user in edit.users_of(source) if edit.is_call(user, _qc.dequantize.default) and user.args == node.args)
        return None if first is node else (node, first)

    def rewrite(self, graph_module: fx.GraphModule, match: tuple[fx.Node, fx.Node]) -> None:
        edit.replace(*match)
