"""``hoist-quantize``: a constant that is repeated is quantized before it is repeated.

    quantize(expand(c)) = expand(quantize(c))        with one scale

Class tokens are constants that models repeat for each sample; as integers they are constants of the program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Exact
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten, _qc = torch.ops.aten, torch.ops.qc


@dataclass(frozen=True)
class HoistQuantize(RewritePass[tuple[fx.Node, fx.Node]]):
    """Quantize a constant itself where what is quantized repeats it."""

    name: ClassVar = "hoist-quantize"
    takes: ClassVar = Stage.QDQ
    gives: ClassVar = Stage.QDQ
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """The quantize and the expand that it reads."""
        if not edit.is_call(node, _qc.quantize.default) or len(node.args[1]) != 1:  # type: ignore[arg-type]  # a list, by the schema
            return None
        expand = node.args[0]
        if not isinstance(expand, fx.Node) or not edit.is_call(expand, _aten.expand.default) or not edit.is_constant(expand.args[0]):
            return None
        return node, expand

    def rewrite(self, graph_module: fx.GraphModule, match: tuple[fx.Node, fx.Node]) -> None:
        node, expand = match
        site = Site(graph_module, node, self.name)
        values = edit.constant_value(expand.args[0])
        integers = site.constant(f"{node.name}_integers", _qc.quantize(values, *node.args[1:]))
        site.replace(site.call(_aten.expand.default, integers, *expand.args[1:]))
