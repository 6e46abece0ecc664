"""One library for every sequence length: each kind of kernel at several lengths against the reference, and what is declined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from qcompiler.arithmetic.softmax import exponential_table
from qcompiler.backends.tvm.kernels import Extent, is_dynamic
from qcompiler.backends.tvm.planner import make_plan
from qcompiler.backends.tvm.target import TARGETS as KNOWN
from qcompiler.errors import QCompilerError, TargetError
from qcompiler.ir.program import Program
from qcompiler.ir.types import DynamicSize

TARGETS = ("x86-64-v3", "x86-64-vnni", "x86-64-amx")
LENGTH = DynamicSize("sequence", 1, 37)
LENGTHS = (1, 16, 37)
WIDTH, HEADS = 48, 3


def _linear(p: Any, x: fx.Node, features: int, **options: Any) -> fx.Node:
    accumulator, bound = p.linear(x, features)
    return p.requantize(accumulator, bound, (features,), **options)


def _residual(p: Any) -> fx.Node:
    accumulator, bound = p.linear(p.rows, WIDTH)
    return p.add(accumulator, p.rows, bound, 255, (WIDTH,), zero_points=(0, 7))


def _heads(p: Any) -> fx.Node:
    """[batch, heads, tokens, width of a head]"""
    return p.call("aten.permute", p.call("aten.unflatten:int", p.rows, 2, [HEADS, WIDTH // HEADS]), [0, 2, 1, 3])


def _scores(p: Any) -> fx.Node:
    heads = _heads(p)
    scores = p.call("qc.matmul", heads, p.call("aten.transpose:int", heads, 2, 3), 7, 7)
    return p.requantize(scores, 248 * 248 * (WIDTH // HEADS))


def _attention(p: Any) -> fx.Node:
    table = p.constant("table", exponential_table(0.03))
    probabilities = p.call("qc.softmax", _scores(p), table, None, "table", [], 8)
    context = p.requantize(p.call("qc.matmul", probabilities, _heads(p), 0, 7), 255 * 248 * LENGTH.maximum)
    return p.call("aten.flatten:using_ints", p.call("aten.permute", context, [0, 2, 1, 3]), 2, 3)


def _transposed(p: Any) -> fx.Node:
    """Vectors along the dynamic dimension, which ends anywhere in one."""
    clamped = p.call("qc.clamp", p.call("aten.permute", p.rows, [0, 2, 1]), 5, 99)
    return p.call("aten.permute", clamped, [0, 2, 1])


def _positions(p: Any) -> fx.Node:
    table = p.integers("positions", 0, 255, (LENGTH.maximum, WIDTH), torch.uint8)
    length = p.call("aten.sym_size:int", p.rows, 1)
    return p.add(p.rows, p.call("aten.slice:Tensor", table, 0, 0, length, 1), 255, 255, zero_points=(7, 0))


def _prefixed(p: Any) -> fx.Node:
    """A class token before the others."""
    first = p.call("aten.slice:Tensor", p.rows, 1, 0, 1, 1)
    return _linear(p, p.call("aten.cat", [first, p.rows], 1), 16)


CASES: dict[str, Callable[[Any], fx.Node]] = {
    "linear": lambda p: _linear(p, p.rows, 31),
    "linear_accumulator": lambda p: p.linear(p.rows, 16)[0],
    "linear_narrow": lambda p: _linear(p, p.rows, 64, form="narrow"),
    "linear_residual": _residual,
    "linear_table": lambda p: p.call("qc.lookup", _linear(p, p.rows, 64), p.integers("table", 0, 255, (256,), torch.uint8), 8, False),
    "linear_of_first": lambda p: _linear(p, p.call("aten.select:int", p.rows, 1, 0), 10),
    "linear_of_heads": lambda p: _linear(p, p.call("aten.unflatten:int", p.rows, 2, [HEADS, WIDTH // HEADS]), 8),
    "transposed": _transposed,
    "sum_over_tokens": lambda p: p.call("qc.sum", p.rows, [1], False, 7),
    "sum_over_channels": lambda p: p.call("qc.sum", p.rows, [2], True, 7),
    "add": lambda p: p.add(p.rows, p.other, 255, 255, zero_points=(7, 7)),
    "broadcast_add": lambda p: p.add(p.rows, p.call("aten.slice:Tensor", p.rows, 1, 0, 1, 1), 255, 255, zero_points=(7, 7)),
    "tokens": lambda p: p.call("qc.clamp", p.ids, 5, 99),
    "attention": _attention,
    "positions": _positions,
    "prefixed": _prefixed,
    "without_first": lambda p: p.call("aten.slice:Tensor", _prefixed(p), 1, 1, 1 << 62, 1),
    "padded": lambda p: p.call("aten.constant_pad_nd", p.rows, [0, 0, 2, 1], 9),
    "cropped": lambda p: p.call("aten.constant_pad_nd", _prefixed(p), [0, 0, -1, 0], 9),
}


def _program(new: Callable[[], Any], names: tuple[str, ...] = tuple(CASES)) -> Program:
    p = new()
    p.rows, p.other, p.ids = p.input(None, LENGTH, WIDTH), p.input(None, LENGTH, WIDTH), p.input(None, LENGTH)
    program: Program = p.finish(*(CASES[name](p) for name in names))
    return program


@pytest.mark.parametrize("target", TARGETS)
def test_equals_reference(target: str, integer_program: Any, compile_for: Any, differences: Any, request: pytest.FixtureRequest) -> None:
    if target == "x86-64-amx":
        request.getfixturevalue("amx_machine")
    program = _program(integer_program)
    assert not differences(program, compile_for(program, target), list(CASES), batches=(1, 3), lengths=LENGTHS)


def test_memory_is_that_of_the_maximum_and_steps_that_can_end_earlier_do(integer_program: Any) -> None:
    plan = make_plan(_program(integer_program, ("linear", "add", "attention")), KNOWN["x86-64-vnni"])
    assert plan.symbol is not None and plan.symbol.name == "sequence"
    assert plan.inputs[0].sample_shape == (Extent(37), WIDTH)
    assert all(is_dynamic(step.kernel) for step in plan.steps)
    assert all(step.pointers[-1].space == "extents" for step in plan.steps)


def test_lengths_outside_the_bounds_are_declined(integer_program: Any, compile_for: Any, random_inputs: Any) -> None:
    program = _program(integer_program, ("add",))
    executable = compile_for(program, "x86-64-v3")
    with pytest.raises(QCompilerError, match="input 'x0' gives 'sequence' the value 38: the program takes 1 to 37"):
        executable.run_integer(*random_inputs(program, 2, length=38))
    mixed = [random_inputs(program, 2, length=length)[index] for index, length in enumerate((5, 6, 5))]
    with pytest.raises(QCompilerError, match=r"input 'x1' must have shape \[2, 5, 48\], got \[2, 6, 48\]"):
        executable.run_integer(*mixed)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            lambda p: p.call("qc.sum", p.call("aten.flatten:using_ints", p.heads, 1, 2), [1], False, 0),
            r"'flatten' .* has a dimension of 3\*sequence elements: memory is planned for",
        ),
        (lambda p: p.call("aten.flip", p.rows, [1]), "'flip' .* it flips a dynamic dimension"),
        (lambda p: p.call("aten.select:int", p.rows, 1, -1), "'select' .* it selects a place that depends on a dynamic size"),
        (
            lambda p: p.call("aten.cat", [p.rows, p.call("aten.slice:Tensor", p.rows, 1, 0, 1, 1)], 1),
            "'cat' .* only the last part may be dynamic",
        ),
        (
            lambda p: p.call("qc.max_pool2d", p.heads, [1, 1], [1, 1], [0, 0, 0, 0], [1, 1]),
            "'permute' .* windows slide over feature maps of fixed",
        ),
        (
            lambda p: p.call("aten.permute", p.rows, [0, 2, 1]),
            "'permute_1' .* only the first dimension of an input's or output's sample may depend on",
        ),
    ],
)
def test_what_cannot_be_planned_is_named(case: Callable[[Any], fx.Node], message: str, integer_program: Any) -> None:
    p = integer_program()
    p.rows = p.input(None, LENGTH, WIDTH)
    p.heads = _heads(p)
    with pytest.raises(TargetError, match=message):
        make_plan(p.finish(case(p)), KNOWN["x86-64-v3"])


def test_two_dynamic_sizes_are_declined(integer_program: Any) -> None:
    p = integer_program()
    first, second = p.input(None, LENGTH, 4), p.input(None, DynamicSize("other", 1, 8), 4)
    with pytest.raises(TargetError, match=r"2 dynamic sizes besides the batch \(sequence, other\): leave one of them open"):
        make_plan(p.finish(first, second), KNOWN["x86-64-v3"])
