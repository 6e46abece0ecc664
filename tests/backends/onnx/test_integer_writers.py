"""Every writer of stage INTEGER: the file gives the reference's integers in onnxruntime, at the oldest and newest opset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from qcompiler import arithmetic
from qcompiler.arithmetic.nonlinear import FUNCTIONS
from qcompiler.backends.onnx import integer
from qcompiler.backends.onnx.export import make_model
from qcompiler.errors import UnsupportedOpError
from qcompiler.ir.stages import target_names, target_text
from qcompiler.ir.types import DynamicSize, Stage

FORMS = ("high", "narrow", "exact64")
Case = Callable[[Any], fx.Node]


def _table(p: Any, x: fx.Node, low: int, high: int, dtype: torch.dtype, bits: int = 8) -> fx.Node:
    return p.call("qc.lookup", x, p.integers("table", low, high, (256,), dtype), bits, low < 0)


def _signed(p: Any, x: fx.Node) -> fx.Node:
    return _table(p, x, -128, 127, torch.int8)


def _words(p: Any, x: fx.Node) -> fx.Node:
    return _table(p, x, -32768, 32767, torch.int16, 16)


def _wide(p: Any, x: fx.Node) -> fx.Node:
    return _table(p, x, -(1 << 23), 1 << 23, torch.int32, 32)


def _requantize(p: Any, x: fx.Node, form: str, bits: int, signed: bool, origin: int, zero_point: int, channels: tuple[int, ...]) -> fx.Node:
    """Random parameters that differ by channel, shifts as well."""
    pre_shift, shift, multiplier = {
        "high": ((0, 7), (1, 12), (1 << 30, (1 << 31) - 2)),
        "narrow": ((0, 11), (0, 12), (1 << 14, (1 << 15) - 1)),
        "exact64": ((0, 0), (26, 40), (1 << 30, (1 << 31) - 1)),
    }[form]
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    amounts = p.integers("pre_shift", *pre_shift, channels), p.integers("m", *multiplier, channels), p.integers("s", *shift, channels)
    return p.call("qc.requantize", x, *amounts, origin, zero_point, low, high, form, bits, signed)


def _add(p: Any, a: fx.Node, b: fx.Node, shift: int, channels: tuple[int, ...]) -> fx.Node:
    scaling = [p.integers("l", 0, 6), p.integers("m", -(1 << 30), 1 << 30, channels), p.integers("l", 0, 20), p.multiplier()]
    return p.call("qc.add", a, b, *scaling, shift, 5, -9, 3, -128, 127, 8, True)


def _grouped(p: Any) -> fx.Node:
    codes, factors = p.integers("codes", -7, 7, (6, 33), torch.int8), p.integers("factors", 1, 18, (6, 5), torch.int8)
    return p.call("qc.linear", p.rows, p.call("qc.scale_groups", codes, factors, 8), p.integers("bias", -99, 99, (6,)))


def _softmax(p: Any, x: fx.Node, form: str, bits: int = 8, mask: fx.Node | None = None, scale: float = 0.02) -> fx.Node:
    table, constants = arithmetic.softmax_parameters(form, scale)
    return p.call("qc.softmax", x, None if table is None else p.constant("e", table), mask, form, constants, bits)


def _nonlinear(p: Any, x: fx.Node, function: str, form: str, scale: float = 0.05, bound: int = 300) -> fx.Node:
    return p.call("qc.nonlinear", x, 7, function, form, arithmetic.nonlinear_parameters(function, form, scale, bound)[0])


def _mask(p: Any) -> fx.Node:
    """bool [N, 1, 33]"""
    return p.call("aten.gt:Scalar", p.call("aten.slice:Tensor", p.rows, 1, 0, 1, 1), 100)


def _boundaries(p: Any, low: int, high: int, step: int) -> fx.Node:
    return p.constant("b", torch.arange(low, high, step, dtype=torch.int32))


CHANNELS = (20, 1, 1)
CASES: dict[str, Case] = {
    **{
        f"requantize_{form}_{'channels' if channels else 'tensor'}": lambda p, f=form, c=channels: _requantize(
            p, _wide(p, p.images), f, 8, True, 11, -3, c
        )
        for form in FORMS
        for channels in ((), CHANNELS)
    },
    "requantize_bytes": lambda p: _requantize(p, p.images, "high", 16, True, 7, 100, ()),
    "requantize_signed_bytes": lambda p: _requantize(p, _signed(p, p.images), "narrow", 8, False, -3, 100, ()),
    "requantize_words": lambda p: _requantize(p, _words(p, p.images), "exact64", 32, True, 0, 0, CHANNELS),
    "requantize_to_12_bits": lambda p: _requantize(p, _words(p, p.images), "high", 12, False, 0, 9, CHANNELS),
    **{f"add_shift_{shift}": lambda p, s=shift: _add(p, _wide(p, p.images), p.images, s, CHANNELS) for shift in (1, 2, 3, 21, 30)},
    "add_words": lambda p: _add(p, _words(p, p.images), _signed(p, p.images), 17, ()),
    "add_constant": lambda p: _add(p, p.rows, p.integers("c", -3000, 3000, (33,), torch.int16), 9, ()),
    "multiply": lambda p: p.call("qc.multiply", p.images, _words(p, p.images), 7, -300),
    "convolution": lambda p: p.convolution(p.images, 6, (3, 3), (2, 1), (1, 0, 2, 1), pad_value=9)[0],
    "convolution_of_signed": lambda p: p.convolution(_signed(p, p.images), 6, (3, 2), (1, 2), (2, 2, 0, 1), (2, 1), pad_value=-31)[0],
    "convolution_depthwise": lambda p: p.convolution(p.images, 40, (3, 3), padding=(1, 1, 1, 1), groups=20, pad_value=255)[0],
    "convolution_of_groups": lambda p: p.convolution(p.images, 8, (1, 1), groups=4)[0],
    "linear": lambda p: p.linear(p.rows, 9)[0],
    "linear_of_signed": lambda p: p.linear(_signed(p, p.rows), 9)[0],
    "linear_of_words": lambda p: p.linear(_words(p, p.rows), 9)[0],
    "matmul": lambda p: p.call("qc.matmul", p.rows, p.call("aten.transpose:int", p.rows, 1, 2), 7, 200),
    "matmul_of_signed": lambda p: p.call("qc.matmul", _signed(p, p.rows), p.call("aten.transpose:int", p.rows, 1, 2), -5, 0),
    "matmul_of_words": lambda p: p.call("qc.matmul", p.rows, p.call("aten.transpose:int", _words(p, p.rows), 1, 2), 3, -301),
    "matmul_of_small_words": lambda p: p.call(
        "qc.matmul",
        _table(p, p.rows, -3000, 3000, torch.int16, 16),
        p.call("aten.permute", _table(p, p.rows, -3000, 3000, torch.int16, 16), [0, 2, 1]),
        *(5, -700),
    ),
    "matmul_zero_point_outside": lambda p: p.call("qc.matmul", p.rows, p.call("aten.transpose:int", p.rows, 1, 2), -5, 300),
    "matmul_broadcasts": lambda p: p.call("qc.matmul", p.images, p.integers("w", -128, 127, (11, 4), torch.int8), 0, 0),
    "lookup_channels": lambda p: p.call("qc.lookup", p.images, p.integers("t", 0, 255, (20, 256), torch.uint8), 8, False),
    "lookup_channels_of_signed": lambda p: p.call(
        "qc.lookup", _signed(p, p.images), p.integers("t", -128, 127, (20, 256), torch.int8), 8, True
    ),
    "lookup_of_signed": lambda p: _words(p, _signed(p, p.images)),
    "bucketize": lambda p: p.call("qc.bucketize", p.images, _boundaries(p, 3, 250, 9), 8),
    "bucketize_words": lambda p: p.call("qc.bucketize", _words(p, p.rows), _boundaries(p, -15000, 15000, 2000), 4),
    "bucketize_wide": lambda p: p.call("qc.bucketize", _wide(p, p.rows), _boundaries(p, -9000000, 9000000, 70591), 8),
    "embedding": lambda p: p.call(
        "qc.embedding", p.integers("w", -128, 127, (256, 4), torch.int8), p.call("aten.to:dtype", p.rows, torch.int64)
    ),
    "embedding_of_bytes": lambda p: p.call("qc.embedding", p.integers("w", -9999, 9999, (256, 4), torch.int16), p.rows),
    "clamp": lambda p: p.call("qc.clamp", p.images, 20, 900),
    "clamp_words": lambda p: p.call("qc.clamp", _words(p, p.images), -99, 12345),
    "clamp_wide": lambda p: p.call("qc.clamp", _wide(p, p.images), -99, 1 << 20),
    "max_pool": lambda p: p.call("qc.max_pool2d", p.images, [3, 2], [2, 1], [1, 1, 0, 1], [1, 2]),
    "max_pool_of_signed": lambda p: p.call("qc.max_pool2d", _signed(p, p.images), [3, 3], [1, 2], [1, 2, 1, 0], [1, 1]),
    "max_pool_of_words": lambda p: p.call("qc.max_pool2d", _words(p, p.images), [3, 2], [2, 1], [1, 1, 0, 1], [2, 1]),
    "max_pool_of_three_dimensions": lambda p: p.call("qc.max_pool2d", p.rows, [1, 4], [1, 3], [0, 0, 2, 1], [1, 1]),
    "max_pool_padded_by_a_window": lambda p: p.call("qc.max_pool2d", p.images, [2, 2], [1, 1], [2, 2, 2, 2], [1, 1]),
    "sum_pool": lambda p: p.call("qc.sum_pool2d", p.images, [3, 2], [2, 1], [1, 1, 0, 1], 7),
    "sum_pool_of_words": lambda p: p.call("qc.sum_pool2d", _words(p, p.images), [2, 2], [2, 2], [0, 0, 0, 0], -50),
    "adaptive_sum_pool": lambda p: p.call("qc.adaptive_sum_pool2d", p.images, [4, 3], 7),
    "global_sum_pool": lambda p: p.call("qc.adaptive_sum_pool2d", p.images, [1, 1], 7),
    "adaptive_max_pool": lambda p: p.call("qc.adaptive_max_pool2d", _words(p, p.images), [4, 5]),
    "global_max_pool": lambda p: p.call("qc.adaptive_max_pool2d", p.images, [1, 1]),
    "sum": lambda p: p.call("qc.sum", _words(p, p.images), [1, -1], False, 12),
    "sum_keeps": lambda p: p.call("qc.sum", p.images, [2], True, 0),
    "dilate": lambda p: p.call("qc.dilate", p.images, [2, 3], 9),
    "dilate_one_way": lambda p: p.call("qc.dilate", _words(p, p.images), [1, 2], -700),
    **{f"softmax_{form}": lambda p, f=form: _softmax(p, p.rows, f) for form in arithmetic.SOFTMAX_FORMS},
    **{f"softmax_{form}_masked": lambda p, f=form: _softmax(p, p.rows, f, 8, _mask(p)) for form in arithmetic.SOFTMAX_FORMS},
    **{f"softmax_{form}_12_bits": lambda p, f=form: _softmax(p, _signed(p, p.rows), f, 12) for form in arithmetic.SOFTMAX_FORMS},
    "softmax_words": lambda p: _softmax(p, _words(p, p.rows), "poly", 16, None, 0.0005),
    "softmax_constant_mask": lambda p: _softmax(p, p.rows, "shift", 8, p.integers("m", 0, 1, (5, 33), torch.bool)),
    **{
        f"normalize_{form}_{'centred' if centre else 'rms'}_{width}": lambda p, f=form, c=centre, w=width: p.call(
            "qc.normalize", (_words(p, p.rows) if w == "words" else p.rows), 5, 1000, c, f
        )
        for form in arithmetic.NORMALIZE_FORMS
        for centre in (True, False)
        for width in ("words", "bytes")
    },
    **{
        f"nonlinear_{function}_{form}": lambda p, g=function, f=form: _nonlinear(p, p.rows, g, f)
        for function in FUNCTIONS
        for form in ("shift", "poly", "shift-gelu", "i-gelu", "i-exp")
        if arithmetic.has_form(function, form)
    },
    "nonlinear_words": lambda p: _nonlinear(p, _words(p, p.rows), "silu", "poly", 0.001, 40000),
    "linear_of_groups": _grouped,
    "hadamard": lambda p: p.call("qc.hadamard", p.call("aten.slice:Tensor", p.rows, 2, 0, 32, 1), 16, 7),
    "hadamard_words": lambda p: p.call("qc.hadamard", p.call("aten.slice:Tensor", _words(p, p.rows), 2, 0, 24, 1), 24, -700),
    "divide": lambda p: p.call(
        "qc.divide", p.call("qc.sum", p.rows, [1], False, 7), p.call("qc.sum", p.call("qc.clamp", p.rows, 1, 255), [1], False, 0), 8
    ),
    "divide_rows": lambda p: p.call(
        "qc.divide", p.call("qc.sum", p.images, [3], False, 7), p.call("qc.sum", p.call("qc.clamp", p.rows, 1, 255), [1, 2], True, 0), 6
    ),
    "view": lambda p: p.call("aten.view", p.rows, [-1, 165]),
    "reshape": lambda p: p.call("aten.reshape", _words(p, p.rows), [-1, 11, 3, 5]),
    "flatten": lambda p: p.call("aten.flatten:using_ints", p.images, 1, 2),
    "unflatten": lambda p: p.call("aten.unflatten:int", p.rows, 2, [3, 11]),
    "permute": lambda p: p.call("aten.permute", _words(p, p.images), [0, -1, 1, 2]),
    "transpose": lambda p: p.call("aten.transpose:int", p.rows, -1, 1),
    "slice": lambda p: p.call("aten.slice:Tensor", _words(p, p.rows), -1, -9, 30, 2),
    "slice_to_the_end": lambda p: p.call("aten.slice:Tensor", p.rows, 2, 4),
    "select": lambda p: p.call("aten.select:int", p.images, 1, -2),
    "cat": lambda p: p.call("aten.cat", [p.rows, p.call("qc.clamp", p.rows, 3, 9)], -1),
    "pad": lambda p: p.call("aten.constant_pad_nd", p.images, [1, -2, 3, 0], 9),
    "pad_words": lambda p: p.call("aten.constant_pad_nd", _words(p, p.images), [1, 2], -9000),
    "pad_mask": lambda p: p.call("aten.constant_pad_nd", _mask(p), [1, 2], 1),
    "expand": lambda p: p.call("aten.expand", _mask(p), [-1, 5, 33]),
    "squeeze": lambda p: p.call("aten.squeeze:dims", p.call("aten.slice:Tensor", p.rows, 1, 0, 1, 1), [1, 2]),
    "unsqueeze": lambda p: p.call("aten.unsqueeze", p.rows, -1),
    "clone": lambda p: p.call("aten.clone", p.rows),
    "flip": lambda p: p.call("aten.flip", _words(p, p.images), [1, -1]),
    "argmax": lambda p: p.call("aten.argmax", p.rows, -1),
    "argmax_of_words_keeps": lambda p: p.call("aten.argmax", _words(p, p.images), 1, True),
    **{f"compare_{name}": lambda p, n=name: p.call(f"aten.{n}:Scalar", p.images, 100) for name in ("eq", "ne", "gt", "ge", "lt", "le")},
    "compare_words": lambda p: p.call("aten.lt:Scalar", _words(p, p.rows), -300),
    "mask_not": lambda p: p.call("aten.logical_not", _mask(p)),
    "mask_and": lambda p: p.call("aten.logical_and", p.call("aten.ne:Scalar", p.rows, 3), _mask(p)),
    "mask_both": lambda p: p.call("aten.bitwise_and:Tensor", p.call("aten.ne:Scalar", p.rows, 3), _mask(p)),
    "mask_or": lambda p: p.call("aten.bitwise_or:Tensor", p.call("aten.ge:Scalar", p.rows, 200), _mask(p)),
    "cast_of_mask": lambda p: p.call("aten.to:dtype", _mask(p), torch.int32),
    "cast_to_mask": lambda p: p.call("aten.to:dtype", p.images, torch.bool),
    "cast_of_words": lambda p: p.call("aten.to:dtype", _words(p, p.rows), torch.int32),
}


@pytest.fixture(scope="module")
def every_op(integer_program: Any) -> Any:
    """One program with a result of each case."""
    p = integer_program()
    p.images, p.rows = p.input(None, 20, 9, 11), p.input(None, 5, 33)
    return p.finish(*(case(p) for case in CASES.values()))


@pytest.mark.parametrize("opset", [13, 21])
def test_equals_reference(opset: int, every_op: Any, differing: Any) -> None:
    batches = (1, 3, 17) if opset == 21 else (2,)
    assert not differing(every_op, list(CASES), batches, opset=opset)


def test_every_op_of_the_stage_has_a_writer_and_a_case(every_op: Any) -> None:
    sizes = {"aten.sym_size.int"}  # read from the shapes of the inputs
    assert set(integer.WRITERS) == set(target_names(Stage.INTEGER)) - sizes
    tested = {target_text(node.target) for node in every_op.graph.nodes if node.op == "call_function"}
    assert tested == set(integer.WRITERS)


def test_a_border_that_the_dtype_does_not_hold_is_declined(integer_program: Any) -> None:
    p = integer_program()
    program = p.finish(p.convolution(p.input(None, 4, 5, 5), 2, (3, 3), padding=(1, 1, 1, 1), pad_value=-1)[0])
    with pytest.raises(UnsupportedOpError, match=r"'convolution'.*pads torch.uint8 with -1, which that dtype does not hold"):
        make_model(program, "integer")


def test_sizes_that_are_known_when_called(integer_program: Any, differing: Any) -> None:
    """Reshapes with two open sizes, slices and expansions by a size, a size that is one more than its symbol."""
    length = DynamicSize("sequence", 2, 40)
    p = integer_program()
    x, y = p.input(None, length, 12), p.input(None, DynamicSize("sequence", 2, 40, 1), 12)
    size = p.call("aten.sym_size:int", x, 1)
    positions = p.integers("positions", 0, 255, (40, 12), torch.uint8)
    cases = {
        "heads": p.call("aten.permute", p.call("aten.unflatten:int", x, 2, [3, 4]), [0, 2, 1, 3]),
        "merged": p.call("aten.reshape", p.call("aten.unsqueeze", x, 1), [p.call("aten.sym_size:int", x, 0), 1, size, 3, 4]),
        "rows": p.call("aten.slice:Tensor", positions, 0, 0, size),
        "expanded": p.call("aten.expand", p.call("aten.unsqueeze", p.call("aten.slice:Tensor", x, 1, 0, 1), 1), [-1, size, -1, 12]),
        "scores": p.call("qc.matmul", x, p.call("aten.transpose:int", y, 1, 2), 7, 7),
        "joined": p.call("aten.slice:Tensor", p.call("aten.cat", [y, x], 1), 1, 0, size),
        "one_longer": p.call("aten.slice:Tensor", y, 1, 0, size),
        "summed": p.call("qc.sum", x, [1], False, 7),
        "flat": p.call("qc.sum", p.call("aten.flatten:using_ints", y, 1, 2), [1], True, 0),
    }
    program = p.finish(*(node for name, node in cases.items() if name != "rows"), p.call("qc.add", x, cases["rows"], *_plain(p)))
    assert not differing(program, [name for name in cases if name != "rows"] + ["rows"], (1, 5), (2, 3, 40))


def _plain(p: Any) -> list[Any]:
    return [p.integers("l", 3, 3), p.multiplier(), p.integers("l", 5, 5), p.multiplier(), 9, 0, 0, 0, 0, 255, 8, False]
