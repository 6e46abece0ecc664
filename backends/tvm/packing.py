"""Constants of a convolution in the layout that its kernel reads. Runs at load time too: numpy only.

What is known before run time is folded in here: rounding terms and the correction for signed inputs go into the bias; channels that
do not exist and the padding of runs get zero weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.tvm.kernels import ConvolutionKernel, Requantization, ResidualAdd
from qcompiler.backends.tvm.packing_matrix import Array, Integers, channel_order, group_factors, matrix_weights, panel_chunks
from qcompiler.backends.tvm.packing_planes import plane_weights
from qcompiler.backends.tvm.templates.depthwise_layout import DepthwiseLayout, depthwise_layout
from qcompiler.backends.tvm.templates.layout import OPERAND_LANES, Chunk, Parameter, epilogue_parameters, is_depthwise
from qcompiler.backends.tvm.templates.matrix_layout import is_packed, matrix_layout, panel_vectors
from qcompiler.backends.tvm.templates.planes_layout import planes_layout
from qcompiler.backends.tvm.templates.winograd_layout import (
    WINOGRAD_FILTER,
    WINOGRAD_MULTIPLIED_VECTORS,
    WinogradLayout,
    uses_winograd,
    winograd_layout,
)

_SIGN_OFFSET = 128  # between int8 and uint8
_WORD_BITS = 15  # vpmulhrsw multiplies by y / 2^15


def pack(kernel: ConvolutionKernel, target: str, constants: Mapping[str, Array]) -> tuple[Array, ...]:
    """Weights, bias, parameters of the epilogue and table, in the order of the kernel's arguments.

    ``constants``: by the roles that ``kernels`` lists. Raises TargetError for a target without templates.
    """
    weight = np.asarray(constants["weight"], np.int8)
    chunks, weights = _weights(kernel, target, weight)
    factors = [group_factors(kernel, target, chunks, constants["factors"])] if kernel.weight_group else []
    products = weight.astype(np.int64) * _expanded(kernel, constants["factors"]) if kernel.weight_group else weight
    values = _values(kernel, products, constants, _input_offset(kernel, target))
    channels = chunks[-1].offset + chunks[-1].channels
    return (
        weights,
        *factors,
        *(_arrange(parameter, values[parameter.name], chunks) for parameter in epilogue_parameters(kernel, channels)),
    )


def _weights(kernel: ConvolutionKernel, target: str, weight: NDArray[np.int8]) -> tuple[tuple[Chunk, ...], Array]:
    if is_depthwise(kernel):
        depthwise = depthwise_layout(kernel, target)
        return depthwise.chunks, _depthwise_weights(depthwise, weight)
    if kernel.bit_planes is not None:
        planes = planes_layout(kernel, target)
        vectors = panel_vectors(kernel, planes.matrix)
        chunks = tuple(panel_chunks(planes.matrix, vectors))
        return chunks, plane_weights(planes, vectors, weight, channel_order(chunks, "accumulator"))
    if uses_winograd(kernel, target):
        winograd = winograd_layout(kernel)
        chunks = tuple(replace(winograd.chunk, first=first, offset=first) for first in range(0, winograd.outputs, winograd.chunk.channels))
        return chunks, _winograd_weights(winograd, weight, channel_order(chunks, "accumulator"))
    matrix = matrix_layout(kernel, target)
    vectors = panel_vectors(kernel, matrix)
    chunks = tuple(panel_chunks(matrix, vectors))
    return chunks, matrix_weights(matrix, vectors, weight, channel_order(chunks, "accumulator"))


def _input_offset(kernel: ConvolutionKernel, target: str) -> int:
    """What the kernel adds to its inputs: vpdpbusd wants unsigned ones, Winograd's transform and AVX2 with weights of few bits signed
    ones, planes of bits have numbers from 0. Else AVX2 and AMX take both."""
    is_signed = kernel.input.dtype == "int8"
    if kernel.bit_planes is not None:
        return -kernel.bit_planes.input_low
    if uses_winograd(kernel, target):
        return 0 if is_signed else -_SIGN_OFFSET
    if target == "x86-64-v3" and is_packed(kernel):
        return 0 if is_signed else -_SIGN_OFFSET
    takes_both = target == "x86-64-v3" or (target == "x86-64-amx" and not is_depthwise(kernel) and not is_packed(kernel))
    return _SIGN_OFFSET if is_signed and not takes_both else 0


# Weights


def _expanded(kernel: ConvolutionKernel, factors: Array) -> Integers:
    """The factor of each input of a linear layer, [O, I, 1, 1]."""
    repeated = np.repeat(np.asarray(factors, np.int64), kernel.weight_group, axis=1)
    return repeated[:, : kernel.input.channels, None, None]


def _depthwise_weights(layout: DepthwiseLayout, weight: NDArray[np.int8]) -> Array:
    """[chunk][dot product][kernel column][output row][vector][lane][taps]."""
    height, width = layout.kernel
    channels, taps = weight.shape[0], layout.instructions.depthwise_taps
    spread = np.zeros((channels + 1, len(layout.slots), width, layout.rows, taps), np.int8)
    for product, input_rows in enumerate(layout.slots):
        for tap, input_row in enumerate(input_rows):
            for row in range(layout.rows):
                kernel_row = layout.kernel_row(row, input_row)
                if kernel_row is not None:
                    spread[:channels, product, :, row, tap] = weight[:, 0, kernel_row]
    parts = [spread[channel_order((chunk,), "accumulator")].transpose(1, 2, 3, 0, 4).reshape(-1) for chunk in layout.chunks]
    return np.ascontiguousarray(np.concatenate(parts).astype(layout.weights.dtype))


def _winograd_weights(layout: WinogradLayout, weight: NDArray[np.int8], channels: Integers) -> Array:
    """``G g G^T`` in integers, [panel][part][point][group of vectors][pair of inputs][vector][lane][2]."""
    left = np.einsum("pk,oikx->oipx", WINOGRAD_FILTER, weight.astype(np.int32), optimize=True)
    points = np.einsum("oipx,qx->pqoi", left, WINOGRAD_FILTER, optimize=True).astype(np.int16)
    chunk, pairs = layout.chunk, layout.inputs // (2 * layout.parts)
    grouped = (chunk.vectors // WINOGRAD_MULTIPLIED_VECTORS, WINOGRAD_MULTIPLIED_VECTORS, chunk.lanes)
    by_lane = points.reshape(-1, *weight.shape[:2])[:, channels].reshape(36, -1, *grouped, layout.parts, pairs, 2)
    return np.ascontiguousarray(by_lane.transpose(1, 5, 0, 2, 6, 3, 4, 7)).reshape(-1)


# Parameters of the epilogue


def _values(kernel: ConvolutionKernel, weight: NDArray[np.int8], constants: Mapping[str, Array], input_offset: int) -> dict[str, Integers]:
    """Every parameter by its name, one value a channel (the operand's: one)."""
    outputs = kernel.output.channels
    bias = np.asarray(constants["bias"], np.int64) - input_offset * weight.reshape(outputs, -1).sum(axis=1, dtype=np.int64)
    values = {"bias": bias}
    if isinstance(kernel.epilogue, ResidualAdd):
        values |= {
            "pre_shift": _per_channel(constants["pre_shift_a"], outputs),
            "multiplier": _per_channel(constants["multiplier_a"], outputs),
            "operand_pre_shift": _per_channel(constants["pre_shift_b"], OPERAND_LANES),
            "operand_multiplier": _per_channel(constants["multiplier_b"], OPERAND_LANES // 2),
        }
    elif kernel.epilogue is not None:
        values |= _requantization(
            kernel.epilogue, *(_per_channel(constants[role], outputs) for role in ("pre_shift", "multiplier", "shift"))
        )
        values["bias"] = bias + values.pop("bias_rounding")
    if kernel.table:
        values["table"] = _table(kernel, constants["table"])
    return values


def _per_channel(values: Array, count: int) -> Integers:
    return np.broadcast_to(np.asarray(values, np.int64).reshape(-1), (count,))


def _requantization(spec: Requantization, pre_shift: Integers, multiplier: Integers, shift: Integers) -> dict[str, Integers]:
    rounds_first = spec.form == "narrow"
    return {
        "pre_shift": pre_shift,
        "multiplier": multiplier,
        "shift": shift,
        "rounding": _half(shift),
        "rescale": _word_factor(shift),
        "bias_rounding": _half(pre_shift) if rounds_first else np.zeros_like(pre_shift),
    }


def _word_factor(shift: Integers) -> Integers:
    """``2^(15 - s)``, by which vpmulhrsw is the rounding shift by s; 0 for the larger shifts, which leave nothing of 16 bits.

    A shift of 0 would want 2^15, which is no int16. 2^15 - 1 gives t for |t| < 2^14; beyond it is off by one, which the clamp to
    8 bits hides.
    """
    factor = 1 << np.maximum(_WORD_BITS - shift, 0)
    return np.where(shift > _WORD_BITS, 0, np.minimum(factor, (1 << _WORD_BITS) - 1))


def _half(shift: Integers) -> Integers:
    """``2^(shift - 1)``, the rounding term of a shift; none for a shift of 0."""
    return np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)


def _table(kernel: ConvolutionKernel, table: Array) -> Integers:
    """Indexed by the byte as an unsigned number; that of a table starts at the smallest value of the output's type."""
    return np.roll(np.asarray(table, np.int64).reshape(-1), 128 if kernel.output.dtype == "int8" else 0)


def _arrange(parameter: Parameter, values: Integers, chunks: tuple[Chunk, ...]) -> Array:
    """Channels in the order of the lanes that use them; wraps to the parameter's type."""
    if parameter.name in ("table", "operand_pre_shift", "operand_multiplier"):
        return values.astype(parameter.dtype)
    padded = np.append(values, 0)
    if parameter.dtype == "int64":
        return np.concatenate([_even_then_odd(padded[channel_order((chunk,), "accumulator")], chunk.lanes) for chunk in chunks])
    return padded[channel_order(chunks, "word" if parameter.dtype == "int16" else "accumulator")].astype(parameter.dtype)


def _even_then_odd(values: Integers, lanes: int) -> Integers:
    return values.reshape(-1, lanes // 2, 2).transpose(0, 2, 1).reshape(-1)
