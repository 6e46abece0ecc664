"""``weights-to-int8``: weights in other integers become int8 with zero point 0, which is what layers on integers read.

    s (q - z) = s q'            q' = q - z

where every q' lies in [-128, 127]: uint8 around 128, 4 bits. Where some do not (uint8 around another zero point: q' has 9 bits), the layer
reads its input twice::

    W x = [W1 W2] [x x]         q1 = clamp(q', -128, 127), q2 = clamp(q' - q1, -128, 127), …

which is exact too, and costs as many products again. The integers of the input are joined with themselves, group by group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.float_ops import MOVEMENT_OPS
from qcompiler.ir.quantized_constants import DequantizedConstant, dequantized_constant
from qcompiler.ir.types import INT8, QuantizedType, Stage
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten, _qc = torch.ops.aten, torch.ops.qc

_SPLIT = frozenset({_aten.linear.default, _aten.conv2d.default})
_LAYERS = _SPLIT | {_aten.conv_transpose2d.input}
_MOST_PARTS = 3  # |q'| is at most 255


@dataclass(frozen=True)
class WeightsToInt8(RewritePass[tuple[fx.Node, DequantizedConstant]]):
    """Write weights as int8 with zero point 0, in two parts where they have 9 bits."""

    name: ClassVar = "weights-to-int8"
    takes: ClassVar = Stage.QDQ
    gives: ClassVar = Stage.QDQ
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> tuple[fx.Node, DequantizedConstant] | None:
        weight = dequantized_constant(edit.argument(node, "weight")) if node.target in _LAYERS else None
        if weight is None or (weight.integers.dtype is torch.int8 and not any(weight.quantized.zero_point)):
            return None
        return node, weight

    def check(self, match: tuple[fx.Node, DequantizedConstant]) -> str | None:
        node, weight = match
        parts = _parts(weight.centred)
        if len(parts) > _MOST_PARTS:
            return f"its weight has integers of {weight.quantized.integer.bits} bits"
        if len(parts) == 1:
            return None
        if node.target not in _SPLIT:
            return "its weight less the zero point needs 9 bits, and it is a transposed convolution"
        return None if _border(node.args[0]) is not None else "its input is not quantized"

    def rewrite(self, graph_module: fx.GraphModule, match: tuple[fx.Node, DequantizedConstant]) -> str | None:
        node, weight = match
        site, parts = Site(graph_module, node, self.name), _parts(weight.centred)
        integers = site.constant(f"{weight.node.name}_int8", torch.cat(parts, 1).to(torch.int8))
        quantized = QuantizedType(INT8, weight.quantized.scale, (0,), weight.quantized.axis)
        edit.set_argument(node, "weight", site.call(_qc.dequantize.default, integers, *quantized.arguments))
        if len(parts) == 1:
            return None
        source = node.args[0]
        assert isinstance(source, fx.Node)  # the op's tensor
        edit.set_argument(node, "input", _repeated(site, source, len(parts), _groups(node)))
        return f"reads its input {len(parts)} times: its weight less the zero point needs 9 bits"


def _parts(centred: torch.Tensor) -> list[torch.Tensor]:
    """int8 tensors whose sum it is; one more than may be where it would take more."""
    parts: list[torch.Tensor] = []
    while not parts or (bool(centred.any()) and len(parts) <= _MOST_PARTS):
        parts.append(centred.clamp(INT8.low, INT8.high))
        centred = centred - parts[-1]
    return parts


def _border(value: object) -> fx.Node | None:
    """The dequantize, of one scale, whose reals a value holds, moved or not."""
    while isinstance(value, fx.Node) and value.target in MOVEMENT_OPS - {_aten.cat.default}:
        value = value.args[0]
    one_scale = edit.is_call(value, _qc.dequantize.default) and len(value.args[1]) == 1  # type: ignore[attr-defined]  # a call is a node
    return value if one_scale and isinstance(value, fx.Node) else None


def _groups(node: fx.Node) -> int:
    return int(edit.argument(node, "groups")) if node.target is _aten.conv2d.default else 1


def _repeated(site: Site, source: fx.Node, times: int, groups: int) -> fx.Node:
    """The channels of each group, ``times`` over, rounded to the type that they have: the same integers."""
    origin = _border(source)
    assert origin is not None  # check asked for it
    rank, border = source.meta["val"].ndim, origin.args[1:]
    channels = rank - 1 if site.node.target is _aten.linear.default else 1
    value = source if groups == 1 else site.call(_aten.unflatten.int, source, channels, [groups, -1])
    dim = channels if groups == 1 else channels + 1
    joined = site.call(_aten.cat.default, [value] * times, dim)
    value = site.call(_qc.dequantize.default, site.call(_qc.quantize.default, joined, *border), *border)
    return value if groups == 1 else site.call(_aten.flatten.using_ints, value, channels, channels + 1)
