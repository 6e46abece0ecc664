"""``declare-ranges``: which integers a program that was quantized elsewhere takes, read from its graph.

- Ids, which choose rows of a table, lie in [0, rows - 1].
- Integers that become reals and are quantized lie where no quantizer saturates: [ceil((low - z - 1/2) s), floor((high - z + 1/2) s)]
  for integers in [low, high] of scale s and zero point z. A mask in uint8 with the scale 1/255 holds 0 and 1.

Where both say something, both hold. ``Program`` checks what it is given, and the overflow proof relies on it. Other integers keep the range
that they have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.quantized_constants import quantized_type
from qcompiler.ir.types import IntegerRange, QuantizedType, Stage
from qcompiler.passes.quantize import whole_numbers
from qcompiler.pipeline.contract import Exact, Pass, PassContext, PassResult

_aten, _qc = torch.ops.aten, torch.ops.qc


@dataclass(frozen=True)
class DeclareRanges(Pass):
    """Ranges of integer inputs from the tables and quantizers that read them."""

    name: ClassVar = "declare-ranges"
    takes: ClassVar = Stage.QDQ
    gives: ClassVar = Stage.QDQ
    promise: ClassVar = Exact()

    def run(self, program: Program, context: PassContext) -> PassResult:
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        specs = tuple(_declared(node, spec) for node, spec in zip(placeholders, program.inputs, strict=True))
        changed = [spec for spec, before in zip(specs, program.inputs, strict=True) if spec != before]
        if not changed:
            return PassResult(program, False)
        notes = tuple(f"input '{spec.name}' holds integers in {spec.range}" for spec in changed)
        return PassResult(edit.copy(program).replace(inputs=specs), True, notes)


def _declared(node: fx.Node, spec: ValueSpec) -> ValueSpec:
    if node.meta["val"].is_floating_point() or node.meta["val"].dtype is torch.bool:
        return spec
    return whole_numbers.narrowed(spec, [*whole_numbers.rows_of_tables(node), *(_held(quantized) for quantized in _quantizers(node))])


def _quantizers(node: fx.Node) -> list[QuantizedType]:
    """The types that the integers of an input take as reals."""
    casts = [user for _, user in whole_numbers.readers(node) if edit.is_call(user, _aten.to.dtype) and user.meta["val"].is_floating_point()]
    readers = [user for cast in casts for _, user in whole_numbers.readers(cast)]
    types = [quantized_type(user) for user in readers if edit.is_call(user, _qc.quantize.default)]
    return [each for each in types if not each.per_channel]


def _held(quantized: QuantizedType) -> IntegerRange:
    """The whole numbers that lie within half a step of a value of the type."""
    scale, zero_point, integer = quantized.scale[0], quantized.zero_point[0], quantized.integer
    low, high = (integer.low - zero_point - 0.5) * scale, (integer.high - zero_point + 0.5) * scale
    return IntegerRange(math.ceil(low), math.floor(high))
