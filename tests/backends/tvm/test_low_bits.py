"""Weights of few bits inside a program: read packed or expanded when the program is loaded, with factors for groups and without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from qcompiler.api import quantize
from qcompiler.backends.tvm import backend
from qcompiler.capture import capture
from qcompiler.ir.ranges import annotate
from qcompiler.ir.types import DynamicSize, IntegerType, QuantizedType

TARGETS = ("x86-64-v3", "x86-64-vnni", "x86-64-amx")


def _weight(p: Any, bits: int, shape: tuple[int, ...], group: int = 0) -> fx.Node:
    """Codes whose type says their bits, times factors where there are groups."""
    high = (1 << (bits - 1)) - 1
    codes = p.integers("codes", -high - 1 + bool(group), high, shape, torch.int8)
    codes.meta["quantized"] = QuantizedType(IntegerType(bits, signed=True), (0.5,) * shape[0], axis=0)
    if not group:
        return codes  # type: ignore[no-any-return]
    factors = p.integers("factors", 1, 127 // high, (shape[0], -(-shape[1] // group)), torch.int8)
    return p.call("qc.scale_groups", codes, factors, group)  # type: ignore[no-any-return]


def _linear(p: Any, x: fx.Node, features: int, bits: int, group: int = 0) -> fx.Node:
    inputs = x.meta["val"].shape[-1]
    weight = _weight(p, bits, (features, inputs), group)
    node = p.call("qc.linear", x, weight, p.integers("bias", -5000, 5000, (features,)))
    return p.requantize(node, 127 * 255 * inputs + 5000, (features,))  # type: ignore[no-any-return]


def _convolution(p: Any, channels: int, bits: int, group: int = 0) -> fx.Node:
    weight = _weight(p, bits, (channels, 24, 3, 3), group)
    bias = p.integers("bias", -5000, 5000, (channels,))
    return p.call("qc.convolution", p.images, weight, bias, [1, 1], [1] * 4, [1, 1], 1, 7)  # type: ignore[no-any-return]


# What is read packed on every target, and what is expanded.
PACKED: dict[str, Callable[[Any], fx.Node]] = {
    "four": lambda p: _linear(p, p.row, 770, 4),
    "three": lambda p: _linear(p, p.row, 701, 3),
    "two": lambda p: _linear(p, p.row, 703, 2),
    "groups": lambda p: _linear(p, p.row, 705, 4, 128),
    "groups of two bits": lambda p: _linear(p, p.row, 770, 2, 64),
}
EXPANDED: dict[str, Callable[[Any], fx.Node]] = {
    "small": lambda p: _linear(p, p.row, 70, 4),
    "groups of no whole number of rounds": lambda p: _linear(p, p.row, 770, 4, 100),
    "rows": lambda p: _linear(p, p.rows, 48, 4, 16),
    "convolution": lambda p: _convolution(p, 40, 4),
    "convolution with groups": lambda p: _convolution(p, 40, 4, 8),
}
CASES = PACKED | EXPANDED


def _program(new: Callable[[], Any], cases: dict[str, Callable[[Any], fx.Node]]) -> Any:
    p = new()
    p.row, p.rows, p.images = p.input(None, 1003), p.input(None, 40, 48), p.input(None, 24, 9, 11)
    program = p.finish(*(case(p) for case in cases.values()))
    annotate(program)
    return program


@pytest.mark.parametrize("target", TARGETS)
def test_equals_reference(target: str, integer_program: Any, compile_for: Any, differences: Any, request: pytest.FixtureRequest) -> None:
    if target == "x86-64-amx":
        request.getfixturevalue("amx_machine")
    program = _program(integer_program, CASES)
    executable = compile_for(program, target)
    assert not differences(program, executable, list(CASES), batches=(1, 3))


def test_the_notes_name_what_is_read_packed(integer_program: Any) -> None:
    two, four = backend.compile(_program(integer_program, PACKED | EXPANDED), "x86-64-vnni").notes[2:]
    assert (four.split(":")[0], two.split(":")[0]) == ("weights read as 4 bits", "weights read as 2 bits")
    assert (four.count("linear"), two.count("linear")) == (3, 2)


def test_rows_of_a_dynamic_number(integer_program: Any, compile_for: Any, differences: Any) -> None:
    p = integer_program()
    rows = p.input(None, DynamicSize("length", 1, 5), 1003)
    program = p.finish(_linear(p, rows, 600, 4), _linear(p, rows, 601, 4, 128))
    annotate(program)
    executable = compile_for(program, "x86-64-vnni")
    assert not differences(program, executable, ["plain", "groups"], batches=(2,), lengths=(1, 3, 5))


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_weights_and_activations_of_few_bits(bits: int, compile_for: Any) -> None:
    """From a network to machine code: activations of few bits are bytes in memory and small integers in every kernel."""
    torch.manual_seed(bits)
    network = torch.nn.Sequential(
        torch.nn.Linear(40, 701), torch.nn.ReLU(), torch.nn.Linear(701, 703), torch.nn.ReLU(), torch.nn.Linear(703, 5)
    )
    x = torch.randn(16, 40)
    program = quantize(
        capture(network.eval(), (x,), dynamic_batch=True), [x], recipe="int8", options={"quantize.w": bits, "quantize.a": bits}
    )
    assert program.inputs[0].quantized is not None and program.inputs[0].quantized.integer.bits == bits
    executable = compile_for(program, "x86-64-vnni")
    integers = torch.randint(0, 1 << bits, (7, 40)).to(torch.uint8)
    assert all(map(torch.equal, program.run_integer(integers), executable.run_integer(integers)))
    assert all(map(torch.equal, program.run(x), executable.run(x)))
