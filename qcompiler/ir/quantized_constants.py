"""Constants that are integers: ``qc.dequantize`` of a tensor of the program, as models that were quantized elsewhere have them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import QuantizedType

_qc = torch.ops.qc

_PARAMETERS = ("scale", "zero_point", "axis", "bits", "signed")


@dataclass(frozen=True, eq=False)
class DequantizedConstant:
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


def integer_constant(node: object) -> torch.Tensor | None:
    """A constant, or what ``qc.scale_groups`` makes of constants; None for anything else."""
    if not isinstance(node, fx.Node) or not edit.is_call(node, _qc.scale_groups.default):
        return edit.constant_value(node)
    codes, factors = (edit.constant_value(edit.argument(node, name)) for name in ("codes", "factors"))
    if codes is None or factors is None:
        return None
    scaled: torch.Tensor = _qc.scale_groups(codes, factors, edit.argument(node, "length"))
    return scaled


def quantized_type(node: fx.Node) -> QuantizedType:
    """The type that a ``qc.quantize`` or ``qc.dequantize`` states."""
    return QuantizedType.from_arguments(*(edit.argument(node, name) for name in _PARAMETERS))


def dequantized_constant(node: object) -> DequantizedConstant | None:
    """The constant behind a ``qc.dequantize``; None for anything else."""
    if not isinstance(node, fx.Node) or not edit.is_call(node, _qc.dequantize.default):
        return None
    integers = integer_constant(node.args[0])
    return None if integers is None else DequantizedConstant(node, integers, quantized_type(node))
