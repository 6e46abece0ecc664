"""``canonicalize-qdq``: the canonical form of a program that was quantized elsewhere.

The passes of ``canonicalize`` hold between quantize and dequantize as they hold anywhere: they change no real. No layer's integers are
touched, because no integer weight is a constant in floats. Those of this folder that take stage QDQ make layers of what tools write
around integer weights. In the end ``declare-ranges`` reads off which token ids and masks the program takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.errors import UnsupportedOpError
from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import Stage
from qcompiler.passes.canonicalize.canonicalize import STEPS
from qcompiler.passes.canonicalize.collect_masks import is_mask
from qcompiler.passes.canonicalize.drop_rounding import DropRounding
from qcompiler.passes.canonicalize.fold_bias import FoldBias
from qcompiler.passes.canonicalize.fold_dequantize import FoldDequantize
from qcompiler.passes.canonicalize.hoist_quantize import HoistQuantize
from qcompiler.passes.canonicalize.merge_dequantize import MergeDequantize
from qcompiler.passes.canonicalize.move_dequantize import MoveDequantize
from qcompiler.passes.canonicalize.sign_sixteen_bits import SignSixteenBits
from qcompiler.passes.canonicalize.weights_to_int8 import WeightsToInt8
from qcompiler.passes.quantize.declare_ranges import DeclareRanges
from qcompiler.pipeline.contract import Lossy, Pass, PassContext, PassResult
from qcompiler.pipeline.fixpoint import run_to_fixpoint

_STEPS: tuple[Pass, ...] = (
    SignSixteenBits(),
    MergeDequantize(),
    FoldDequantize(),
    MoveDequantize(),
    HoistQuantize(),
    DropRounding(),
    *STEPS,
    FoldBias(),
    WeightsToInt8(),
)


@dataclass(frozen=True)
class CanonicalizeQdq(Pass):
    """``canonicalize`` for programs at stage QDQ, and what integer weights need besides.

    Lossy only in so far as floats are: a sum in another order may fall on the other side of a tie when it is rounded.

    Raises:
        UnsupportedOpError: a mask was quantized, alone or with the scores that it is added to. No steps hold both: where calibration
            met masked scores all others became one integer, and where it did not the masked ones are cut off in the midst of them.
    """

    name: ClassVar = "canonicalize-qdq"
    takes: ClassVar = Stage.QDQ
    gives: ClassVar = Stage.QDQ
    promise: ClassVar = Lossy()

    def run(self, program: Program, context: PassContext) -> PassResult:
        rewritten = run_to_fixpoint(_STEPS, program, context)
        _check_masks(rewritten.program)
        declared = DeclareRanges().run(rewritten.program, context)
        return PassResult(declared.program, rewritten.modified or declared.modified, (*rewritten.notes, *declared.notes))


def _check_masks(program: Program) -> None:
    for node in edit.calls(program.graph, torch.ops.qc.quantize.default):
        source = node.args[0]
        assert isinstance(source, fx.Node)  # the op's tensor
        addends = source.all_input_nodes if edit.is_call(source, torch.ops.aten.add.Tensor) else [source]
        if any(is_mask(value) for value in addends):
            raise UnsupportedOpError(
                f"{describe(node)} quantizes scores of attention and their mask in one: leave the sum with the mask and its softmax out "
                "when the model is quantized"
            )
