from __future__ import annotations

import pytest
import torch

from qcompiler.passes.optimize.merge_requantize import MergeRequantize

BYTE = (0, 255)


@pytest.mark.parametrize("factors", [(0.31, 0.7), (0.9, 2.6), (0.004, 0.5)])
@pytest.mark.parametrize("limits", [BYTE, (20, 90)])
def test_the_merged_one_is_the_better_rounding(builder, run_pass, all_bytes, ops, factors, limits) -> None:
    first, second = factors
    y = builder.requantize(builder.start(), first, (7, 20), limits)
    program = builder.program(builder.requantize(y, second, (20, 100), (10, 240)))
    result = run_pass(MergeRequantize(), program)
    assert ops(result.program) == ["requantize"]
    x = all_bytes(torch.uint8)
    before, after = program.run_integer(x)[0].double(), result.program.run_integer(x)[0].double()
    inner = ((x.double() - 7) * first).clamp(limits[0] - 20, limits[1] - 20)
    exact = (inner * second + 100).clamp(10, 240)
    assert (after - exact).abs().max() <= 0.52 + second * 0.01
    assert (after - before).abs().max() <= (1 + second) / 2 + 0.52


def test_factors_of_each_channel_are_kept(builder, run_pass, all_bytes) -> None:
    channels = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64).reshape(3, 1, 1)
    wide = builder.widen(builder.start())
    y = builder.requantize(wide, channels, (0, 20), BYTE)
    program = builder.program(builder.requantize(y, 0.5, (20, 100), BYTE))
    x = all_bytes(torch.uint8)
    after = run_pass(MergeRequantize(), program).program.run_integer(x)[0].double()
    sums = torch.nn.functional.avg_pool2d(x.double() - 7, 2, 1) * 4
    exact = ((sums * channels).clamp(-20, 235) * 0.5 + 100).clamp(0, 255)
    assert (after - exact).abs().max() <= 0.53


def test_another_reader_in_between_forbids_it(builder, run_pass) -> None:
    y = builder.requantize(builder.start(), 0.5, (7, 20), BYTE)
    program = builder.program(builder.requantize(y, 0.5, (20, 100), BYTE), y)
    assert not run_pass(MergeRequantize(), program).modified


def test_exact64_is_left_alone_with_the_reason(builder, run_pass) -> None:
    y = builder.requantize(builder.start(), 0.5, (7, 20), BYTE, "exact64")
    result = run_pass(MergeRequantize(), builder.program(builder.requantize(y, 0.5, (20, 100), BYTE)))
    assert not result.modified and "the form exact64 keeps every rounding" in result.notes[0]


def test_a_product_that_cannot_be_represented_is_left_alone_with_the_reason(builder, run_pass) -> None:
    y = builder.requantize(builder.start(), 1.5, (7, 20), BYTE)
    program = builder.program(builder.requantize(y, 1.5, (20, 100), BYTE))
    result = run_pass(MergeRequantize(requantize="narrow"), program)
    assert not result.modified and "cannot multiply" in result.notes[0]


def test_different_zero_points_in_between_are_left_alone(builder, run_pass) -> None:
    y = builder.requantize(builder.start(), 0.5, (7, 20), BYTE)
    result = run_pass(MergeRequantize(), builder.program(builder.requantize(y, 0.5, (21, 100), BYTE)))
    assert not result.modified and "zero point" in result.notes[0]
