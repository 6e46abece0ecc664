"""Normalization with what is fused to it: which nodes become one kernel, and that it gives the reference's integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from qcompiler.backends.tvm import planner, target
from qcompiler.backends.tvm.kernels import NormalizationKernel
from qcompiler.ir.program import Program

TARGETS = ("x86-64-v3", "x86-64-vnni")


class Rows:
    """A program of rows, with the pieces of a transformer's block."""

    def __init__(self, new: Callable[[], Any], *shape: int | None) -> None:
        self.p = new()
        self.x, self.length = self.p.input(*shape), shape[-1]
        self.words = self.p.call("qc.lookup", self.x, self.p.integers("table", -30000, 30000, (256,), torch.int16), 16, True)

    def normalize(self, x: fx.Node, centre: bool = True, epsilon: int = 1000) -> fx.Node:
        return self.p.call("qc.normalize", x, 5, epsilon, centre, "newton")

    def affine(
        self, y: fx.Node, bits: int, signed: bool = True, swapped: bool = False, shifts: bool = False, of_words: bool = False
    ) -> fx.Node:
        """``qc::add`` of a constant a channel, multipliers of both signs; to about the whole range. ``of_words``: y has 16 bits."""
        p, channels = self.p, (self.length,)
        sign = 2 * torch.randint(0, 2, channels, generator=p.random).to(torch.int32) - 1
        multiplier = p.constant("m", sign * torch.randint(1 << 29, 1 << 30, channels, generator=p.random).to(torch.int32))
        first = 13 if of_words else 0
        pre_shift = p.integers("pre_shift", first, first + 1, channels) if shifts else p.integers("pre_shift", first + 1, first + 1)
        constant = p.integers("constant", -20000, 20000, channels, torch.int16)
        scales = [[pre_shift, multiplier], [p.constant("pre_shift_b", torch.tensor(10, dtype=torch.int32)), p.multiplier()]]
        operands, zero_points = [y, constant], [5 if of_words else 0, 3]
        if swapped:
            scales, operands, zero_points = scales[::-1], operands[::-1], zero_points[::-1]
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        limits = (17 if signed else 30, low, high, bits, signed)
        return p.call("qc.add", *operands, *scales[0], *scales[1], 27 - bits, *zero_points, *limits)

    def add(self, a: fx.Node, b: fx.Node) -> fx.Node:
        p = self.p
        scaling = [p.integers("s", 12, 12), p.multiplier(), p.integers("s", 12, 12), p.multiplier()]
        return p.call("qc.add", a, b, *scaling, 10, 0, 7, -4, -32768, 32767, 16, True)

    def narrow(self, x: fx.Node, form: str = "high", channels: tuple[int, ...] = ()) -> fx.Node:
        return self.p.requantize(x, 1 << 15, channels, form, signed=True)


def _affine_to_bytes(r: Rows) -> list[fx.Node]:
    return [r.affine(r.normalize(r.words), 8)]


def _affine_unsigned_swapped(r: Rows) -> list[fx.Node]:
    return [r.affine(r.normalize(r.words), 8, signed=False, swapped=True)]


def _two_widths(r: Rows) -> list[fx.Node]:
    wide = r.affine(r.normalize(r.words, epsilon=1 << 40), 16, shifts=True)
    return [wide, r.narrow(wide), r.p.call("aten.transpose:int", r.narrow(wide, "narrow"), 1, 2)]


def _narrow_only(r: Rows) -> list[fx.Node]:
    return [r.narrow(r.affine(r.normalize(r.words), 16), "narrow", (r.length,))]


def _narrowed_with_offsets(r: Rows) -> list[fx.Node]:
    """The narrower copy has a factor and an offset of its own in each channel."""
    wide = r.affine(r.normalize(r.words), 16)
    return [wide, r.affine(wide, 8, of_words=True)]


def _narrowed_with_offsets_and_shifts(r: Rows) -> list[fx.Node]:
    return [r.affine(r.affine(r.normalize(r.words), 16), 8, signed=False, swapped=True, shifts=True, of_words=True)]


