"""Float islands: the ops that the user left in float, and the conversions around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.backends.tvm.kernels import (
    FloatFunction,
    IslandDequantize,
    IslandQuantize,
)
from qcompiler.backends.tvm.operations.elementwise import call_elementwise
from qcompiler.backends.tvm.operations.handler import Handler
from qcompiler.ir.edit import argument
from qcompiler.ir.types import IntegerType

if TYPE_CHECKING:
    from qcompiler.backends.tvm.planner import Planner

_aten, _qc = torch.ops.aten, torch.ops.qc


_FLOAT_FUNCTIONS = (
    *(
        getattr(_aten, name).default
        for name in ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "exp2", "expm1")
    ),
    *(getattr(_aten, name).default for name in ("log", "log2", "log10", "log1p", "erf", "sqrt", "rsqrt", "reciprocal", "abs", "neg")),
    *(getattr(_aten, name).default for name in ("floor", "ceil", "maximum", "minimum")),
    *(getattr(_aten, name).Tensor for name in ("add", "sub", "mul", "div")),
    *(getattr(_aten, name).Scalar for name in ("add", "sub", "mul", "div")),
    _aten.pow.Tensor_Scalar,
)


def _island_quantize(planner: Planner, node: fx.Node) -> None:
    scale, zero_point, kind = _island_type(planner, node)
    reciprocal = torch.tensor(scale, dtype=torch.float32).reciprocal().item()
    call_elementwise(planner, node, IslandQuantize(reciprocal, zero_point, kind.low, kind.high), ("x",))


def _island_dequantize(planner: Planner, node: fx.Node) -> None:
    scale, zero_point, _ = _island_type(planner, node)
    call_elementwise(planner, node, IslandDequantize(torch.tensor(scale, dtype=torch.float32).item(), zero_point), ("x",))


def _island_type(planner: Planner, node: fx.Node) -> tuple[float, int, IntegerType]:
    scale, zero_point = argument(node, "scale"), argument(node, "zero_point")
    if len(scale) != 1:
        planner.decline(node, "an island in float has one scale for a whole tensor")
    return scale[0], zero_point[0], IntegerType(argument(node, "bits"), argument(node, "signed"))


def _float_function(planner: Planner, node: fx.Node) -> None:
    """Operands are computed values, but for one number as the second."""
    names = [each.name for each in node.target._schema.arguments]  # type: ignore[union-attr]  # a registered op
    values = [argument(node, name) for name in names]
    tensors = [name for name, value in zip(names, values, strict=True) if isinstance(value, fx.Node)]
    numbers = [float(value) for value in values[len(tensors) : 2] if isinstance(value, int | float)]
    if any(name == "alpha" and value != 1 for name, value in zip(names, values, strict=True)):
        planner.decline(node, "there is no float kernel for a sum with a factor")
    function = str(node.target).split(".")[1].removesuffix("_")
    call_elementwise(planner, node, FloatFunction(function, numbers[0] if numbers else None), tensors)


HANDLERS: Mapping[object, Handler] = {
    **dict.fromkeys(_FLOAT_FUNCTIONS, _float_function),
    _qc.quantize.default: _island_quantize,
    _qc.dequantize.default: _island_dequantize,
}
