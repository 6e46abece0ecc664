"""Affine quantization as ONNX writes it, on the ops ``qc.quantize`` and ``qc.dequantize``.

    y = saturate(rint(x / scale) + zero_point)        rint rounds half to even
    x = (y - zero_point) * scale

The parameters are per tensor, per channel (one for each index of an axis) or per block (one for each ``block_size`` neighbours along an
axis). Where they are constants, ``Quantization`` holds them and the program is at stage QDQ. ``qc.quantize`` multiplies by the float32
reciprocal of the scale where ONNX divides: quotients within a rounding of float32 of a tie may fall on its other side.

Parameters per block, and parameters that the model computes (``DynamicQuantizeLinear``), become float arithmetic, for which no stage after
FLOAT has an integer form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from onnx import TensorProto
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.capture.onnx import registry
from qcompiler.capture.onnx.call import Call, Value
from qcompiler.capture.onnx.model import ElementType
from qcompiler.ir.types import IntegerType, QuantizedType

_qc = torch.ops.qc

_INTEGERS: Mapping[ElementType, IntegerType] = {
    TensorProto.INT2: IntegerType(2, signed=True),
    TensorProto.UINT2: IntegerType(2, signed=False),
    TensorProto.INT4: IntegerType(4, signed=True),
    TensorProto.UINT4: IntegerType(4, signed=False),
    TensorProto.INT8: IntegerType(8, signed=True),
    TensorProto.UINT8: IntegerType(8, signed=False),
    TensorProto.INT16: IntegerType(16, signed=True),
    TensorProto.UINT16: IntegerType(16, signed=False),
    TensorProto.INT32: IntegerType(32, signed=True),
}
_OF_DTYPES: Mapping[torch.dtype, IntegerType] = {
    torch.int8: _INTEGERS[TensorProto.INT8],
    torch.uint8: _INTEGERS[TensorProto.UINT8],
    torch.int16: _INTEGERS[TensorProto.INT16],
    torch.uint16: _INTEGERS[TensorProto.UINT16],
    torch.int32: _INTEGERS[TensorProto.INT32],
}


def integer_type(call: Call, position: int) -> IntegerType:
    """The integers that an operand holds.

    Raises:
        CaptureError: they are floats of 8 or 4 bits, or integers that no quantized value has.
    """
    known, value = call.element_type(position), call.value(position)
    if known is not None and known != TensorProto.UNDEFINED:
        return integer_of(call, known)
    found = _OF_DTYPES.get(value.dtype) if isinstance(value, Tensor) else None
    if found is None:
        raise call.fail(f"input {position} holds no integers of 2 to 32 bits: other quantized values are not read")
    return found


def integer_of(call: Call, element_type: ElementType) -> IntegerType:
    """The integers of an element type of ONNX; errors as those of ``integer_type``."""
    found = _INTEGERS.get(element_type)
    if found is None:
        name = TensorProto.DataType.Name(element_type).lower()
        raise call.fail(f"quantizes to {name}: integers of 2, 4, 8, 16 and 32 bits are read; quantize to one of these")
    return found


@dataclass(frozen=True)
class Quantization:
    """Constant parameters. ``axis``: of one scale for each channel or block, None for one in all. ``block`` is 0 but for blocks.

    ``scale``: float32, and ``zero_point``, int64: [] or [channels], or for blocks the shape of the value with fewer entries along the axis.
    """

    integer: IntegerType
    scale: Tensor
    zero_point: Tensor
    axis: int | None = None
    block: int = 0

    def arguments(self) -> tuple[list[float], list[int], int, int, bool]:
        """What ``qc.quantize`` and ``qc.dequantize`` take after the tensor."""
        with _disable_current_modes():
            scale, zero_point = tuple(self.scale.reshape(-1).tolist()), tuple(self.zero_point.reshape(-1).tolist())
        return QuantizedType(self.integer, scale, zero_point, self.axis).arguments


def quantization(call: Call, integer: IntegerType, scale: int, zero_point: int, rank: int, axis: int = 1, block: int = 0) -> Quantization:
    """The parameters in the operands ``scale`` and ``zero_point`` of a node, for a value with ``rank`` dimensions.

    Raises:
        CaptureError: a scale is not positive and finite, or the shapes do not fit.
    """
    with _disable_current_modes():
        scales = call.constant(scale).to(torch.float32)
        zeros = call.constant(zero_point).to(torch.int64) if call.has(zero_point) else torch.zeros(scales.shape, dtype=torch.int64)
        # Scales of blocks are arithmetic, and onnxruntime writes negative ones: -8 of 4 bits is the largest magnitude of its block.
        if not bool((torch.isfinite(scales) & ((scales > 0) | (block > 0))).all()):
            raise call.fail("has a scale that is not positive and finite: quantize the model again")
        if scales.numel() == 1 and zeros.numel() == 1:
            return Quantization(integer, scales.reshape(()), zeros.reshape(()))
        if zeros.numel() not in (1, scales.numel()):
            raise call.fail(f"has {scales.numel()} scales and {zeros.numel()} zero points")
        if not -rank <= axis < rank:
            raise call.fail(f"has the axis {axis}, and its input {rank} dimensions")
        if block == 0 and max(scales.shape) == scales.numel():
            scales = scales.reshape(-1)  # NNCF writes [channels, 1, 1]
        zeros = zeros.reshape(-1).expand(scales.numel()).reshape(scales.shape)
    if scales.ndim == 1 and block == 0:
        return Quantization(integer, scales, zeros, axis % rank)
    if scales.ndim != rank or block < 1:
        raise call.fail(f"has scales of shape {list(scales.shape)}: one in all, one for each channel, or block_size and one for each block")
    return Quantization(integer, scales, zeros, axis % rank, block)


def quantize(call: Call, x: Tensor, kind: Quantization) -> Tensor:
    """The integers of reals."""
    _check_channels(call, x, kind)
    if kind.block == 0:
        quantized: Tensor = _qc.quantize(x, *kind.arguments())
        return quantized
    scale, zero_point = (spread(call, x, kind, each) for each in (kind.scale, kind.zero_point))
    return saturated(torch.round(x / scale) + zero_point.to(torch.float32), kind.integer)


def dequantize(call: Call, x: Tensor, kind: Quantization) -> Tensor:
    """The reals of integers."""
    _check_channels(call, x, kind)
    if kind.block == 0:
        reals: Tensor = _qc.dequantize(x, *kind.arguments())
        return reals
    scale, zero_point = (spread(call, x, kind, each) for each in (kind.scale, kind.zero_point))
    return (x.to(torch.float32) - zero_point.to(torch.float32)) * scale


def saturated(x: Tensor, integer: IntegerType) -> Tensor:
    """Whole numbers in floats as integers of the type, the nearest where they exceed it."""
    return torch.clamp(x, float(integer.low), float(integer.high)).to(integer.dtype)


def stored(call: Call, position: int) -> Tensor:
    """An operand of integers, in the dtype that programs hold such integers in: 16 bits without sign take int32."""
    value, integer = call.value(position), integer_type(call, position)
    if not isinstance(value, Tensor) or value.dtype == integer.dtype:
        return call.tensor(position)
    if call.is_constant(position):
        with _disable_current_modes():
            return call.constant(position).to(integer.dtype)
    return call.tensor(position).to(integer.dtype)


def dequantized(call: Call, x: int, scale: int, zero_point: int, axis: int = 1, block: int = 0) -> Tensor:
    """The reals that an operand with constant or computed parameters stands for."""
    integers, integer = stored(call, x), integer_type(call, x)
    if parameters_known(call, scale, zero_point):
        return dequantize(call, integers, fitted(integers, quantization(call, integer, scale, zero_point, integers.ndim, axis, block)))
    scales, zeros = _computed(call, integers, scale, zero_point, axis, block)
    reals = integers.to(torch.float32)
    return (reals if zeros is None else reals - zeros) * scales


def quantized(call: Call, x: Tensor, integer: IntegerType, scale: int, zero_point: int, axis: int = 1, block: int = 0) -> Tensor:
    """The integers of ``x`` with the node's constant or computed parameters."""
    if parameters_known(call, scale, zero_point):
        return quantize(call, x, quantization(call, integer, scale, zero_point, x.ndim, axis, block))
    scales, zeros = _computed(call, x, scale, zero_point, axis, block)
    rounded = torch.round(x / scales)
    return saturated(rounded if zeros is None else rounded + zeros, integer)