def _residual(r: Rows) -> list[fx.Node]:
    """The sum has another reader, and the other operand is broadcast."""
    total = r.add(r.words, r.p.call("aten.slice:Tensor", r.x, 1, 2, 3, 1))
    return [r.p.call("qc.clamp", total, -500, 500), r.affine(r.normalize(total), 8)]


def _residual_inside(r: Rows) -> list[fx.Node]:
    return [r.affine(r.normalize(r.add(r.words, r.x)), 16)]


def _root_mean_square(r: Rows) -> list[fx.Node]:
    return [r.p.requantize(r.normalize(r.words, centre=False), 1 << 29, (r.length,))]


def _root_mean_square_of_bytes(r: Rows) -> list[fx.Node]:
    return [r.p.requantize(r.normalize(r.x, centre=False), 1 << 29)]


def _shared(r: Rows) -> list[fx.Node]:
    """The normalized rows have two readers: both are kernels of their own."""
    y = r.normalize(r.x)
    return [r.affine(y, 8), r.affine(y, 8)]


def _dropping(r: Rows) -> list[fx.Node]:
    """An epsilon so large that deviations lose bits."""
    return [r.normalize(r.words, epsilon=1 << 61), r.normalize(r.x, epsilon=1 << 57), r.normalize(r.words, centre=False, epsilon=1 << 61)]


def _of_columns(r: Rows) -> list[fx.Node]:
    """Rows that do not lie side by side are copied first."""
    transposed = r.p.call("aten.transpose:int", r.words, 1, 2)
    return [r.normalize(transposed), r.affine(r.normalize(r.p.call("aten.slice:Tensor", r.words, 1, 1, 9, 3)), 8)]


CASES = {case.__name__.lstrip("_"): case for case in list(vars().values()) if getattr(case, "__annotations__", {}).get("r") == "Rows"}


def _program(new: Callable[[], Any], shape: tuple[int | None, ...]) -> tuple[Program, list[str]]:
    rows = Rows(new, *shape)
    named = [(f"{name}_{i}", node) for name, case in CASES.items() for i, node in enumerate(case(rows))]
    return rows.p.finish(*(node for _, node in named)), [name for name, _ in named]


@pytest.mark.parametrize("shape", [(None, 9, 37), (None, 11, 192), (None, 3, 1)], ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_equals_reference(name: str, shape: tuple[int | None, ...], integer_program: Any, compile_for: Any, differences: Any) -> None:
    program, names = _program(integer_program, shape)
    assert not differences(program, compile_for(program, name), names)


@pytest.mark.parametrize(
    ("case", "fused"),
    [
        ("affine_to_bytes", [2]),
        ("affine_unsigned_swapped", [2]),
        ("two_widths", [3]),
        ("narrow_only", [3]),
        ("narrowed_with_offsets", [3]),
        ("narrowed_with_offsets_and_shifts", [3]),
        ("residual", [3]),
        ("residual_inside", [3]),
        ("root_mean_square", [2]),
        ("shared", [1]),
        ("of_columns", [1, 2]),
    ],
)
def test_nodes_of_a_kernel(case: str, fused: list[int], integer_program: Any) -> None:
    rows = Rows(integer_program, None, 9, 37)
    plan = planner.make_plan(rows.p.finish(*CASES[case](rows)), target.resolve("x86-64-v3"))
    assert [len(step.nodes) for step in plan.body if isinstance(step.kernel, NormalizationKernel)] == fused


def test_kept_value_is_not_fused_away(integer_program: Any) -> None:
    rows = Rows(integer_program, None, 9, 37)
    y = rows.normalize(rows.words)
    program = rows.p.finish(rows.affine(y, 8))
    plan = planner.make_plan(program, target.resolve("x86-64-v3"), [y.name])
    assert [len(step.nodes) for step in plan.body if isinstance(step.kernel, NormalizationKernel)] == [1]
