"""``sink-reshapes``: elementwise ops change places with the reshapes before them.

    f(reshape(x, s)) = reshape(f(x), s)                                  f a function of one element
    g(reshape(x, s), reshape(y, s)) = reshape(g(x, y), s)                g of two, x and y of one shape
    g(reshape(x, s), c) = reshape(g(x, c), s)                            c a number

A reshape keeps the order of elements, so what is done to each by itself may be done before or after. Layers then stand beside their
activations, and two reshapes beside each other (``one-d-to-two-d`` leaves such) are one for ``normalize-views``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.float_ops import UNARY_OPS
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Exact
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

_BINARY_OPS = frozenset({_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.maximum.default, _aten.minimum.default})


@dataclass(frozen=True)
class SinkReshapes(RewritePass[fx.Node]):
    """Move reshapes behind the elementwise ops that read them alone."""

    name: ClassVar = "sink-reshapes"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> fx.Node | None:
        if node.op != "call_function" or node.target not in UNARY_OPS | _BINARY_OPS or node.kwargs:
            return None
        reshapes = node.all_input_nodes
        sunk = reshapes and all(edit.is_call(reshape, _aten.reshape.default) and len(reshape.users) == 1 for reshape in reshapes)
        shapes = {(str(reshape.args[0].meta["val"].shape), str(reshape.args[1])) for reshape in reshapes} if sunk else set()  # type: ignore[union-attr]  # a tensor's node
        return node if len(shapes) == 1 else None

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> None:
        site = Site(graph_module, match, self.name)
        args = [operand.args[0] if isinstance(operand, fx.Node) else operand for operand in match.args]
        result = site.call(match.target, *args)  # type: ignore[arg-type]  # an op overload
        site.replace(site.call(_aten.reshape.default, result, match.all_input_nodes[0].args[1]))
