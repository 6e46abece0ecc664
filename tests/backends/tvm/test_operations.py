"""Every op but convolution and linear: all cases are outputs of one program, so that each target compiles once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from qcompiler import arithmetic

TARGETS = ("x86-64-v3", "x86-64-vnni")
LIMIT = 9223372036854775807  # what torch.export writes for "to the end"


def _image(p: Any) -> fx.Node:
    """uint8 [N, 20, 9, 11]; sizes that no vector divides."""
    return p.images


def _accumulator(p: Any) -> fx.Node:
    """int32 with |x| <= 9 * 255."""
    return p.call("qc.sum_pool2d", p.images, [3, 3], [1, 1], [1, 1, 1, 1], 100)


def _wide(p: Any, form: str) -> fx.Node:
    return p.requantize(_accumulator(p), 9 * 255, (20, 1, 1), form)


def _table(p: Any, shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> fx.Node:
    limits = torch.iinfo(dtype)
    return p.integers("table", limits.min, limits.max, shape, dtype)


def _int16(p: Any) -> fx.Node:
    return p.call("qc.lookup", p.images, _table(p, (256,), torch.int16), 16, True)


CASES: dict[str, Callable[[Any], fx.Node]] = {
    "requantize_high": lambda p: p.requantize(_accumulator(p), 9 * 255),
    "requantize_high_per_channel": lambda p: _wide(p, "high"),
    "requantize_narrow": lambda p: p.requantize(_accumulator(p), 9 * 255, form="narrow"),
    "requantize_narrow_per_channel": lambda p: _wide(p, "narrow"),
    "requantize_exact64": lambda p: p.requantize(_accumulator(p), 9 * 255, form="exact64"),
    "requantize_exact64_per_channel": lambda p: _wide(p, "exact64"),
    "requantize_signed": lambda p: p.requantize(_accumulator(p), 9 * 255, signed=True),
    "requantize_of_bytes": lambda p: p.requantize(p.images, 255),
    "requantize_by_position": lambda p: p.requantize(_accumulator(p), 9 * 255, (9, 11)),
    "requantize_matrix": lambda p: p.requantize(p.call("qc.multiply", p.rows, p.rows, 7, 7), 1 << 16, (33,)),
    "add": lambda p: p.add(p.images, p.call("aten.flip", p.images, [2, 3]), 255, 255, zero_points=(7, 7)),
    "add_per_channel": lambda p: p.add(_accumulator(p), p.images, 9 * 255, 255, (20, 1, 1), zero_points=(0, 7)),
    "add_broadcast": lambda p: p.add(p.images, p.integers("b", 0, 255, (20, 1, 1), torch.uint8), 255, 255, zero_points=(7, 9)),
    "add_int16": lambda p: p.add(_int16(p), p.images, 1 << 15, 255),
    "multiply": lambda p: p.call("qc.multiply", p.images, p.images, 7, 9),
    "multiply_broadcast": lambda p: p.call("qc.multiply", p.images, p.call("qc.adaptive_max_pool2d", p.images, [1, 1]), 7, 0),
    "multiply_constant": lambda p: p.call("qc.multiply", p.images, p.integers("b", -128, 127, (1, 20, 1, 1), torch.int8), 7, 0),
    "lookup": lambda p: p.call("qc.lookup", p.images, _table(p, (256,)), 8, False),
    "lookup_signed_to_int16": lambda p: p.call(
        "qc.lookup", p.requantize(p.images, 255, signed=True), _table(p, (256,), torch.int16), 16, True
    ),
    "lookup_per_channel": lambda p: p.call("qc.lookup", p.images, _table(p, (20, 256), torch.int8), 8, True),
    "clamp": lambda p: p.call("qc.clamp", p.images, 20, 200),
    "clamp_int32": lambda p: p.call("qc.clamp", _accumulator(p), -500, 300),
    "max_pool": lambda p: p.call("qc.max_pool2d", p.images, [2, 2], [2, 2], [0, 0, 0, 0], [1, 1]),
    "max_pool_padded": lambda p: p.call("qc.max_pool2d", p.images, [3, 3], [2, 2], [1, 2, 1, 1], [1, 1]),
    "max_pool_dilated": lambda p: p.call("qc.max_pool2d", p.images, [3, 2], [1, 2], [2, 2, 1, 1], [2, 2]),
    "max_pool_int32": lambda p: p.call("qc.max_pool2d", _accumulator(p), [3, 3], [2, 2], [1, 1, 1, 1], [1, 1]),
    "sum_pool": lambda p: p.call("qc.sum_pool2d", p.images, [3, 2], [2, 2], [1, 1, 0, 1], 7),
    "adaptive_sum_pool_regular": lambda p: p.call("qc.adaptive_sum_pool2d", p.images, [3, 1], 7),
    "adaptive_sum_pool_irregular": lambda p: p.call("qc.adaptive_sum_pool2d", p.images, [4, 3], 7),
    "adaptive_sum_pool_larger": lambda p: p.call("qc.adaptive_sum_pool2d", p.images, [12, 11], 7),
    "adaptive_max_pool": lambda p: p.call("qc.adaptive_max_pool2d", p.images, [2, 4]),
    "sum_image": lambda p: p.call("qc.sum", p.images, [2, 3], True, 7),
    "sum_channels": lambda p: p.call("qc.sum", p.images, [1], False, 7),
    "sum_rows": lambda p: p.call("qc.sum", p.rows, [-1], False, 7),
    "sum_middle": lambda p: p.call("qc.sum", p.rows, [1], True, 7),
    "matmul": lambda p: p.call("qc.matmul", p.images, p.call("aten.permute", p.images, [0, 1, 3, 2]), 7, 9),
    "matmul_broadcast": lambda p: p.call("qc.matmul", p.images, p.integers("b", -128, 127, (11, 6), torch.int8), 7, 0),
    "matmul_of_views": lambda p: p.call(
        "qc.matmul", p.call("aten.permute", p.images, [0, 2, 3, 1]), p.call("aten.permute", p.images, [0, 2, 1, 3]), 7, 7
    ),
    "matmul_rows": lambda p: p.call("qc.matmul", p.rows, p.call("aten.transpose:int", p.rows, 1, 2), 7, 9),
    "softmax": lambda p: p.call("qc.softmax", p.images, p.constant("e", arithmetic.exponential_table(0.05)), None, "table", [], 8),
    "softmax_channels": lambda p: p.call(
        "qc.softmax",
        p.call("aten.permute", p.images, [0, 2, 3, 1]),
        p.constant("e", arithmetic.exponential_table(0.01)),
        None,
        "table",
        [],
        16,
    ),
    "softmax_rows": lambda p: p.call("qc.softmax", p.rows, p.constant("e", arithmetic.exponential_table(0.5)), None, "table", [], 4),
    "normalize": lambda p: p.call("qc.normalize", p.images, 7, 1000, True, "newton"),
    "normalize_rows": lambda p: p.call("qc.normalize", p.rows, 100, 0, True, "newton"),
    "normalize_int16": lambda p: p.call("qc.normalize", _int16(p), 5, 1 << 40, True, "newton"),
    "normalize_root_mean_square": lambda p: p.call("qc.normalize", _int16(p), 5, 99, False, "newton"),
    "dilate": lambda p: p.call("qc.dilate", p.images, [2, 3], 7),
    "view_split": lambda p: p.call("aten.view", p.images, [-1, 4, 5, 99]),
    "reshape_mixed": lambda p: p.call("aten.reshape", p.images, [-1, 9, 220]),
    "flatten": lambda p: p.call("aten.flatten:using_ints", p.images, 1),
    "flatten_pooled": lambda p: p.call("aten.flatten:using_ints", p.call("qc.adaptive_max_pool2d", p.images, [1, 1]), 1),
    "squeeze": lambda p: p.call("aten.squeeze:dims", p.call("qc.sum", p.images, [3], True, 7), [3]),
    "unsqueeze": lambda p: p.call("aten.unsqueeze", p.rows, 2),
    "permute": lambda p: p.call("aten.permute", p.images, [0, 3, 1, 2]),
    "transpose": lambda p: p.call("aten.transpose:int", p.rows, -1, 1),
    "channel_shuffle": lambda p: p.call(
        "aten.reshape", p.call("aten.transpose:int", p.call("aten.view", p.images, [-1, 4, 5, 9, 11]), 1, 2), [-1, 20, 9, 11]
    ),
    "slice": lambda p: p.call("aten.slice:Tensor", p.images, 1, 3, LIMIT, 2),
    "slice_negative": lambda p: p.call("aten.slice:Tensor", p.images, -1, -5, -1, 1),
    "select": lambda p: p.call("aten.select:int", p.images, 2, -2),
    "flip": lambda p: p.call("aten.flip", p.images, [1, -1]),
    "clone": lambda p: p.call("aten.clone", p.images),
    "expand": lambda p: p.call("aten.expand", p.call("aten.unsqueeze", p.rows, 1), [-1, 3, 5, 33]),
    "cat_channels": lambda p: p.call("aten.cat", [p.images, p.call("qc.clamp", p.images, 0, 9), p.images], 1),
    "cat_width": lambda p: p.call("aten.cat", [p.images, p.images], -1),
    "cat_rows": lambda p: p.call("aten.cat", [p.rows, p.call("aten.flip", p.rows, [1])], 1),
    "pad": lambda p: p.call("aten.constant_pad_nd", p.images, [1, 2, 3, 0], 7),
    "pad_crop": lambda p: p.call("aten.constant_pad_nd", p.images, [-1, 2, 0, -3, 1, 1], 200),
    "pool_of_pool": lambda p: p.call(
        "qc.sum_pool2d",
        p.call("qc.max_pool2d", p.call("qc.clamp", p.images, 30, 220), [3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
        *([2, 2], [2, 2], [1, 0, 1, 0], 100),
    ),
}


def _program(new: Callable[[], Any]) -> Any:
    program = new()
    program.images, program.rows = program.input(None, 20, 9, 11), program.input(None, 5, 33)
    return program.finish(*(case(program) for case in CASES.values()))


@pytest.mark.parametrize("target", TARGETS)
def test_equals_reference(target: str, integer_program: Any, compile_for: Any, differences: Any) -> None:
    program = _program(integer_program)
    assert not differences(program, compile_for(program, target), list(CASES))
