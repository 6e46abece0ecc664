"""Bits that are counted inside a program: chosen by what weights and inputs are, over rows of a dynamic number, with halos, by threads."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qcompiler.backends.tvm import backend
from qcompiler.ir.ranges import annotate
from qcompiler.ir.types import DynamicSize, IntegerType, QuantizedType


def _few_bits(p: Any, x: fx.Node, low: int, high: int) -> fx.Node:
    """The value clamped to numbers of few bits, with a type that has a range."""
    node: fx.Node = p.call("qc.clamp", x, low, high)
    node.meta["quantized"] = QuantizedType(IntegerType(8, signed=False), (0.5,))
    return node


def _signs(p: Any, *shape: int) -> fx.Node:
    weight: fx.Node = p.constant("signs", 2 * torch.randint(0, 2, shape, generator=p.random).to(torch.int8) - 1)
    weight.meta["quantized"] = QuantizedType(IntegerType(2, signed=True), (0.5,) * shape[0], axis=0)
    return weight


def _convolution(p: Any, x: fx.Node, pad_value: int) -> fx.Node:
    bias = p.integers("bias", -50, 50, (40,))
    node = p.call("qc.convolution", x, _signs(p, 40, 64, 3, 3), bias, [1, 1], [1] * 4, [1, 1], 1, pad_value)
    return p.requantize(node, 9 * 64 * max(3, pad_value) + 50)  # type: ignore[no-any-return]


def _linear(p: Any, x: fx.Node, features: int) -> fx.Node:
    node = p.call("qc.linear", x, _signs(p, features, x.meta["val"].shape[-1]), p.integers("bias", -50, 50, (features,)))
    return p.requantize(node, 4 * x.meta["val"].shape[-1] + 50, (features,))  # type: ignore[no-any-return]


def test_maps(integer_program: Any, compile_for: Any, differences: Any) -> None:
    p = integer_program()
    x = _few_bits(p, p.input(None, 64, 12, 13), 2, 3)
    outside = _convolution(p, x, 100)  # what is padded has seven bits
    program = p.finish(_convolution(p, x, 2), outside)
    annotate(program)
    assert backend.compile(program, "x86-64-vnni").notes[2:] == ("bits counted, weights of 1 by inputs of 1: convolution_1",)
    assert not differences(program, compile_for(program, "x86-64-vnni"), ["inside", "outside"], batches=(1, 3))


def test_rows_of_a_dynamic_number(integer_program: Any, compile_for: Any, differences: Any) -> None:
    p = integer_program()
    x = _few_bits(p, p.input(None, DynamicSize("length", 1, 90), 700), 0, 3)
    program = p.finish(_linear(p, x, 300))
    annotate(program)
    assert "weights of 1 by inputs of 2" in backend.compile(program, "x86-64-vnni").notes[2]
    assert not differences(program, compile_for(program, "x86-64-vnni"), ["rows"], batches=(2,), lengths=(1, 28, 29, 90))
