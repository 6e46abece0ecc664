"""``fold-dequantize``: integer constants become reals again where integers say nothing.

That is where lowering takes a real: numbers of arithmetic (``x / dequantize(q)`` with one element), and what normalizations and PReLU
have for each channel. Weights of layers, biases and terms of sums stay integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.float_ops import ARITHMETIC_OPS
from qcompiler.ir.quantized_constants import DequantizedConstant, dequantized_constant
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Exact
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

# Op -> its arguments that lowering wants as reals.
_PARAMETERS: Mapping[object, tuple[str, ...]] = {
    _aten.layer_norm.default: ("weight", "bias"),
    _aten.rms_norm.default: ("weight",),
    _aten.prelu.default: ("weight",),
    _aten.batch_norm.default: ("weight", "bias", "running_mean", "running_var"),
}


@dataclass(frozen=True)
class FoldDequantize(RewritePass[tuple[fx.Node, list[DequantizedConstant]]]):
    """Replace ``qc.dequantize`` of a number, or of a normalization's parameter, by its value."""

    name: ClassVar = "fold-dequantize"
    takes: ClassVar = Stage.QDQ
    gives: ClassVar = Stage.QDQ
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> tuple[fx.Node, list[DequantizedConstant]] | None:
        if node.op != "call_function":
            return None
        if node.target in ARITHMETIC_OPS:
            found = [each for each in map(dequantized_constant, node.args[:2]) if each is not None and each.integers.numel() == 1]
        else:
            names = _PARAMETERS.get(node.target, ())
            found = [each for each in (dequantized_constant(edit.argument(node, name)) for name in names) if each is not None]
        return (node, found) if found else None

    def rewrite(self, graph_module: fx.GraphModule, match: tuple[fx.Node, list[DequantizedConstant]]) -> None:
        node, constants = match
        for constant in constants:
            value = Site(graph_module, constant.node, self.name).constant(f"{constant.node.name}_real", constant.reals)
            node.replace_input_with(constant.node, value)
