"""Hadamard transforms, with and without the rounding behind them: one kernel, and the integers of the reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import fx

from qcompiler.backends.tvm import planner, target
from qcompiler.backends.tvm.kernels import HadamardKernel
from qcompiler.errors import TargetError
from qcompiler.ir.types import DynamicSize

TARGETS = ("x86-64-v3", "x86-64-vnni")
# Order 1 and small orders, runs shorter than a vector up to many vectors; the sums of the run fit 16 bits, or not.
BLOCKS = (8, 256, 1024, 48, 192, 320, 1536)


def _rows(p: Any, channels: int, dtype: torch.dtype = torch.uint8) -> fx.Node:
    """[N, 2, channels] of whole 8 bits or 16 bits, made of what the input holds."""
    limits = torch.iinfo(dtype)
    bits, signed = limits.bits, limits.min < 0
    x = p.call("aten.slice:Tensor", p.x, 2, 0, channels, 1)
    node: fx.Node = p.call("qc.lookup", x, p.integers("table", limits.min, limits.max, (256,), dtype), bits, signed)
    return node


def _rounded(p: Any, channels: int, block: int, dtype: torch.dtype = torch.uint8, zero_point: int = 7, form: str = "high") -> fx.Node:
    total = p.call("qc.hadamard", _rows(p, channels, dtype), block, zero_point)
    node: fx.Node = p.requantize(total, block * (torch.iinfo(dtype).max + 8), form=form, signed=dtype is not torch.uint8)
    return node


CASES: dict[str, Callable[[Any], fx.Node]] = {
    **{f"block_{block}": partial(_rounded, channels=block, block=block, zero_point=129) for block in BLOCKS},
    "blocks_in_a_row": lambda p: _rounded(p, 192, 48, zero_point=0, form="narrow"),
    "words": lambda p: _rounded(p, 384, 384, torch.int16, form="narrow"),
    "words_high": lambda p: _rounded(p, 64, 64, torch.int16, 0),
    "signed": lambda p: _rounded(p, 384, 192, torch.int8, -5),
    "exact": lambda p: _rounded(p, 64, 64, form="exact64"),
    "not_rounded": lambda p: p.call("qc.hadamard", _rows(p, 192), 192, 3),
    "columns": lambda p: p.requantize(p.call("qc.hadamard", p.call("aten.transpose:int", p.square, 1, 2), 32, 3), 32 * 255),
}


@pytest.mark.parametrize("target", TARGETS)
def test_equals_reference(target: str, integer_program: Any, compile_for: Any, differences: Any) -> None:
    program = integer_program()
    program.x, program.square = program.input(None, 2, 1536), program.input(None, 32, 16)
    program = program.finish(*(case(program) for case in CASES.values()))
    assert not differences(program, compile_for(program, target), list(CASES))


def test_dynamic_rows(integer_program: Any, compile_for: Any, differences: Any) -> None:
    program = integer_program()
    x = program.input(None, DynamicSize("sequence", 1, 9), 96)
    program = program.finish(program.requantize(program.call("qc.hadamard", x, 96, 7), 96 * 255))
    assert not differences(program, compile_for(program, TARGETS[1]), ["dynamic"])


def _kernels(program: Any) -> list[HadamardKernel]:
    plan = planner.make_plan(program, target.resolve("x86-64-vnni"))
    return [step.kernel for step in plan.body if isinstance(step.kernel, HadamardKernel)]


def test_the_rounding_is_part_of_the_kernel(integer_program: Any) -> None:
    program = integer_program()
    total = program.call("qc.hadamard", program.input(None, 4, 64), 64, 7)
    (kernel,) = _kernels(program.finish(program.requantize(total, 64 * 255)))
    assert kernel.rounding is not None
    assert kernel.output.dtype == "uint8"


def test_two_readers_get_the_sums_themselves(integer_program: Any) -> None:
    program = integer_program()
    total = program.call("qc.hadamard", program.input(None, 4, 64), 64, 7)
    (kernel,) = _kernels(program.finish(program.requantize(total, 64 * 255), program.requantize(total, 64 * 200)))
    assert kernel.rounding is None
    assert kernel.output.dtype == "int32"


def test_blocks_without_a_kernel_are_declined(integer_program: Any) -> None:
    program = integer_program()
    program = program.finish(program.call("qc.hadamard", program.input(None, 4, 344), 344, 7))
    with pytest.raises(TargetError, match=r"no kernel transforms blocks of 344; choose a power of two"):
        _kernels(program)
