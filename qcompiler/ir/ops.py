"""The ``qc::`` ops: schema, shape function and exact reference kernel of each, registered with torch.library.

Kernels only call ``qcompiler.arithmetic``, where every formula stands. Importing this module registers the ops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from qcompiler import arithmetic
from qcompiler.ir.types import IntegerType, QuantizedType

LIBRARY = torch.library.Library("qc", "DEF")

SCHEMAS: dict[str, str] = {
    "quantize": "(Tensor x, float[] scale, int[] zero_point, int axis, int bits, bool signed) -> Tensor",
    "dequantize": "(Tensor x, float[] scale, int[] zero_point, int axis, int bits, bool signed) -> Tensor",
    "encode": "(Tensor x, float[] boundaries) -> Tensor",
    "decode": "(Tensor codes, float[] levels) -> Tensor",
    "convolution": (
        "(Tensor x, Tensor weight, Tensor bias, int[] stride, int[] padding, int[] dilation, int groups, int pad_value) -> Tensor"
    ),
    "linear": "(Tensor x, Tensor weight, Tensor bias) -> Tensor",
    "scale_groups": "(Tensor codes, Tensor factors, int length) -> Tensor",
    "matmul": "(Tensor a, Tensor b, int zero_point_a, int zero_point_b) -> Tensor",
    "requantize": (
        "(Tensor x, Tensor pre_shift, Tensor multiplier, Tensor shift, int input_zero_point, int zero_point,"
        " int low, int high, str form, int bits, bool signed) -> Tensor"
    ),
    "add": (
        "(Tensor a, Tensor b, Tensor pre_shift_a, Tensor multiplier_a, Tensor pre_shift_b, Tensor multiplier_b, int shift,"
        " int zero_point_a, int zero_point_b, int zero_point, int low, int high, int bits, bool signed) -> Tensor"
    ),
    "multiply": "(Tensor a, Tensor b, int zero_point_a, int zero_point_b) -> Tensor",
    "lookup": "(Tensor x, Tensor table, int bits, bool signed) -> Tensor",
    "bucketize": "(Tensor x, Tensor boundaries, int bits) -> Tensor",
    "embedding": "(Tensor weight, Tensor ids) -> Tensor",
    "nonlinear": "(Tensor x, int zero_point, str function, str form, int[] constants) -> Tensor",
    "softmax": "(Tensor x, Tensor? table, Tensor? mask, str form, int[] constants, int bits, str rounding='nearest') -> Tensor",
    "normalize": "(Tensor x, int zero_point, int epsilon, bool centre, str form) -> Tensor",
    "hadamard": "(Tensor x, int block, int zero_point=0) -> Tensor",
    "divide": "(Tensor x, Tensor divisor, int fraction_bits) -> Tensor",
    "clamp": "(Tensor x, int low, int high) -> Tensor",
    "max_pool2d": "(Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation) -> Tensor",
    "sum_pool2d": "(Tensor x, int[] kernel, int[] stride, int[] padding, int zero_point) -> Tensor",
    "adaptive_sum_pool2d": "(Tensor x, int[] output_size, int zero_point) -> Tensor",
    "adaptive_max_pool2d": "(Tensor x, int[] output_size) -> Tensor",
    "sum": "(Tensor x, int[] dim, bool keepdim, int zero_point) -> Tensor",
    "dilate": "(Tensor x, int[] factor, int value) -> Tensor",
}

Size = int | torch.SymInt

_MOST_BOUNDARIES = 255
_BLOCK = 1 << 18  # elements: 2 MiB of int64


def _storage(bits: int, signed: bool) -> torch.dtype:
    return IntegerType(bits, signed).dtype


def _quantize(x: Tensor, scale: list[float], zero_point: list[int], axis: int, bits: int, signed: bool) -> Tensor:
    return arithmetic.quantize(x, QuantizedType.from_arguments(scale, zero_point, axis, bits, signed))


def _quantize_fake(x: Tensor, scale: list[float], zero_point: list[int], axis: int, bits: int, signed: bool) -> Tensor:
    return x.new_empty(x.shape, dtype=_storage(bits, signed))


def _dequantize(x: Tensor, scale: list[float], zero_point: list[int], axis: int, bits: int, signed: bool) -> Tensor:
    return arithmetic.dequantize(x, QuantizedType.from_arguments(scale, zero_point, axis, bits, signed))


def _dequantize_fake(x: Tensor, scale: list[float], zero_point: list[int], axis: int, bits: int, signed: bool) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


def _convolution_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    pad_value: int,
) -> Tensor:
    torch._check(x.shape[1] == weight.shape[1] * groups, lambda: "the weight does not fit the channels and groups of the input")
    return x.new_empty((x.shape[0], weight.shape[0], *_windows(x, weight.shape[2:], stride, padding, dilation)), dtype=torch.int32)


def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    torch._check(x.shape[-1] == weight.shape[1], lambda: "the weight does not fit the last dimension of the input")
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=torch.int32)


def _scale_groups_fake(codes: Tensor, factors: Tensor, length: int) -> Tensor:
    torch._check(length > 0, lambda: "groups have at least one input")
    torch._check(
        tuple(factors.shape) == (codes.shape[0], -(-codes.shape[1] // max(length, 1))),
        lambda: "there must be one factor for each output channel and group of inputs",
    )
    return codes.new_empty(codes.shape)


def _matmul_fake(a: Tensor, b: Tensor, zero_point_a: int, zero_point_b: int) -> Tensor:
    torch._check(a.shape[-1] == b.shape[-2], lambda: "the inner dimensions of the product differ")
    return a.new_empty((*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), dtype=torch.int32)


def _requantize(
    x: Tensor,
    pre_shift: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    input_zero_point: int,
    zero_point: int,
    low: int,
    high: int,
    form: str,
    bits: int,
    signed: bool,
) -> Tensor:
    def block(a: Tensor) -> Tensor:
        y = arithmetic.REQUANTIZE[form](arithmetic.centre(a, input_zero_point), pre_shift, multiplier, shift)
        return arithmetic.saturate(y, zero_point, low, high, _storage(bits, signed))

    return _in_blocks(block, (x,), max(p.dim() for p in (pre_shift, multiplier, shift)))


def _requantize_fake(
    x: Tensor,
    pre_shift: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    input_zero_point: int,
    zero_point: int,
    low: int,
    high: int,
    form: str,
    bits: int,
    signed: bool,
) -> Tensor:
    torch._check(form in arithmetic.REQUANTIZE, lambda: f"unknown form of requantization '{form}'")
    return x.new_empty(x.shape, dtype=_storage(bits, signed))


def _add(
    a: Tensor,
    b: Tensor,
    pre_shift_a: Tensor,
    multiplier_a: Tensor,
    pre_shift_b: Tensor,
    multiplier_b: Tensor,
    shift: int,
    zero_point_a: int,
    zero_point_b: int,
    zero_point: int,
    low: int,
    high: int,
    bits: int,
    signed: bool,
) -> Tensor:
    def block(a: Tensor, b: Tensor) -> Tensor:
        a, b = arithmetic.centre(a, zero_point_a), arithmetic.centre(b, zero_point_b)
        y = arithmetic.residual_add(a, b, pre_shift_a, multiplier_a, pre_shift_b, multiplier_b, shift)
        return arithmetic.saturate(y, zero_point, low, high, _storage(bits, signed))

    return _in_blocks(block, (a, b), max(p.dim() for p in (pre_shift_a, multiplier_a, pre_shift_b, multiplier_b)))


def _add_fake(
    a: Tensor,
    b: Tensor,
    pre_shift_a: Tensor,
    multiplier_a: Tensor,
    pre_shift_b: Tensor,
    multiplier_b: Tensor,
    shift: int,
    zero_point_a: int,
    zero_point_b: int,
    zero_point: int,
    low: int,
    high: int,
    bits: int,
    signed: bool,
) -> Tensor:
    return a.new_empty(torch.broadcast_shapes(a.shape, b.shape), dtype=_storage(bits, signed))


def _multiply_fake(a: Tensor, b: Tensor, zero_point_a: int, zero_point_b: int) -> Tensor:
    return a.new_empty(torch.broadcast_shapes(a.shape, b.shape), dtype=torch.int32)


def _lookup(x: Tensor, table: Tensor, bits: int, signed: bool) -> Tensor:
    return arithmetic.lookup(x, table).to(_storage(bits, signed))


def _lookup_fake(x: Tensor, table: Tensor, bits: int, signed: bool) -> Tensor:
    return x.new_empty(x.shape, dtype=_storage(bits, signed))


def _bucketize(x: Tensor, boundaries: Tensor, bits: int) -> Tensor:
    return arithmetic.bucketize(x, boundaries).to(_storage(bits, signed=False))


def _bucketize_fake(x: Tensor, boundaries: Tensor, bits: int) -> Tensor:
    torch._check(boundaries.dim() == 1, lambda: "boundaries are one sorted list")
    return x.new_empty(x.shape, dtype=_storage(bits, signed=False))


def _encode_fake(x: Tensor, boundaries: list[float]) -> Tensor:
    torch._check(len(boundaries) <= _MOST_BOUNDARIES, lambda: f"{len(boundaries)} boundaries, but 8-bit codes have {_MOST_BOUNDARIES}")
    return x.new_empty(x.shape, dtype=torch.uint8)


def _decode_fake(codes: Tensor, levels: list[float]) -> Tensor:
    return codes.new_empty(codes.shape, dtype=torch.float32)


def _embedding_fake(weight: Tensor, ids: Tensor) -> Tensor:
    torch._check(weight.dim() == 2, lambda: "the table of an embedding has rows and columns")
    return weight.new_empty((*ids.shape, weight.shape[1]))


def _nonlinear_fake(x: Tensor, zero_point: int, function: str, form: str, constants: list[int]) -> Tensor:
    torch._check(arithmetic.has_form(function, form), lambda: f"unknown form '{form}' of {function}")
    return x.new_empty(x.shape, dtype=torch.int32)


def _softmax_fake(
    x: Tensor, table: Tensor | None, mask: Tensor | None, form: str, constants: list[int], bits: int, rounding: str = "nearest"
) -> Tensor:
    torch._check(form in arithmetic.SOFTMAX_FORMS, lambda: f"unknown form of softmax '{form}'")
    if mask is not None:
        torch._check(mask.dim() <= x.dim(), lambda: "the mask has more dimensions than what it masks")
        mask.expand(x.shape)  # raises where it does not broadcast
    return x.new_empty(x.shape, dtype=torch.uint8 if bits <= 8 else torch.int32)


def _normalize_fake(x: Tensor, zero_point: int, epsilon: int, centre: bool, form: str) -> Tensor:
    torch._check(form in arithmetic.NORMALIZE_FORMS, lambda: f"unknown form of normalization '{form}'")
    return x.new_empty(x.shape, dtype=torch.int32)


def _hadamard_fake(x: Tensor, block: int, zero_point: int = 0) -> Tensor:
    torch._check(arithmetic.is_order(block), lambda: f"no Hadamard matrix of order {block} is known")
    torch._check(x.shape[-1] % block == 0, lambda: f"blocks of {block} do not fit {x.shape[-1]} channels")
    return x.new_empty(x.shape, dtype=x.dtype if x.is_floating_point() else torch.int32)


def _divide_fake(x: Tensor, divisor: Tensor, fraction_bits: int) -> Tensor:
    return x.new_empty(torch.broadcast_shapes(x.shape, divisor.shape), dtype=torch.int32)


def _clamp_fake(x: Tensor, low: int, high: int) -> Tensor:
    return x.new_empty(x.shape)


def _max_pool2d_fake(x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    return x.new_empty((*x.shape[:-2], *_windows(x, kernel, stride, padding, dilation)))


def _sum_pool2d_fake(x: Tensor, kernel: list[int], stride: list[int], padding: list[int], zero_point: int) -> Tensor:
    return x.new_empty((*x.shape[:-2], *_windows(x, kernel, stride, padding, (1, 1))), dtype=torch.int32)


def _adaptive_sum_pool2d_fake(x: Tensor, output_size: list[int], zero_point: int) -> Tensor:
    return x.new_empty((*x.shape[:-2], *output_size), dtype=torch.int32)


def _adaptive_max_pool2d_fake(x: Tensor, output_size: list[int]) -> Tensor:
    return x.new_empty((*x.shape[:-2], *output_size))


def _sum_fake(x: Tensor, dim: list[int], keepdim: bool, zero_point: int) -> Tensor:
    reduced = {d % x.dim() for d in dim} or set(range(x.dim()))
    kept = [1 if d in reduced else size for d, size in enumerate(x.shape) if keepdim or d not in reduced]
    return x.new_empty(kept, dtype=torch.int32)


def _dilate_fake(x: Tensor, factor: list[int], value: int) -> Tensor:
    return x.new_empty((*x.shape[:-2], *((n - 1) * f + 1 for n, f in zip(x.shape[-2:], factor, strict=True))))


def _in_blocks(kernel: Callable[..., Tensor], operands: tuple[Tensor, ...], parameter_dims: int) -> Tensor:
    """Apply an elementwise kernel to a few samples at a time, so that its int64 intermediates stay in the cache."""
    leading = operands[0]
    same_batch = all(x.dim() == leading.dim() and x.shape[0] == leading.shape[0] for x in operands) if leading.dim() else False
    if not same_batch or parameter_dims >= leading.dim() or leading.numel() <= _BLOCK:
        return kernel(*operands)
    samples = max(1, _BLOCK * leading.shape[0] // leading.numel())
    return torch.cat([kernel(*block) for block in zip(*(x.split(samples) for x in operands), strict=True)])


def _windows(
    x: Tensor, kernel: Sequence[Size], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[Size, Size]:
    """How many windows fit the padded height and width."""
    height, width = (
        (x.shape[i - 2] + padding[2 * i] + padding[2 * i + 1] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    return height, width


# Name: (reference kernel, shape function). Both give contiguous tensors, so that a view after them means the same at both.
_KERNELS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "quantize": (_quantize, _quantize_fake),
    "dequantize": (_dequantize, _dequantize_fake),
    "convolution": (arithmetic.convolution, _convolution_fake),
    "linear": (arithmetic.linear, _linear_fake),
    "scale_groups": (arithmetic.scale_groups, _scale_groups_fake),
    "encode": (arithmetic.encode, _encode_fake),
    "decode": (arithmetic.decode, _decode_fake),
    "matmul": (arithmetic.matmul, _matmul_fake),
    "requantize": (_requantize, _requantize_fake),
    "add": (_add, _add_fake),
    "multiply": (arithmetic.multiply, _multiply_fake),
    "lookup": (_lookup, _lookup_fake),
    "bucketize": (_bucketize, _bucketize_fake),
    "embedding": (arithmetic.embedding, _embedding_fake),
    "nonlinear": (arithmetic.nonlinear, _nonlinear_fake),
    "softmax": (arithmetic.softmax, _softmax_fake),
    "normalize": (arithmetic.normalize, _normalize_fake),
    "hadamard": (arithmetic.hadamard, _hadamard_fake),
    "divide": (arithmetic.divide, _divide_fake),
    "clamp": (arithmetic.clamp, _clamp_fake),
    "max_pool2d": (arithmetic.max_pool2d, _max_pool2d_fake),
    "sum_pool2d": (arithmetic.sum_pool2d, _sum_pool2d_fake),
    "adaptive_sum_pool2d": (arithmetic.adaptive_sum_pool2d, _adaptive_sum_pool2d_fake),
    "adaptive_max_pool2d": (arithmetic.adaptive_max_pool2d, _adaptive_max_pool2d_fake),
    "sum": (arithmetic.reduce_sum, _sum_fake),
    "dilate": (arithmetic.dilate, _dilate_fake),
}


def _contiguous(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(kernel)
    def contiguous_kernel(*arguments: Any) -> Tensor:
        return kernel(*arguments).contiguous()

    return contiguous_kernel


def _register() -> None:
    for name, schema in SCHEMAS.items():
        kernel, shape_function = _KERNELS[name]
        LIBRARY.define(name + schema)
        LIBRARY.impl(name, _contiguous(kernel), "CPU")
        torch.library.register_fake(f"qc::{name}", shape_function, lib=LIBRARY)


_register()
