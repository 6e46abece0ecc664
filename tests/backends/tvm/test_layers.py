"""Convolution and linear layers inside a program: fusion, halos, copies. The kernels by themselves are tested in ``templates``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

TARGETS = ("x86-64-v3", "x86-64-vnni", "x86-64-amx")


def _requantized(p: Any, x: fx.Node, *layer: Any, form: str = "high", signed: bool = False, **options: Any) -> fx.Node:
    accumulator, bound = p.convolution(x, *layer, **options)
    return p.requantize(accumulator, bound, (layer[0], 1, 1), form, signed)


def _residual(p: Any, accumulator_first: bool) -> fx.Node:
    accumulator, bound = p.convolution(p.images, 24, (3, 3), padding=(1, 1, 1, 1))
    if accumulator_first:
        return p.add(accumulator, p.images, bound, 255, (24, 1, 1), zero_points=(0, 7))
    return p.add(p.images, accumulator, 255, bound, zero_points=(7, 0))


def _with_table(p: Any, x: fx.Node) -> fx.Node:
    return p.call("qc.lookup", x, p.integers("table", 0, 255, (256,), torch.uint8), 8, False)


def _with_table_of_other_sign(p: Any, signed: bool) -> fx.Node:
    """Indices from 13 to 200, or from -90 to 127, of a table whose entries have the other sign."""
    accumulator, bound = p.convolution(p.images, 8)
    limits = (-90, 127) if signed else (13, 200)
    parameters = [p.constant("pre_shift", torch.tensor(30 - bound.bit_length(), dtype=torch.int32)), p.multiplier()]
    parameters.append(p.constant("shift", torch.tensor(20, dtype=torch.int32)))
    indices = p.call("qc.requantize", accumulator, *parameters, 0, 3, *limits, "high", 8, signed)
    entries = p.integers("table", 0, 255, (256,), torch.uint8) if signed else p.integers("table", -128, 127, (256,), torch.int8)
    return p.call("qc.lookup", indices, entries, 8, not signed)


def _linear(p: Any, x: fx.Node, features: int) -> fx.Node:
    accumulator, bound = p.linear(x, features)
    return p.requantize(accumulator, bound, (features,))


def _of_words(p: Any, features: int, inputs: int) -> tuple[fx.Node, int]:
    """A layer on inputs of 16 bits."""
    x = p.call("aten.slice:Tensor", p.rows, 2, 0, inputs, 1)
    words = p.call("qc.lookup", x, p.integers("table", -(1 << 15), (1 << 15) - 1, (256,), torch.int16), 16, True)
    return p.linear(words, features, 1 << 15)


def _words_requantized(p: Any, features: int, inputs: int, form: str = "high") -> fx.Node:
    accumulator, bound = _of_words(p, features, inputs)
    return p.requantize(accumulator, bound, (features,), form)


def _words_residual(p: Any) -> fx.Node:
    accumulator, bound = _of_words(p, 48, 48)
    return p.add(accumulator, p.rows, bound, 255, (48,), zero_points=(0, 7))


def _linear_residual(p: Any) -> fx.Node:
    accumulator, bound = p.linear(p.rows, 48)
    return p.add(accumulator, p.rows, bound, 255, (48,), zero_points=(0, 7))


def _two_readers(p: Any) -> fx.Node:
    """One map read by a padded convolution, a padded pooling that wants another value in the halo, and an addition."""
    shared = _requantized(p, p.images, 16, (1, 1))
    left = _requantized(p, shared, 16, (5, 5), padding=(2, 2, 2, 2), pad_value=100)
    right = p.call("qc.max_pool2d", shared, [3, 3], [1, 1], [1, 1, 1, 1], [1, 1])
    return p.add(p.add(left, right, 255, 255), shared, 255, 255)


CASES: dict[str, Callable[[Any], fx.Node]] = {
    "accumulator": lambda p: p.convolution(p.images, 10, (3, 3), padding=(1, 1, 1, 1))[0],
    "pointwise": lambda p: _requantized(p, p.images, 32),
    "three_by_three": lambda p: _requantized(p, p.images, 40, (3, 3), (1, 1), (1, 1, 1, 1)),
    "strided": lambda p: _requantized(p, p.images, 17, (3, 3), (2, 2), (1, 1, 1, 1)),
    "strided_same": lambda p: _requantized(p, p.images, 16, (3, 3), (2, 2), (0, 1, 0, 1)),
    "stem": lambda p: _requantized(p, p.call("aten.slice:Tensor", p.images, 1, 0, 3, 1), 32, (7, 7), (2, 2), (3, 3, 3, 3)),
    "depthwise": lambda p: _requantized(p, p.images, 24, (3, 3), (1, 1), (1, 1, 1, 1), groups=24),
    "depthwise_strided": lambda p: _requantized(p, p.images, 24, (5, 5), (2, 2), (2, 2, 2, 2), groups=24),
    "depthwise_multiplied": lambda p: _requantized(p, p.images, 48, (3, 3), (1, 1), (1, 1, 1, 1), groups=24),
    "grouped": lambda p: _requantized(p, p.images, 16, (3, 3), (1, 1), (1, 1, 1, 1), groups=4),
    "dilated": lambda p: _requantized(p, p.images, 16, (3, 3), (1, 1), (2, 2, 2, 2), dilation=(2, 2)),
    "not_square": lambda p: _requantized(p, p.images, 16, (1, 5), (1, 2), (0, 0, 2, 2)),
    "narrow": lambda p: _requantized(p, p.images, 32, (3, 3), (1, 1), (1, 1, 1, 1), form="narrow"),
    "exact64": lambda p: _requantized(p, p.images, 32, form="exact64"),
    "signed_output": lambda p: _requantized(p, p.images, 32, signed=True),
    "signed_input": lambda p: _requantized(p, _requantized(p, p.images, 16, signed=True), 16, (3, 3), (1, 1), (1, 1, 1, 1), pad_value=-3),
    "residual": lambda p: _residual(p, True),
    "residual_second": lambda p: _residual(p, False),
    "table": lambda p: _with_table(p, _requantized(p, p.images, 32, (3, 3), (1, 1), (1, 1, 1, 1))),
    "table_to_signed": lambda p: _with_table_of_other_sign(p, False),
    "table_to_unsigned": lambda p: _with_table_of_other_sign(p, True),
    "residual_table": lambda p: _with_table(p, _residual(p, True)),
    "two_readers": _two_readers,
    "of_concatenation": lambda p: _requantized(p, p.call("aten.cat", [p.images, p.images], 1), 8, (3, 3), (1, 1), (1, 1, 1, 1)),
    "of_slice": lambda p: _requantized(p, p.call("aten.slice:Tensor", p.images, 2, 1, 9, 1), 8, (3, 3), (1, 1), (1, 1, 1, 1)),
    "one_row_padded_at_one_end": lambda p: _requantized(
        p, p.call("aten.slice:Tensor", p.images, 2, 0, 1, 1), 8, (1, 3), (1, 1), (0, 0, 2, 0), pad_value=9
    ),
    "linear": lambda p: _linear(p, p.rows, 31),
    "linear_accumulator": lambda p: p.linear(p.rows, 16)[0],
    "linear_residual": _linear_residual,
    "linear_of_words": lambda p: _words_requantized(p, 31, 48),
    "linear_of_an_odd_number_of_words": lambda p: _words_requantized(p, 80, 47, "narrow"),
    "linear_of_words_accumulator": lambda p: _of_words(p, 16, 5)[0],
    "linear_of_words_residual": _words_residual,
    "linear_of_transposed": lambda p: _linear(p, p.call("aten.transpose:int", p.rows, 1, 2), 8),
    "linear_of_image": lambda p: _linear(p, p.images, 8),
    "classifier": lambda p: _linear(p, p.call("aten.flatten:using_ints", p.call("qc.adaptive_max_pool2d", p.images, [1, 1]), 1), 10),
    "flattened_map": lambda p: _linear(p, p.call("aten.flatten:using_ints", p.images, 1), 10),
}


def _program(new: Callable[[], Any]) -> Any:
    program = new()
    program.images, program.rows = program.input(None, 24, 9, 11), program.input(None, 5, 48)
    return program.finish(*(case(program) for case in CASES.values()))


@pytest.mark.parametrize("target", TARGETS)
def test_equals_reference(target: str, integer_program: Any, compile_for: Any, differences: Any, request: pytest.FixtureRequest) -> None:
    if target == "x86-64-amx":
        request.getfixturevalue("amx_machine")
    program = _program(integer_program)
    executable = compile_for(program, target)
    assert not differences(program, executable, list(CASES), batches=(1, 3) if target == "x86-64-amx" else (1, 3, 17))
