"""``fold-affine``: multiplication by and addition of constants go into the layer before or after.

    s (W x + b) + t = (s W) x + (s b + t),        W (s x + t) + b = (W s) x + (b + W t)

for a number or one constant per channel of the layer. The second form needs t = 0 where the layer pads. Algebra and conditions stand
in ``affine.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.layers import is_layer
from qcompiler.ir.types import Stage
from qcompiler.passes.canonicalize.affine import (
    ChannelAffine,
    constant_affine,
    fold_after,
    fold_before,
    reason_not_after,
    reason_not_before,
)
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass

_aten = torch.ops.aten


@dataclass(frozen=True)
class FoldAffine(RewritePass[ChannelAffine]):
    """Fold ``x * c`` and ``x + c`` into a neighbouring convolution, transposed convolution or linear layer."""

    name: ClassVar = "fold-affine"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> ChannelAffine | None:
        affine = _as_affine(node)
        beside_layer = affine is not None and any(is_layer(other) for other in (affine.source, *node.users))
        return affine if beside_layer else None

    def check(self, match: ChannelAffine) -> str | None:
        not_after = reason_not_after(match)
        not_before = None if not_after is None else reason_not_before(match)
        return None if not_before is None else f"{not_after}, and {not_before}"

    def rewrite(self, graph_module: fx.GraphModule, match: ChannelAffine) -> None:
        if reason_not_after(match) is None:
            fold_after(graph_module, match, self.name)
        else:
            fold_before(graph_module, match, self.name)


def _as_affine(node: fx.Node) -> ChannelAffine | None:
    """x * c or x + c in the form that ``normalize-arithmetic`` leaves."""
    if not edit.is_call(node, _aten.mul.Tensor, _aten.add.Tensor) or node.kwargs or len(node.args) != 2:
        return None
    source, operand = node.args
    constant = torch.tensor(operand) if isinstance(operand, int | float) else edit.constant_value(operand)
    if not isinstance(source, fx.Node) or source.op == "get_attr" or constant is None:
        return None
    if edit.is_call(node, _aten.mul.Tensor):
        return constant_affine(node, source, constant, torch.zeros(()))
    return constant_affine(node, source, torch.ones(()), constant)
