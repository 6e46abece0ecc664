"""Hadamard transforms, with and without the rounding behind them: one kernel, and the integers of the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import fx

from qcompiler.backends.tvm import planner, target
from qcompiler.backends.tvm.kernels import Activation, ConvolutionKernel, HadamardKernel, Kernel, LinearHadamardKernel
from qcompiler.backends.tvm.templates import linear_hadamard_layout
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


def _narrow(p: Any, shift: int) -> fx.Node:
    """Sums of up to 64 * 128 by form narrow, with a pre-shift of 3."""
    total = p.call("qc.hadamard", _rows(p, 64, torch.int8), 64, 0)
    factors = [p.constant("factor", torch.tensor(number, dtype=torch.int32)) for number in (3, (1 << 15) - 5, shift)]
    node: fx.Node = p.call("qc.requantize", total, *factors, 0, 5, -100, 127, "narrow", 8, True)
    return node


CASES: dict[str, Callable[[Any], fx.Node]] = {
    **{f"block_{block}": partial(_rounded, channels=block, block=block, zero_point=129) for block in BLOCKS},
    "blocks_in_a_row": lambda p: _rounded(p, 192, 48, zero_point=0, form="narrow"),
    **{f"shift_{shift}": partial(_narrow, shift=shift) for shift in (0, 1, 15, 16)},
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


def _layer(p: Any, x: fx.Node, features: int, form: str = "high", *, table: bool = True, signed: bool = False) -> fx.Node:
    """Of uint8 rows: linear, requantized for each channel, looked up."""
    total, bound = p.linear(x, features)
    node: fx.Node = p.requantize(total, bound, (features,), form, signed)
    kind = (0, 255, torch.uint8) if not signed else (-128, 127, torch.int8)
    if table:
        node = p.call("qc.lookup", node, p.integers("table", kind[0], kind[1], (256,), kind[2]), 8, signed)
    return node


def _layer_and_transform(
    p: Any, features: int, block: int, zero_point: int = 9, inputs: int = 48, rows: int = 131, **options: Any
) -> fx.Node:
    x = p.call("aten.slice:Tensor", p.call("aten.slice:Tensor", p.x, 2, 0, inputs, 1), 1, 0, rows, 1)
    total = p.call("qc.hadamard", _layer(p, x, features, **options), block, zero_point)
    node: fx.Node = p.requantize(total, block * 255)
    return node


def _after_addition(p: Any) -> fx.Node:
    """The layer's sums are added to 16 bits, which the transform reads."""
    x = p.call("aten.slice:Tensor", p.x, 2, 0, 48, 1)
    total, bound = p.linear(x, 48)
    other = p.call("qc.lookup", x, p.integers("table", -(2**15), 2**15 - 1, (256,), torch.int16), 16, True)
    scaling = [p.constant("a", torch.tensor(29 - bound.bit_length(), dtype=torch.int32)), p.multiplier()]
    scaling += [p.constant("b", torch.tensor(13, dtype=torch.int32)), p.multiplier()]
    limits = (-(2**15), 2**15 - 1)
    added = p.call("qc.add", total, other, *scaling, 14, 0, 0, 0, *limits, 16, True)
    node: fx.Node = p.requantize(p.call("qc.hadamard", added, 48, 0), 48 * 2**15)
    return node


# Blocks of 17 rows, of which the last one overlaps; panels and rows of tiles with rests; inputs that are no whole steps.
LAYERS: dict[str, Callable[[Any], fx.Node]] = {
    "table": lambda p: _layer_and_transform(p, 192, 192),
    "odd_inputs": lambda p: _layer_and_transform(p, 64, 32, inputs=37, form="narrow"),
    "signed": lambda p: _layer_and_transform(p, 144, 48, -3, signed=True, form="narrow", table=False),
    "addition": _after_addition,
    "not_rounded": lambda p: p.call("qc.hadamard", _layer(p, p.x, 64), 64, 128),
}


