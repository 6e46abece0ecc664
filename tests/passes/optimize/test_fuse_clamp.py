from __future__ import annotations

import pytest
import torch

from qcompiler.passes.optimize.fuse_clamp import FuseClamp

BYTE = (0, 255)


@pytest.mark.parametrize("limits", [(0, 255), (30, 90), (100, 200), (0, 10), (250, 255)])
def test_into_a_requantization(builder, run_pass, all_bytes, ops, limits) -> None:
    y = builder.requantize(builder.start(), 0.5, (7, 20), (25, 95))
    program = builder.program(builder.clamp(y, *limits))
    after = run_pass(FuseClamp(), program).program
    assert ops(after) == ["requantize"]
    x = all_bytes(torch.uint8)
    assert torch.equal(program.run_integer(x)[0], after.run_integer(x)[0])


def test_chains_end_in_one_table(builder, run_pass, all_bytes, ops) -> None:
    y = builder.lookup(builder.start(), torch.arange(255, -1, -1).to(torch.uint8))
    program = builder.program(builder.clamp(builder.clamp(y, 10, 200), 50, 255))
    after = run_pass(FuseClamp(), program).program
    assert ops(after) == ["lookup"]
    x = all_bytes(torch.uint8)
    assert torch.equal(program.run_integer(x)[0], after.run_integer(x)[0])
    assert after.run_integer(x)[0].unique().tolist() == list(range(50, 201))


def test_the_unbounded_value_is_kept_where_it_is_read(builder, run_pass, ops) -> None:
    y = builder.requantize(builder.start(), 0.5, (7, 20), BYTE)
    program = builder.program(builder.clamp(y, 30, 90), y)
    assert not run_pass(FuseClamp(), program).modified
