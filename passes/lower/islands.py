"""Ops that the user lets stay in float: ``qc.dequantize -> op -> qc.quantize``, in the INTEGER graph itself."""

from __future__ import annotations

import torch
from torch import fx
from torch.fx.node import map_arg

from qcompiler.ir.types import QuantizedType
from qcompiler.passes.lower.lowering import IntegerValue, Lowering, Real, unsupported

_qc = torch.ops.qc


def island(lowering: Lowering, node: fx.Node) -> Real:
    """The op on the reals that the integers stand for. What it reads must be computed, or a number: not a float constant."""

    def real(operand: fx.Node) -> fx.Node:
        value = lowering.values.get(operand)
        if isinstance(value, Real):
            return value.node
        if not operand.meta["val"].is_floating_point():
            return operand
        if operand.op == "get_attr":
            raise unsupported(node, f"it reads the float constant '{operand.name}'", "islands read computed values and numbers only")
        return _dequantize(lowering, lowering.integers(operand))

    args, kwargs = map_arg(node.args, real), map_arg(node.kwargs, real)
    new = lowering.insert(node.target, args, kwargs, name=f"{node.name}_float")  # type: ignore[arg-type]  # an op overload
    lowering.islands.append(new.name)
    return Real(new)


def quantize(lowering: Lowering, value: Real, quantized: QuantizedType) -> IntegerValue:
    """Back to integers."""
    new = lowering.insert(_qc.quantize.default, (value.node, *quantized.arguments), {}, name=f"{value.node.name}_quantized")
    lowering.bounds_of(new)
    return lowering.rounded(new, quantized)


def _dequantize(lowering: Lowering, value: IntegerValue) -> fx.Node:
    return lowering.insert(_qc.dequantize.default, (value.node, *value.quantized.arguments), {}, name=f"{value.node.name}_float")