def _layers(p: Any) -> Any:
    p.x = p.input(None, 131, 64)
    return p.finish(*(case(p) for case in LAYERS.values()))


@pytest.fixture
def long_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every target takes one kernel for blocks of 16 rows, whatever was measured."""
    monkeypatch.setattr(linear_hadamard_layout, "SHORTEST_BLOCK", dict.fromkeys((*TARGETS, "x86-64-amx"), 16))


@pytest.mark.usefixtures("long_blocks")
@pytest.mark.parametrize("target", [*TARGETS, "x86-64-amx"])
def test_with_the_layer_before_it(
    target: str, request: pytest.FixtureRequest, integer_program: Any, compile_for: Any, differences: Any
) -> None:
    if target == "x86-64-amx":
        request.getfixturevalue("amx_machine")
    program = _layers(integer_program())
    assert len(_kernels(program, LinearHadamardKernel, target)) == len(LAYERS)
    assert not differences(program, compile_for(program, target), list(LAYERS), batches=(1, 2))


@pytest.mark.usefixtures("long_blocks")
def test_dynamic_rows_of_a_layer(integer_program: Any, compile_for: Any, differences: Any) -> None:
    program = integer_program()
    x = program.input(None, DynamicSize("sequence", 121, 150), 20)
    total = program.call("qc.hadamard", _layer(program, x, 96), 96, 7)
    program = program.finish(program.requantize(total, 96 * 255))
    (kernel,) = _kernels(program, LinearHadamardKernel)
    assert kernel.block_rows == 16
    assert not differences(program, compile_for(program, TARGETS[1]), ["dynamic"], batches=(1,), lengths=(121, 128, 129, 150))


def _kernels(program: Any, kind: type[Kernel] = HadamardKernel, name: str = "x86-64-vnni", keep: Sequence[str] = ()) -> list[Any]:
    return [step.kernel for step in planner.make_plan(program, target.resolve(name), keep).body if isinstance(step.kernel, kind)]


@pytest.mark.parametrize(
    ("rows", "why"), [(131, "reader"), (131, "kept"), (131, "view"), (DynamicSize("sequence", 1, 131), "few rows"), (40, "few rows")]
)
def test_layers_that_stay_alone(rows: Any, why: str, integer_program: Any) -> None:
    program = integer_program()
    layer = _layer(program, program.input(None, rows, 48), 96)
    seen = program.call("aten.slice:Tensor", layer, 2, 0, 48, 1) if why == "view" else layer
    outputs = [program.requantize(program.call("qc.hadamard", seen, 48, 7), 48 * 255)]
    program = program.finish(*outputs, *([layer] if why == "reader" else []))
    keep = [layer.name] if why == "kept" else []
    assert not _kernels(program, LinearHadamardKernel, keep=keep)
    assert len(_kernels(program, HadamardKernel, keep=keep)) == 1


@pytest.mark.parametrize(
    ("rows", "inputs", "channels", "dtype", "expected"),
    [
        (197, 192, 768, "int8", 25),
        (197, 768, 3072, "int8", None),  # three rows of 197 would be computed twice, with weights that the cache does not hold
        (128, 384, 1536, "int8", 16),
        (1024, 768, 3072, "int8", 32),
        (1024, 768, 3072, "int16", 16),
        (65, 192, 384, "int8", None),  # seven of 65
        (20, 192, 768, "int8", None),
    ],
)
def test_rows_of_a_block(rows: int, inputs: int, channels: int, dtype: Any, expected: int | None) -> None:
    """Blocks of equal length, eight or sixteen or so, that the stack holds."""
    maps = Activation(1, rows, inputs, "int8"), Activation(1, rows, channels, dtype)
    layer = ConvolutionKernel(*maps, (1, 1), (1, 1), (0, 0), (1, 1), 1, None)
    assert linear_hadamard_layout.block_rows(layer, rows, "x86-64-vnni") == expected
    assert linear_hadamard_layout.block_rows(layer, rows, "x86-64-amx") is None


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
