"""Constants that are integers: ``qc.dequantize`` of a tensor of the program, as models that were quantized elsewhere have them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import IntegerType, QuantizedType

_qc = torch.ops.qc


@dataclass(frozen=True, eq=False)
class QuantizedConstant:
    """``real = scale * (integers - zero_point)``; ``node`` is the dequantize."""

    node: fx.Node
    integers: torch.Tensor
    quantized: QuantizedType

    @property
    def centred(self) -> torch.Tensor:
        """``integers - zero_point``, int64."""
        shape = [1] * self.integers.ndim
        if self.quantized.axis is not None:
            shape[self.quantized.axis] = -1
        zero_points = torch.tensor(self.quantized.zero_point, dtype=torch.int64)
        if self.quantized.axis is not None:
            zero_points = zero_points.expand(len(self.quantized.scale))
        return self.integers.to(torch.int64) - zero_points.reshape(shape)

    @property
    def reals(self) -> torch.Tensor:
        """What the integers stand for, as ``qc.dequantize`` computes it."""
        reals: torch.Tensor = _qc.dequantize(self.integers, *self.node.args[1:])
        return reals


def quantized_type(node: fx.Node) -> QuantizedType:
    """The type that a ``qc.quantize`` or ``qc.dequantize`` states."""
    scale, zero_point, axis, bits, signed = node.args[1:]
    integer = IntegerType(bits, signed)  # type: ignore[arg-type]  # the op's schema
    return QuantizedType(integer, tuple(scale), tuple(zero_point), None if axis < 0 else axis)  # type: ignore[arg-type,operator]  # as above


def parameters(quantized: QuantizedType) -> tuple[list[float], list[int], int, int, bool]:
    """The type as ``qc.quantize`` and ``qc.dequantize`` take it after the tensor."""
    axis = -1 if quantized.axis is None else quantized.axis
    return list(quantized.scale), list(quantized.zero_point), axis, quantized.integer.bits, quantized.integer.signed


def quantized_constant(node: object) -> QuantizedConstant | None:
    """The constant behind a ``qc.dequantize``; None for anything else."""
    if not isinstance(node, fx.Node) or not edit.is_call(node, _qc.dequantize.default):
        return None
    integers = edit.constant_value(node.args[0])
    return None if integers is None else QuantizedConstant(node, integers, quantized_type(node))
