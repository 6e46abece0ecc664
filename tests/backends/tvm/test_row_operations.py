"""The ops of transformers that are no products: masks, forms of softmax, functions, tables, casts; one program, compiled once a target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from qcompiler import arithmetic
from qcompiler.ir.types import DynamicSize

TARGETS = ("x86-64-v3", "x86-64-vnni")


def _words(p: Any) -> fx.Node:
    """int16 [N, 5, 33]"""
    return p.call("qc.lookup", p.rows, p.integers("table", -30000, 30000, (256,), torch.int16), 16, True)


def _softmax(
    p: Any, x: fx.Node, form: str, bits: int = 8, mask: fx.Node | None = None, scale: float = 0.02, rounding: str = "nearest"
) -> fx.Node:
    table, constants = arithmetic.softmax_parameters(form, scale)
    return p.call("qc.softmax", x, None if table is None else p.constant("e", table), mask, form, constants, bits, rounding)


def _nonlinear(p: Any, x: fx.Node, function: str, form: str, scale: float = 0.05, bound: int = 300) -> fx.Node:
    return p.call("qc.nonlinear", x, 7, function, form, arithmetic.nonlinear_parameters(function, form, scale, bound)[0])


def _mask(p: Any) -> fx.Node:
    """bool [N, 1, 33]"""
    return p.call("aten.gt:Scalar", p.call("aten.slice:Tensor", p.rows, 1, 0, 1, 1), 100)


def _image_mask(p: Any) -> fx.Node:
    """bool [N, 1, 1, 11]"""
    row = p.call("aten.slice:Tensor", p.call("aten.slice:Tensor", p.images, 1, 0, 1, 1), 2, 3, 4, 1)
    return p.call("aten.logical_not", p.call("aten.le:Scalar", row, 90))


def _ids(p: Any) -> fx.Node:
    """int64 [N, 5, 33] in [0, 255]"""
    return p.call("aten.to:dtype", p.rows, torch.int64)


CASES: dict[str, Callable[[Any], fx.Node]] = {
    "softmax_table": lambda p: _softmax(p, p.images, "table"),
    "softmax_rounded_down": lambda p: _softmax(p, p.images, "table", 8, rounding="floor"),
    "softmax_wide_table": lambda p: _softmax(p, p.images, "wide-table", 24, rounding="floor"),
    "softmax_table_masked": lambda p: _softmax(p, p.images, "table", 8, _image_mask(p)),
    "softmax_of_columns": lambda p: _softmax(p, p.call("aten.permute", p.images, [0, 2, 3, 1]), "table", 16),
    "softmax_shift": lambda p: _softmax(p, p.rows, "shift", 12, _mask(p)),
    "softmax_poly_constant_mask": lambda p: _softmax(p, _words(p), "poly", 8, p.integers("m", 0, 1, (5, 33), torch.bool), 0.0005),
    "softmax_mask_of_rows": lambda p: _softmax(
        p, p.rows, "poly", 8, p.call("aten.slice:Tensor", p.call("aten.gt:Scalar", p.rows, 99), 2, 4, 5, 1)
    ),
    "softmax_shiftmax": lambda p: _softmax(p, p.rows, "shiftmax", 8, _mask(p)),
    "softmax_i_softmax": lambda p: _softmax(p, p.rows, "i-softmax"),
    "normalize_i_layernorm": lambda p: p.call("qc.normalize", _words(p), 5, 0, True, "i-layernorm"),
    "normalize_i_bert": lambda p: p.call("qc.normalize", p.images, 5, 0, True, "i-bert"),
    "normalize_of_accumulators": lambda p: p.call("qc.normalize", p.call("qc.sum", p.images, [2], False, 0), 5, 10, True, "newton"),
    "gelu_shift": lambda p: _nonlinear(p, p.images, "gelu", "shift"),
    "silu_poly": lambda p: _nonlinear(p, p.call("aten.permute", p.images, [0, 3, 1, 2]), "silu", "poly"),
    "tanh_poly": lambda p: _nonlinear(p, _words(p), "tanh", "poly", 0.001, 40000),
    "exp_shift": lambda p: _nonlinear(p, p.rows, "exp", "shift"),
    "gelu_of_i_vit": lambda p: _nonlinear(p, p.call("aten.transpose:int", p.rows, 1, 2), "gelu", "shift-gelu"),
    "gelu_of_i_bert": lambda p: _nonlinear(p, p.images, "gelu", "i-gelu"),
    "embedding": lambda p: p.call("qc.embedding", p.integers("w", -128, 127, (256, 40), torch.int8), _ids(p)),
    "embedding_of_narrow_ids": lambda p: p.call(
        "qc.embedding", p.integers("w", -128, 127, (256, 7), torch.int16), p.call("aten.to:dtype", p.rows, torch.int32)
    ),
    "bucketize": lambda p: p.call("qc.bucketize", _words(p), p.constant("b", torch.arange(-15000, 15000, 2000, dtype=torch.int32)), 4),
    "bucketize_images": lambda p: p.call("qc.bucketize", p.images, p.constant("b", torch.arange(3, 250, 9, dtype=torch.int32)), 8),
    "divide_by_count": lambda p: p.call(
        "qc.divide",
        p.call("qc.sum", p.rows, [1], False, 7),
        p.call("qc.sum", p.call("qc.clamp", p.rows, 1, 255), [1], False, 0),
        8,
    ),
    "divide_rows": lambda p: p.call(
        "qc.divide", p.call("qc.sum", p.images, [3], False, 7), p.call("qc.sum", p.call("qc.clamp", p.rows, 1, 255), [1, 2], True, 0), 6
    ),
    "argmax": lambda p: p.call("aten.argmax", p.rows, -1),
    "argmax_keepdim": lambda p: p.call("aten.argmax", p.images, 1, True),
    "equal": lambda p: p.call("aten.eq:Scalar", p.images, 7),
    "less": lambda p: p.call("aten.lt:Scalar", _words(p), -300),
    "mask_and": lambda p: p.call("aten.logical_and", p.call("aten.ne:Scalar", p.rows, 3), _mask(p)),
    "mask_or": lambda p: p.call("aten.bitwise_or:Tensor", p.call("aten.ge:Scalar", p.rows, 200), _mask(p)),
    "cast_of_mask": lambda p: p.call("aten.to:dtype", _mask(p), torch.int32),
    "cast_to_mask": lambda p: p.call("aten.to:dtype", p.images, torch.bool),
    "cast_of_words": lambda p: p.call("aten.to:dtype", _words(p), torch.int32),
    "cast_up": lambda p: _ids(p),
    "moved_mask": lambda p: p.call("aten.transpose:int", p.call("aten.ge:Scalar", p.rows, 200), 1, 2),
}


@pytest.mark.parametrize("target", TARGETS)
def test_equals_reference(target: str, integer_program: Any, compile_for: Any, differences: Any) -> None:
    program = integer_program()
    program.images, program.rows = program.input(None, 20, 9, 11), program.input(None, 5, 33)
    program = program.finish(*(case(program) for case in CASES.values()))
    assert not differences(program, compile_for(program, target), list(CASES))


LENGTH = DynamicSize("sequence", 1, 37)


def _layer_norm(p: Any, x: fx.Node) -> fx.Node:
    """Of x, with an affine part, in 16 bits."""
    scales = [p.integers("s", 1, 1), p.multiplier((48,)), p.integers("s", 10, 10), p.multiplier()]
    limits = (9, -(1 << 15), (1 << 15) - 1, 16, True)
    offset = p.integers("offset", -20000, 20000, (48,), torch.int16)
    return p.call("qc.add", p.call("qc.normalize", x, 7, 1000, True, "newton"), offset, *scales, 11, 0, 0, *limits)


def _narrowed(p: Any) -> fx.Node:
    """Both widths of one LayerNorm are read."""
    wide = _layer_norm(p, p.rows)
    return p.add(wide, p.requantize(wide, 1 << 15, form="narrow", signed=True), 1 << 15, 128)


def _positions(p: Any) -> fx.Node:
    """Sum of tokens and positions, and its LayerNorm."""
    length = p.call("aten.sym_size:int", p.rows, 1)
    table = p.call("aten.slice:Tensor", p.integers("positions", 0, 255, (LENGTH.maximum, 48), torch.uint8), 0, 0, length, 1)
    return _layer_norm(p, p.add(p.rows, table, 255, 255, zero_points=(7, 0)))


def _pairs(p: Any) -> fx.Node:
    """uint8 [N, tokens, tokens]"""
    accumulator = p.call("qc.matmul", p.rows, p.call("aten.transpose:int", p.rows, 1, 2), 7, 7)
    return p.requantize(accumulator, 48 * 255 * 255)


def _attended(p: Any, form: str) -> fx.Node:
    kept = p.call("aten.unsqueeze", p.call("aten.gt:Scalar", p.ids, 60), 1)
    return _softmax(p, _pairs(p), form, 8, kept)


def _weighed(p: Any, probabilities: fx.Node) -> fx.Node:
    """[N, tokens, 48]: each probability counts."""
    return p.call("qc.matmul", probabilities, p.rows, 0, 7)


def _mean(p: Any) -> fx.Node:
    """Of the tokens that a mask keeps."""
    count = p.call("qc.sum", p.call("qc.clamp", p.ids, 1, 255), [1], True, 0)
    return p.call("qc.divide", p.call("qc.sum", p.rows, [1], False, 7), count, 8)


DYNAMIC: dict[str, Callable[[Any], fx.Node]] = {
    "layer_norm": lambda p: _layer_norm(p, p.rows),
    "narrowed": _narrowed,
    "positions": _positions,
    "softmax": lambda p: _weighed(p, _softmax(p, _pairs(p), "table")),
    "softmax_masked": lambda p: _weighed(p, _attended(p, "table")),
    "softmax_poly_masked": lambda p: _weighed(p, _attended(p, "poly")),
    "softmax_shiftmax": lambda p: _weighed(p, _attended(p, "shiftmax")),
    "embedding": lambda p: p.call("qc.embedding", p.integers("w", -128, 127, (256, 48), torch.int8), p.ids),
    "lookup": lambda p: p.call("qc.lookup", p.rows, p.integers("table", -30000, 30000, (256,), torch.int16), 16, True),
    "gelu": lambda p: _nonlinear(p, p.rows, "gelu", "poly"),
    "gelu_of_i_vit": lambda p: p.call(
        "aten.transpose:int", _nonlinear(p, p.call("aten.transpose:int", p.rows, 1, 2), "gelu", "shift-gelu"), 1, 2
    ),
    "mean": _mean,
    "argmax": lambda p: p.call("aten.argmax", p.rows, 1),
}


@pytest.mark.parametrize("target", TARGETS)
def test_equals_reference_at_every_length(target: str, integer_program: Any, compile_for: Any, differences: Any) -> None:
    program = integer_program()
    program.rows, program.ids = program.input(None, LENGTH, 48), program.input(None, LENGTH)
    program = program.finish(*(case(program) for case in DYNAMIC.values()))
    assert not differences(program, compile_for(program, target), list(DYNAMIC), batches=(1, 3), lengths=(1, 16, 33, 37))


def _real(p: Any, x: fx.Node) -> fx.Node:
    return p.call("qc.dequantize", x, [0.05], [7], -1, 8, False)


def _island(p: Any, op: str, *operands: object) -> fx.Node:
    value = p.call(op, *operands)
    return p.call("qc.quantize", value, [0.013], [120], -1, 8, False)


ISLANDS: dict[str, Callable[[Any], fx.Node]] = {
    "sin": lambda p: _island(p, "aten.sin", _real(p, p.rows)),
    "tanh": lambda p: _island(p, "aten.tanh", _real(p, p.rows)),
    "sqrt": lambda p: _island(p, "aten.sqrt", _real(p, p.images)),
    "log": lambda p: _island(p, "aten.log", _real(p, p.rows)),
    "divide": lambda p: _island(p, "aten.div:Tensor", _real(p, p.rows), _real(p, p.call("qc.clamp", p.rows, 9, 99))),
    "multiply_by_number": lambda p: _island(p, "aten.mul:Tensor", _real(p, p.rows), 0.37),
    "power": lambda p: _island(p, "aten.pow:Tensor_Scalar", _real(p, p.rows), 3),
    "cosine_of_sine": lambda p: _island(p, "aten.cos", p.call("aten.sin", _real(p, p.rows))),
}


@pytest.mark.parametrize("target", TARGETS)
def test_islands_equal_reference(target: str, integer_program: Any, compile_for: Any, differences: Any) -> None:
    """The C library's functions and torch's may differ in the last bit of a float, which no result here is near enough to show."""
    p = integer_program()
    p.images, p.rows, p.islands = p.input(None, 20, 9, 11), p.input(None, 5, 33), []
    outputs = [case(p) for case in ISLANDS.values()]
    islands = [node.name for node in p.builder.graph.nodes if node.op == "call_function" and str(node.target).startswith("aten")]
    program = dataclasses.replace(p.finish(*outputs), islands=tuple(islands))
    assert not differences(program, compile_for(program, target), list(ISLANDS), batches=(1, 3))
