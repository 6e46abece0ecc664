"""Quantized ops. Those that compute on integers are what they stand for: dequantize, the float op, quantize, with the same parameters.

    QLinearMatMul(a, b)  =  QuantizeLinear(MatMul(DequantizeLinear(a), DequantizeLinear(b)))

So QOperator models go the way of QDQ models, and lowering makes one integer op of each. What gives bare int32 sums (``MatMulInteger``,
``ConvInteger``) has scale 1 and is converted to int32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from qcompiler.capture.onnx.call import Call
from qcompiler.capture.onnx.minifloats import MINIFLOATS, rounded
from qcompiler.capture.onnx.model import ElementType
from qcompiler.capture.onnx.quantized import (
    Quantization,
    apply,
    dequantize,
    dequantized,
    fitted,
    integer_of,
    integer_type,
    parameters_known,
    quantization,
    quantized,
    saturated,
    spread,
    stored,
)
from qcompiler.capture.onnx.registry import converter
from qcompiler.capture.onnx.simplify import OWN_DOMAIN
from qcompiler.ir.types import INT8, INT32, UINT8, IntegerType

_MICROSOFT = "com.microsoft"
# The ops that QLinear* and *Integer stand for, in the form that they have since then.
_OPSET = 13

# ---- QDQ ---------------------------------------------------------------------------------------------------------------------------


@converter("QuantizeLinear", since=10)
@converter("QuantizeLinear", domain=_MICROSOFT)
def quantize_linear(call: Call) -> Tensor:
    kind = MINIFLOATS.get(_stated_type(call, 2))
    if kind is not None:
        return rounded(call.tensor(0).to(torch.float32) / _scale_of_floats(call), kind, call.flag("saturate", True))
    integer = _result_type(call, 2)
    x = call.tensor(0)
    x = x if x.dtype is torch.float32 else x.to(torch.float32)
    return quantized(call, x, integer, 1, 2, call.integer("axis", 1), call.integer("block_size", 0))


@converter("DequantizeLinear", since=10, folds=False)
@converter("DequantizeLinear", domain=_MICROSOFT, folds=False)
def dequantize_linear(call: Call) -> Tensor:
    """Of constants too: weights stay integers in the program. Floats of 8 and 4 bits are no integers: their reals are floats."""
    if call.element_type(0) in MINIFLOATS:
        reals: Tensor = call.tensor(0).to(torch.float32) * _scale_of_floats(call)
        return reals
    return dequantized(call, 0, 1, 2, call.integer("axis", 1), call.integer("block_size", 0))


@converter("DequantizeLinear", domain=OWN_DOMAIN)
def dequantize_weight(call: Call) -> Tensor:
    """Where nothing else is quantized: the real numbers (``simplify``)."""
    if call.element_type(0) in MINIFLOATS:
        return call.tensor(0).to(torch.float32) * _scale_of_floats(call)
    value, axis, block = call.constant(0), call.integer("axis", 1), call.integer("block_size", 0)
    kind = fitted(value, quantization(call, integer_type(call, 0), 1, 2, value.ndim, axis, block))
    centred = value.to(torch.int64) - spread(call, value, kind, kind.zero_point)
    return centred.to(torch.float32) * spread(call, value, kind, kind.scale)


@converter("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    return dynamically_quantized(call)


def dynamically_quantized(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 values, scale and zero point for the range of the first operand, widened to contain 0."""
    x = call.tensor(0)
    if any(isinstance(size, torch.SymInt) for size in x.shape[:1]):
        raise call.fail(
            "has one scale for all samples of a batch, known with the input alone: quantize the float model (or dynamic_batch=False)"
        )
    low, high = torch.clamp(torch.amin(x), max=0.0), torch.clamp(torch.amax(x), min=0.0)
    scale = (high - low) / float(UINT8.high)
    zero_point = torch.round(torch.clamp(-low / scale, 0.0, float(UINT8.high)))
    return saturated(torch.round(x / scale) + zero_point, UINT8), scale, zero_point.to(torch.uint8)


def _result_type(call: Call, zero_point: int) -> IntegerType:
    """Integers of a result: those of its zero point, or as the attribute says, or uint8."""
    if call.has(zero_point):
        return integer_type(call, zero_point)
    stated = call.integer("output_dtype", 0)
    return integer_of(call, stated) if stated else UINT8


def _stated_type(call: Call, zero_point: int) -> ElementType:
    """The element type of a result, 0 where the node does not state it."""
    return (call.element_type(zero_point) or 0) if call.has(zero_point) else call.integer("output_dtype", 0)


def _scale_of_floats(call: Call) -> Tensor:
    """The scale of each element, to broadcast; floats have no zero point."""
    with _disable_current_modes():
        if call.has(2) and bool(call.constant(2).to(torch.float32).any()):
            raise call.fail("has a zero point that is not 0, which floats do not have")
    value = call.tensor(0)
    kind = quantization(call, INT8, 1, 2, value.ndim, call.integer("axis", 1), call.integer("block_size", 0))
    return spread(call, value, kind, kind.scale)


