"""``fold-constants``: a call whose operands are all constants is computed now.

What a model does with its own parameters (``weight.t()``, ``anchors * stride``, ``torch.arange(n)``) becomes one constant. The value
is computed by the op itself, in the op's own precision, so that nothing changes by even a bit. Weights that are integers already stay
so: a ``qc.dequantize`` is not folded.
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


@dataclass(frozen=True)
class FoldConstants(RewritePass[fx.Node]):
    """Replace calls on constants by the constants that they give."""

    name: ClassVar = "fold-constants"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> fx.Node | None:
        if node.op != "call_function" or not isinstance(node.meta["val"], torch.Tensor):
            return None
        if edit.is_call(node, torch.ops.qc.dequantize.default):
            return None
        return node if all(source.op == "get_attr" for source in node.all_input_nodes) else None

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> None:
        site = Site(graph_module, match, self.name)
        args, kwargs = fx.node.map_arg((match.args, match.kwargs), edit.constant_value)
        with torch.no_grad():
            value = match.target(*args, **kwargs)  # type: ignore[operator]  # fx types targets as str | Callable
        site.replace(site.constant(match.name, value.clone(memory_format=torch.contiguous_format)))
