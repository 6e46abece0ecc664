"""``normalize-linear``: matrix products with a constant matrix become ``aten.linear``.

    x @ W = linear(x, W^T)                      mm, matmul
    beta b + alpha (x @ W) = linear(x, alpha W^T, beta b)   addmm

with W a constant matrix [inputs, outputs], in floats or behind a ``qc.dequantize``. Products of two computed values, and products with the
constant on the left, stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.quantized_constants import dequantized_constant
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten


@dataclass(frozen=True)
class NormalizeLinear(RewritePass[fx.Node]):
    """One form of the linear layer: ``aten.linear`` with a weight [outputs, inputs]."""

    name: ClassVar = "normalize-linear"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> fx.Node | None:
        if edit.is_call(node, _aten.addmm.default):
            return node if edit.is_constant(node.args[2]) else None
        if not edit.is_call(node, _aten.mm.default, _aten.matmul.default):
            return None
        return node if edit.is_constant(node.args[1]) or dequantized_constant(node.args[1]) is not None else None

    def check(self, match: fx.Node) -> str | None:
        if edit.is_call(match, _aten.addmm.default):
            bias = match.args[0]
            return None if edit.is_constant(bias) and bias.meta["val"].ndim == 1 else "what it adds is not a constant vector"
        rank = match.args[1].meta["val"].ndim  # type: ignore[union-attr]  # match saw that it is a node
        return None if rank == 2 else f"its constant has {rank} dimensions, not 2"

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> None:
        site = Site(graph_module, match, self.name)
        if edit.is_call(match, _aten.addmm.default):
            bias, x, matrix = match.args[:3]
            alpha, beta = edit.argument(match, "alpha"), edit.argument(match, "beta")
            site.replace(site.call(_aten.linear.default, x, _scaled(site, matrix, alpha), _scaled(site, bias, beta)))
            return
        x, matrix = match.args[:2]
        if dequantized_constant(matrix) is not None:
            site.replace(site.call(_aten.linear.default, x, site.call(_aten.permute.default, matrix, [1, 0])))
            return
        site.replace(site.call(_aten.linear.default, x, _scaled(site, matrix, 1)))


def _scaled(site: Site, node: object, factor: float) -> fx.Node:
    """The constant times ``factor``, a matrix transposed, as a new constant under the old name."""
    assert isinstance(node, fx.Node)  # match and check saw that it is one
    value = edit.constant_value(node)
    assert value is not None  # as above
    return site.constant(str(node.target), (value.t() if value.ndim == 2 else value).mul(factor).contiguous())