def parameters_known(call: Call, *positions: int) -> bool:
    """Whether those of the operands that are given are constants."""
    return all(call.is_constant(position) for position in positions if call.has(position))


def apply(call: Call, op_type: str, operands: Sequence[Tensor | None], opset: int, domain: str = "") -> Tensor:
    """What the converter of a float op makes of other operands, with the attributes of the node at hand."""
    found = registry.find(domain, op_type, opset)
    assert found is not None  # an op of ONNX that this package converts
    values: list[Value] = list(operands)

    def operand(position: int) -> Tensor:
        value = values[position]
        assert isinstance(value, Tensor)  # Call asks for those that are given
        return value

    node = replace(call.node, op_type=op_type, domain=domain)
    result: Tensor = found.convert(Call(node, opset, values, operand))
    return result


def _computed(call: Call, x: Tensor, scale: int, zero_point: int, axis: int, block: int) -> tuple[Tensor, Tensor | None]:
    """Computed parameters, to broadcast against the value."""
    if block:
        raise call.fail("computes the scales of blocks: only constant ones are read")
    found = [call.tensor(scale), call.tensor(zero_point).to(torch.float32) if call.has(zero_point) else None]
    shape = [1] * x.ndim
    if found[0] is not None and found[0].ndim == 1 and x.ndim > 0:
        shape[axis] = -1
    scales, zeros = (
        None if each is None else each if each.ndim == 0 else each.reshape(shape if each.numel() != 1 else ()) for each in found
    )
    assert scales is not None  # it was given
    return scales, zeros


