from __future__ import annotations

import pytest
import torch

from qcompiler.ir.types import INT8, INT16, UINT8
from qcompiler.passes.optimize.fuse_lookup import FuseLookup

BYTE, SIGNED = (0, 255), (-128, 127)


def table(seed: int, *shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    limits = torch.iinfo(dtype)
    return torch.randint(limits.min, limits.max + 1, (*shape, 256), generator=torch.Generator().manual_seed(seed)).to(dtype)


CHAINS = {
    "table, table": lambda b, x: b.lookup(b.lookup(x, table(0)), table(1, dtype=torch.int8)),
    "requantize, table": lambda b, x: b.lookup(b.requantize(x, 0.7, (7, -3), SIGNED), table(1)),
    "table, requantize": lambda b, x: b.requantize(b.lookup(x, table(1)), 0.7, (0, 3), BYTE),
    "clamp, table": lambda b, x: b.lookup(b.clamp(x, 20, 100), table(1)),
    "table for each channel, table": lambda b, x: b.lookup(b.lookup(x, table(0, 3)), table(1)),
    "both for each channel": lambda b, x: b.lookup(b.lookup(x, table(0, 3)), table(1, 3)),
    "requantize for each channel, table": lambda b, x: b.lookup(
        b.requantize(x, torch.tensor([0.2, 0.5, 0.9]).reshape(3, 1, 1), (7, 3), BYTE), table(1)
    ),
    "table of 16 bits, boundaries, levels": lambda b, x: b.lookup(
        b.bucketize(b.lookup(x, table(0, dtype=torch.int16)), -20_000, -3, 500, 9_000), table(1, dtype=torch.int16)
    ),
    "four in a row": lambda b, x: b.lookup(b.clamp(b.lookup(b.requantize(x, 0.7, (7, 3), BYTE), table(0)), 20, 90), table(1)),
}


@pytest.mark.parametrize("case", CHAINS)
@pytest.mark.parametrize("integer", [UINT8, INT8], ids=str)
def test_one_table_gives_the_same_integers(builder, run_pass, all_bytes, ops, case, integer) -> None:
    program = builder.program(CHAINS[case](builder, builder.start(integer)))
    after = run_pass(FuseLookup(), program).program
    assert ops(after) == ["lookup"]
    x = all_bytes(integer.dtype)
    assert torch.equal(program.run_integer(x)[0], after.run_integer(x)[0])


def test_boundaries_of_16_bits_stay(builder, run_pass) -> None:
    codes = builder.bucketize(builder.start(INT16, 0), -500, 3, 700)
    assert not run_pass(FuseLookup(), builder.program(builder.lookup(codes, table(1)))).modified


def test_accumulators_are_no_index(builder, run_pass) -> None:
    y = builder.requantize(builder.widen(builder.start()), 0.1, (0, 3), BYTE)
    assert not run_pass(FuseLookup(), builder.program(builder.lookup(y, table(0)))).modified


def test_two_requantizations_are_not_its_business(builder, run_pass) -> None:
    y = builder.requantize(builder.start(), 0.5, (7, 20), BYTE)
    assert not run_pass(FuseLookup(), builder.program(builder.requantize(y, 0.5, (20, 0), BYTE))).modified


def test_parameters_of_columns_are_left_alone_with_the_reason(builder, run_pass) -> None:
    columns = torch.tensor([0.2, 0.5, 0.9, 0.4], dtype=torch.float64)
    y = builder.requantize(builder.start(), columns, (7, 20), BYTE)
    result = run_pass(FuseLookup(), builder.program(builder.lookup(y, table(0))))
    assert not result.modified and "do not run over channels alone" in result.notes[0]