# ---- products ----------------------------------------------------------------------------------------------------------------------


@converter("QLinearConv", since=10)
def quantized_convolution(call: Call) -> Tensor:
    """Operands: x and weight with scale and zero point each, those of the result, an int32 bias at the scale of the accumulator."""
    x, weight = dequantized(call, 0, 1, 2), dequantized(call, 3, 4, 5, axis=0)
    bias = _accumulator_bias(call, 8, _kind(call, 0, 1, 2), _kind(call, 3, 4, 5, axis=0)) if call.has(8) else None
    return quantized(call, apply(call, "Conv", [x, weight, bias], _OPSET), _result_type(call, 7), 6, 7)


@converter("QLinearMatMul", since=10)
def quantized_matrix_product(call: Call) -> Tensor:
    """The second factor may have a scale for each column, the first has one."""
    a, b = dequantized(call, 0, 1, 2, axis=-2), dequantized(call, 3, 4, 5, axis=-1)
    return quantized(call, torch.matmul(a, b), _result_type(call, 7), 6, 7)


@converter("QGemm", domain=_MICROSOFT)
def quantized_gemm(call: Call) -> Tensor:
    """alpha (A' B' + C), with C in int32 at the scale of the product; floats where the result has no scale."""
    rows = 0 if call.flag("transB") else 1
    a, b = dequantized(call, 0, 1, 2), dequantized(call, 3, 4, 5, axis=rows)
    product = torch.matmul(a.t() if call.flag("transA") else a, b.t() if rows == 0 else b)
    if call.has(6):
        product = product + _accumulator_bias(call, 6, _kind(call, 0, 1, 2), _kind(call, 3, 4, 5, axis=rows))
    alpha = call.real("alpha", 1.0)
    product = product if alpha == 1.0 else product * alpha
    return quantized(call, product, _result_type(call, 8), 7, 8) if call.has(7) else product


@converter("ConvInteger", since=10)
def integer_convolution(call: Call) -> Tensor:
    x, weight = _centred(call, 0, 2), _centred(call, 1, 3, axis=0)
    return apply(call, "Conv", [x, weight], _OPSET).to(torch.int32)


@converter("MatMulInteger", since=10)
def integer_matrix_product(call: Call) -> Tensor:
    return torch.matmul(_centred(call, 0, 2, axis=-2), _centred(call, 1, 3, axis=-1)).to(torch.int32)


@converter("MatMulIntegerToFloat", domain=_MICROSOFT)
def integer_matrix_product_to_float(call: Call) -> Tensor:
    """Operands: A, B, their scales, their zero points, a float bias."""
    product = torch.matmul(dequantized(call, 0, 2, 4, axis=-2), dequantized(call, 1, 3, 5, axis=-1))
    return product + call.tensor(6) if call.has(6) else product


@converter("MatMulNBits", domain=_MICROSOFT)
def matrix_product_of_few_bits(call: Call) -> Tensor:
    """Operands: A, the rows of B packed in blocks along K, their scales, zero points, group index, bias. B becomes a float weight."""
    if call.has(4):
        raise call.fail("orders its columns by a group index: quantize without")
    with _disable_current_modes():
        weight = _unpacked_rows(call)
    product: Tensor = F.linear(call.tensor(0), weight, call.optional(5))
    return product


