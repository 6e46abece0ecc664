"""``sign-sixteen-bits``: unsigned 16-bit values between a quantize and its dequantizes become signed, which ops on integers read.

    clamp(rint(x / s) + z, 0, 65535) - 32768 = clamp(rint(x / s) + (z - 32768), -32768, 32767)

The integers are others, and what they stand for is the same. At the outputs of a program they stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.quantized_constants import quantized_type
from qcompiler.ir.types import INT16, IntegerType, QuantizedType, Stage
from qcompiler.pipeline.contract import Exact
from qcompiler.pipeline.rewrite import RewritePass, Site

_qc = torch.ops.qc

_UNSIGNED = IntegerType(16, signed=False)
_HALF = 1 << 15


@dataclass(frozen=True)
class SignSixteenBits(RewritePass[fx.Node]):
    """Write quantize and dequantize of u16 as those of i16."""

    name: ClassVar = "sign-sixteen-bits"
    takes: ClassVar = Stage.QDQ
    gives: ClassVar = Stage.QDQ
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> fx.Node | None:
        return node if edit.is_call(node, _qc.quantize.default) and quantized_type(node).integer == _UNSIGNED else None

    def check(self, match: fx.Node) -> str | None:
        same = all(edit.is_call(user, _qc.dequantize.default) and list(user.args[1:]) == list(match.args[1:]) for user in match.users)
        return None if same else "others than dequantizes of its type read it"

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> None:
        site, found = Site(graph_module, match, self.name), quantized_type(match)
        zero_points = tuple(zero_point - _HALF for zero_point in found.zero_point)
        signed = QuantizedType(INT16, found.scale, zero_points, found.axis).arguments
        quantized = site.call(_qc.quantize.default, match.args[0], *signed)
        for user in edit.users_of(match):
            other = Site(graph_module, user, self.name)
            other.replace(other.call(_qc.dequantize.default, quantized, *signed))
