"""Quantizers with unequal steps: ``qc.encode`` and ``qc.decode`` become ``qc.bucketize`` and a table of int16.

A boundary b of the reals is the least integer q with ``scale (q - zero_point) >= b``, so that counting the integer boundaries up to q gives
the code that the real value has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import fx

from qcompiler import arithmetic
from qcompiler.ir.types import INT16, INT32, QuantizedType, probability_type
from qcompiler.passes.lower.lowering import Coded, IntegerValue, Lowering, LoweringFunction, Unrounded, Value, unsupported

_aten, _qc = torch.ops.aten, torch.ops.qc

_TABLE_ENTRIES = 256
_PROBABILITY_BITS = 16


def encode(lowering: Lowering, node: fx.Node) -> Value:
    """Codes of the integers that stand for the value, or of its rounding to 16 bits where it waits for one."""
    boundaries = node.args[1]
    assert isinstance(boundaries, list | tuple)  # the op's schema
    numbers = [float(boundary) for boundary in boundaries]  # type: ignore[arg-type]  # floats

    def decoding(levels: Sequence[float]) -> IntegerValue:
        x = _fine(lowering, node, numbers, levels)
        bits = max(len(numbers).bit_length(), 1)
        limits = lowering.constant(f"{node.name}_boundaries", _integer_boundaries(numbers, x))
        codes = lowering.call(_qc.bucketize.default, x.node, limits, bits, name=f"{node.name}_codes")
        quantized = _level_type(node, levels)
        table = torch.zeros(_TABLE_ENTRIES, dtype=torch.int16)
        table[: len(levels)] = torch.tensor([round(level / quantized.scale[0]) for level in levels], dtype=torch.int16)
        constant = lowering.constant(f"{node.name}_levels", table)
        return lowering.rounded(lowering.call(_qc.lookup.default, codes, constant, 16, True, name=f"{node.name}_integers"), quantized)

    return Coded(decoding)


def decode(lowering: Lowering, node: fx.Node) -> Value:
    """What the codes mean."""
    value = lowering.values.get(node.args[0])  # type: ignore[arg-type]  # the op's tensor
    if not isinstance(value, Coded):
        raise unsupported(node, "it decodes what qc.encode did not give", "insert both together")
    return value.decoding([float(level) for level in node.args[1]])  # type: ignore[arg-type,union-attr]  # the op's schema


LOWERINGS: dict[object, LoweringFunction] = {_qc.encode.default: encode, _qc.decode.default: decode}


def _fine(lowering: Lowering, node: fx.Node, boundaries: Sequence[float], levels: Sequence[float]) -> IntegerValue:
    """Integers with one scale that tell the boundaries apart."""
    source = node.args[0]
    assert isinstance(source, fx.Node)  # the op's tensor
    value = lowering.values.get(source)
    if not isinstance(value, Unrounded):
        found = lowering.integers(source)
        if found.scale.numel() == 1:
            return found
        value = lowering.round_accumulator(found)
    quantized = probability_type(_PROBABILITY_BITS) if source.target is _aten.softmax.int else _finest_type((*boundaries, *levels))
    return lowering.rounded(value.round(quantized), quantized)


def _integer_boundaries(boundaries: Sequence[float], x: IntegerValue) -> torch.Tensor:
    """int32; a boundary beyond int32 is reached by no integer."""
    scale = float(x.scale)
    integers = [math.ceil(boundary / scale) + x.zero_point for boundary in boundaries]
    return torch.tensor([min(max(integer, INT32.low), INT32.high) for integer in integers], dtype=torch.int32)


def _level_type(node: fx.Node, levels: Sequence[float]) -> QuantizedType:
    """The type noted at the decoding, which holds the levels exactly; else the finest of 16 bits."""
    for user in node.users:
        noted = user.meta.get("quantized")
        if isinstance(noted, QuantizedType) and noted.integer == INT16:
            return noted
    return _finest_type(levels)


def _finest_type(numbers: Sequence[float]) -> QuantizedType:
    """Of 16 bits that reach all of them."""
    return QuantizedType(INT16, *arithmetic.scale_and_zero_point(min(numbers), max(numbers), INT16, symmetric=True))
