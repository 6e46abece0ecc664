"""``drop-rounding``: what is on the steps of a quantizer already is not rounded again.

    dequantize(quantize(move(dequantize(q)))) = move(dequantize(q))        all of one scale and zero point

Movement, rows of tables, maxima and padding with zeros give values that q had, or 0. Tools quantize behind each of them all the same;
without that, movement is one piece again, and patterns of movement are recognized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.float_ops import MOVEMENT_OPS
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Exact
from qcompiler.pipeline.rewrite import RewritePass

_aten, _qc = torch.ops.aten, torch.ops.qc

_KEEPS_STEPS = (MOVEMENT_OPS - {_aten.cat.default}) | {_aten.max_pool2d.default, _aten.amax.default, _aten.embedding.default}


@dataclass(frozen=True)
class DropRounding(RewritePass[tuple[fx.Node, fx.Node]]):
    """Let readers of a rounding that changes nothing read what goes into it."""

    name: ClassVar = "drop-rounding"
    takes: ClassVar = Stage.QDQ
    gives: ClassVar = Stage.QDQ
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """A dequantize that is read, and the value that was rounded before it."""
        if not edit.is_call(node, _qc.dequantize.default) or not node.users:
            return None
        quantize = node.args[0]
        if not edit.is_call(quantize, _qc.quantize.default) or list(quantize.args[1:]) != list(node.args[1:]):  # type: ignore[union-attr]
            return None
        value = quantize.args[0]  # type: ignore[union-attr]  # a call is a node
        assert isinstance(value, fx.Node)  # the op's tensor
        one_scale = len(node.args[1]) == 1  # type: ignore[arg-type]  # a list, by the schema
        return (node, value) if one_scale and _is_on_steps(value, list(node.args[1:])) else None

    def rewrite(self, graph_module: fx.GraphModule, match: tuple[fx.Node, fx.Node]) -> None:
        edit.replace(*match)


def _is_on_steps(value: fx.Node, parameters: list[object]) -> bool:
    """Whether all elements are reals of a dequantize with these parameters, or 0."""
    while not edit.is_call(value, _qc.dequantize.default):
        source = value.args[0] if value.target in _KEEPS_STEPS else None
        if not isinstance(source, fx.Node) or (edit.is_call(value, _aten.constant_pad_nd.default) and _fills(value)):
            return False
        value = source
    return list(value.args[1:]) == parameters


def _fills(node: fx.Node) -> bool:
    """Whether a pad adds another number than 0."""
    return bool(edit.argument(node, "value"))