def _unpacked_rows(call: Call) -> Tensor:
    """(q - z) s, [N, K]: ``bits`` bits of each byte from the lowest up; z is 2^(bits - 1) where it is not given."""
    rows, columns, bits, block = (call.integer(name) for name in ("N", "K", "bits", "block_size"))
    if bits not in (2, 4, 8) or block < 1 or rows < 1 or columns < 1:
        raise call.fail(f"has {bits} bits in blocks of {block}: 2, 4 and 8 bits are read")
    blocks = -(-columns // block)
    codes = _unpacked(call.constant(1), bits).reshape(rows, blocks, block)
    scales = call.constant(2).to(torch.float32).reshape(rows, blocks, 1)
    zeros: Tensor | float = 2.0 ** (bits - 1)
    if call.has(3):
        given = call.constant(3)
        packed = given if given.is_floating_point() else _unpacked(given.reshape(rows, -1), bits)
        zeros = packed.reshape(rows, -1)[:, :blocks].to(torch.float32).reshape(rows, blocks, 1)
    return ((codes - zeros) * scales).reshape(rows, -1)[:, :columns].contiguous()


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """The numbers in bytes, as floats; the last dimension grows."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    numbers: Tensor = torch.bitwise_and(packed.unsqueeze(-1) >> shifts, 2**bits - 1)
    return numbers.reshape(*packed.shape[:-1], -1).to(torch.float32)


@converter("DynamicQuantizeMatMul", domain=_MICROSOFT)
def dynamically_quantized_matrix_product(call: Call) -> Tensor:
    """Operands: A in floats, B, its scale and zero point, a float bias."""
    integers, scale, zero_point = dynamically_quantized(call)
    a = (integers.to(torch.float32) - zero_point.to(torch.float32)) * scale
    product = torch.matmul(a, dequantized(call, 1, 2, 3, axis=-1))
    return product + call.tensor(4) if call.has(4) else product


def _kind(call: Call, x: int, scale: int, zero_point: int, axis: int = 1) -> Quantization:
    if not parameters_known(call, scale, zero_point):
        raise call.fail(f"computes the scale of input {x}, at which its bias is quantized: only constant ones are read")
    value = call.value(x)
    assert isinstance(value, Tensor)  # it was dequantized before
    return quantization(call, integer_type(call, x), scale, zero_point, value.ndim, axis)


def _accumulator_bias(call: Call, position: int, a: Quantization, b: Quantization) -> Tensor:
    """An int32 bias at the scale s_a s_b, for each channel where b has as many."""
    bias = stored(call, position)
    with _disable_current_modes():
        scale = (a.scale.double() * b.scale.double()).to(torch.float32)
        zeros = torch.zeros(scale.shape, dtype=torch.int64)
    return dequantize(call, bias, Quantization(INT32, scale, zeros, None if scale.ndim == 0 else bias.ndim - 1))


def _centred(call: Call, position: int, zero_point: int, axis: int = 1) -> Tensor:
    """Integers less their zero point, as reals of scale 1."""
    integers, integer = stored(call, position), integer_type(call, position)
    if not parameters_known(call, zero_point):
        zeros = call.tensor(zero_point).to(torch.float32)
        shape = [-1 if dim == axis % integers.ndim else 1 for dim in range(integers.ndim)] if zeros.numel() > 1 else []
        return integers.to(torch.float32) - zeros.reshape(shape)
    with _disable_current_modes():
        zeros = call.constant(zero_point).to(torch.int64).reshape(-1) if call.has(zero_point) else torch.zeros(1, dtype=torch.int64)
        channels = zeros.numel() > 1
        zeros = zeros if channels else zeros.reshape(())
        kind = Quantization(integer, torch.ones(zeros.shape), zeros, axis % integers.ndim if channels else None)
    return dequantize(call, integers, kind)


# ---- onnxruntime's ops on integers --------------------------------------------------------------------------------------------------


@converter("QLinearAdd", domain=_MICROSOFT)
def quantized_sum(call: Call) -> Tensor:
    return quantized(call, dequantized(call, 0, 1, 2) + dequantized(call, 3, 4, 5), integer_type(call, 0), 6, 7)


@converter("QLinearMul", domain=_MICROSOFT)
def quantized_product(call: Call) -> Tensor:
    return quantized(call, dequantized(call, 0, 1, 2) * dequantized(call, 3, 4, 5), integer_type(call, 0), 6, 7)


@converter("QLinearWhere", domain=_MICROSOFT)
def quantized_choice(call: Call) -> Tensor:
    chosen = torch.where(call.tensor(0), dequantized(call, 1, 2, 3), dequantized(call, 4, 5, 6))
    return quantized(call, chosen, integer_type(call, 1), 7, 8)


@converter("QLinearConcat", domain=_MICROSOFT)
def quantized_concatenation(call: Call) -> Tensor:
    """Operands: scale and zero point of the result, then each value with its own."""
    values = [dequantized(call, position, position + 1, position + 2) for position in range(2, len(call), 3)]
    return quantized(call, torch.cat(values, call.integer("axis")), integer_type(call, 2), 0, 1)


@converter("QLinearSigmoid", domain=_MICROSOFT)
def quantized_sigmoid(call: Call) -> Tensor:
    return _of_one(call, torch.sigmoid(dequantized(call, 0, 1, 2)))


@converter("QLinearLeakyRelu", domain=_MICROSOFT)
def quantized_leaky_relu(call: Call) -> Tensor:
    return _of_one(call, F.leaky_relu(dequantized(call, 0, 1, 2), call.real("alpha", 0.01)))


@converter("QLinearSoftmax", domain=_MICROSOFT)
def quantized_softmax(call: Call) -> Tensor:
    """The attribute ``opset`` says which Softmax it stands for."""
    return _of_one(call, apply(call, "Softmax", [dequantized(call, 0, 1, 2)], call.integer("opset", _OPSET)))


@converter("QLinearGlobalAveragePool", domain=_MICROSOFT)
def quantized_global_average_pool(call: Call) -> Tensor:
    x = _channels_first(call)
    return _of_one(call, torch.mean(x, list(range(2, x.ndim)), keepdim=True))


@converter("QLinearAveragePool", domain=_MICROSOFT)
def quantized_average_pool(call: Call) -> Tensor:
    return _of_one(call, apply(call, "AveragePool", [_channels_first(call)], _OPSET))


def _channels_first(call: Call) -> Tensor:
    if call.flag("channels_last"):
        raise call.fail("has its channels last: only models with channels in dimension 1 are read")
    return dequantized(call, 0, 1, 2)


def _of_one(call: Call, result: Tensor) -> Tensor:
    """Quantized by the parameters of a node with one value: operands 3 and 4."""
    return quantized(call, result, integer_type(call, 0), 3, 4)