def fitted(x: Tensor, kind: Quantization) -> Quantization:
    """Blocks along the axis that their scales fit: ModelOpt states that of the columns for Gemm's transposed weights, too."""
    if not kind.block or any(not isinstance(size, int) for size in x.shape):
        return kind

    def shape(axis: int) -> list[int]:
        return [math.ceil(size / kind.block) if dim == axis else size for dim, size in enumerate(x.shape)]

    fitting = [axis for axis in range(x.ndim) if shape(axis) == list(kind.scale.shape)]
    return replace(kind, axis=fitting[0]) if len(fitting) == 1 else kind


def _check_channels(call: Call, x: Tensor, kind: Quantization) -> None:
    if kind.axis is None:
        return
    size, count = x.shape[kind.axis], kind.scale.shape[kind.axis if kind.block else 0]
    if not isinstance(size, int):
        raise call.fail(f"has scales along dimension {kind.axis}, whose size is open: quantize per tensor, or along another dimension")
    expected = math.ceil(size / kind.block) if kind.block else size
    if count != expected:
        raise call.fail(f"has {count} scales along dimension {kind.axis} of size {size}: expected {expected}")


def spread(call: Call, x: Tensor, kind: Quantization, parameter: Tensor) -> Tensor:
    """A parameter of a tensor, channels or blocks, to broadcast against the value: a constant."""
    _check_channels(call, x, kind)
    with _disable_current_modes():
        if kind.axis is None:
            return parameter
        if kind.block == 0:
            return parameter.reshape([-1 if dim == kind.axis else 1 for dim in range(x.ndim)])
        return parameter.repeat_interleave(kind.block, kind.axis).narrow(kind.axis, 0, int(x.shape[kind.axis])).contiguous()
