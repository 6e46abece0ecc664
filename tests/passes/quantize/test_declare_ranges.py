from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qcompiler.capture import capture
from qcompiler.errors import QCompilerError
from qcompiler.ir.types import IntegerRange
from qcompiler.passes.quantize.declare_ranges import DeclareRanges
from qcompiler.pipeline.contract import PassContext

ops = torch.ops.qc


class Masked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(7, 4, dtype=torch.int8))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        words = F.embedding(ids, ops.dequantize(self.table, [0.5], [0], -1, 8, True))
        kind = ([1 / 255], [0], -1, 8, False)
        return words * ops.dequantize(ops.quantize(mask.unsqueeze(2).to(torch.float32), *kind), *kind)


def test_ids_are_rows_and_masks_what_their_quantizer_holds() -> None:
    ids, mask = torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)
    program = DeclareRanges().run(capture(Masked(), (ids, mask)), PassContext()).program
    assert [spec.range for spec in program.inputs] == [IntegerRange(0, 6), IntegerRange(0, 1)]
    with pytest.raises(QCompilerError, match="holds 7"):
        program(ids * 7, mask)
    assert not DeclareRanges().run(program, PassContext()).modified
