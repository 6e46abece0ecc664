"""``hoist-quantize``: a constant that is only moved is quantized before it is moved.

    quantize(expand(c)) = expand(quantize(c))              with one scale; likewise slices, and other movement
    quantize(embedding(c, ids)) = embedding(quantize(c), ids)

Class tokens are constants that models repeat for each sample, positions are rows of a constant, and words are chosen from a table: as
integers they are constants of the program. Each element is rounded by itself, so it does not matter when.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.float_ops import MOVEMENT_OPS
from qcompiler.ir.quantized_constants import dequantized_constant
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Exact
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten, _qc = torch.ops.aten, torch.ops.qc

# What gives elements of its first operand alone; a pad adds others.
_SELECTS = (MOVEMENT_OPS - {_aten.cat.default, _aten.constant_pad_nd.default}) | {_aten.embedding.default}


@dataclass(frozen=True)
class HoistQuantize(RewritePass[tuple[fx.Node, list[fx.Node]]]):
    """Quantize a constant itself where what is quantized selects from it or repeats it."""

    name: ClassVar = "hoist-quantize"
    takes: ClassVar = Stage.QDQ
    gives: ClassVar = Stage.QDQ
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> tuple[fx.Node, list[fx.Node]] | None:
        """The quantize, and the movement that it reads, the last op first."""
        if not edit.is_call(node, _qc.quantize.default) or len(node.args[1]) != 1:  # type: ignore[arg-type]  # a list, by the schema
            return None
        moves: list[fx.Node] = []
        value = node.args[0]
        while isinstance(value, fx.Node) and value.target in _SELECTS:
            moves.append(value)
            value = value.args[0]
        return (node, moves) if moves and _reals(value) is not None else None

    def rewrite(self, graph_module: fx.GraphModule, match: tuple[fx.Node, list[fx.Node]]) -> None:
        node, moves = match
        site = Site(graph_module, node, self.name)
        values = _reals(moves[-1].args[0])
        assert values is not None  # match saw it
        result = site.constant(f"{node.name}_integers", _qc.quantize(values, *node.args[1:]))
        for move in reversed(moves):
            result = site.call(move.target, result, *move.args[1:], **move.kwargs)  # type: ignore[arg-type]  # an op overload
        site.replace(result)


def _reals(value: object) -> torch.Tensor | None:
    """The numbers of a constant, in floats or in integers."""
    constant = dequantized_constant(value)
    return edit.constant_value(value) if constant is None else constant.reals
