"""Constants of a convolution in the layout that its kernel reads. Runs at load time too: numpy only.

What is known before run time is folded in here: rounding terms and the correction for signed inputs go into the bias; channels that
do not exist and the padding of runs get zero weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.tvm.kernels import ConvolutionKernel, Requantization, ResidualAdd
from qcompiler.backends.tvm.templates.depthwise_layout import DepthwiseLayout, depthwise_layout
from qcompiler.backends.tvm.templates.layout import OPERAND_LANES, Chunk, Parameter, epilogue_parameters, is_depthwise
from qcompiler.backends.tvm.templates.matrix_layout import MatrixLayout, is_packed, matrix_layout, panel_vectors
from qcompiler.backends.tvm.templates.winograd_layout import (
    WINOGRAD_FILTER,
    WINOGRAD_MULTIPLIED_VECTORS,
    WinogradLayout,
    uses_winograd,
    winograd_layout,
)

Array = NDArray[np.generic]
Integers = NDArray[np.int64]
_SIGN_OFFSET = 128  # between int8 and uint8
_WORD_BITS = 15  # vpmulhrsw multiplies by y / 2^15


def pack(kernel: ConvolutionKernel, target: str, constants: Mapping[str, Array]) -> tuple[Array, ...]:
    """Weights, bias, parameters of the epilogue and table, in the order of the kernel's arguments.

    ``constants``: by the roles that ``kernels`` lists. Raises TargetError for a target without templates.
    """
    weight = np.asarray(constants["weight"], np.int8)
    chunks, weights = _weights(kernel, target, weight)
    factors = [_factors(kernel, target, chunks, constants["factors"])] if kernel.weight_group else []
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
    if uses_winograd(kernel, target):
        winograd = winograd_layout(kernel)
        chunks = tuple(replace(winograd.chunk, first=first, offset=first) for first in range(0, winograd.outputs, winograd.chunk.channels))
        return chunks, _winograd_weights(winograd, weight, _lanes(chunks, "accumulator"))
    matrix = matrix_layout(kernel, target)
    vectors = panel_vectors(kernel, matrix)
    chunks = tuple(_chunks(matrix, vectors))
    return chunks, _matrix_weights(matrix, vectors, weight, _lanes(chunks, "accumulator"))


def _input_offset(kernel: ConvolutionKernel, target: str) -> int:
    """What the kernel adds to its inputs: vpdpbusd wants unsigned ones, Winograd's transform and AVX2 with weights of few bits signed
    ones. Else AVX2 and AMX take both."""
    is_signed = kernel.input.dtype == "int8"
    if uses_winograd(kernel, target):
        return 0 if is_signed else -_SIGN_OFFSET
    if target == "x86-64-v3" and is_packed(kernel):
        return 0 if is_signed else -_SIGN_OFFSET
    takes_both = target == "x86-64-v3" or (target == "x86-64-amx" and not is_depthwise(kernel) and not is_packed(kernel))
    return _SIGN_OFFSET if is_signed and not takes_both else 0


# Weights


def _chunks(layout: MatrixLayout, vectors: int) -> Iterator[Chunk]:
    """The chunks of all panels of all groups, with absolute channels and offsets."""
    for group, first, channels in _panels(layout, vectors):
        for chunk in layout.panel(channels):
            channel, offset = group * layout.outputs + first, group * layout.vectors * layout.instructions.lanes + first
            yield replace(chunk, first=channel + chunk.first, offset=offset + chunk.offset)


def _panels(layout: MatrixLayout, vectors: int) -> Iterator[tuple[int, int, int]]:
    """Group, first channel in it and number of channels of each panel."""
    size = vectors * layout.instructions.lanes
    for group in range(layout.groups):
        for first in range(0, layout.outputs, size):
            yield group, first, min(size, layout.outputs - first)


def _lanes(chunks: tuple[Chunk, ...], order: str) -> Integers:
    """Channel of each entry of a packed array; -1 where there is none."""
    parts = []
    for chunk in chunks:
        relative = chunk.word_order if order == "word" else chunk.accumulator_order
        parts.append(np.where(relative < chunk.valid, chunk.first + relative, -1))
    return np.concatenate(parts)


def _matrix_weights(layout: MatrixLayout, vectors: int, weight: NDArray[np.int8], channels: Integers) -> Array:
    """[panel][kernel row][run][step][vector][lane][4]; AVX2 splits the four into even and odd, AMX gathers steps to tiles of 16 rows.

    Where inputs have 16 bits, 2 of them in place of 4. Weights of fewer bits: [steps whose weights share memory] in place of step, and
    the vectors of their dot products, the first one lowest, in one.
    """
    dense = _runs(layout, weight)
    rows = np.concatenate([dense, np.zeros((1, dense.shape[1]), np.int8)])[channels]
    lanes, together = layout.instructions.lanes, min(layout.instructions.granule, 4)
    by_vector = rows.reshape(-1, lanes, layout.depth // together, together)
    parts = []
    for group, first, count in _panels(layout, vectors):
        start = group * layout.vectors + first // lanes
        ordered = _instruction_order(layout, by_vector[start : start + -(-count // lanes)])
        parts.append((ordered if layout.planes == 1 else _joined_planes(layout, ordered)).reshape(-1))
    return np.ascontiguousarray(np.concatenate(parts).astype(layout.weights.dtype))


def _instruction_order(layout: MatrixLayout, panel: NDArray[np.int8]) -> NDArray[np.int8]:
    vectors, lanes, steps, together = panel.shape
    if layout.instructions.products == 2:
        return panel.reshape(vectors, lanes, steps, 2, 2).transpose(2, 0, 4, 1, 3)
    if layout.instructions.name == "x86-64-amx":
        return panel.reshape(vectors, lanes, steps // 16, 16, 4).transpose(2, 0, 3, 1, 4)
    return panel.transpose(2, 0, 1, 3)


def _joined_planes(layout: MatrixLayout, ordered: NDArray[np.int8]) -> Array:
    """[step][vector][...] to [steps together][vector][...]: dot product p of a round in bits ``p * stored_bits`` and up.

    The offset of a weight is its highest bit: adding it turns that over.
    """
    vectors, products, planes = ordered.shape[1], layout.instructions.products, layout.planes
    rounds = ordered.reshape(-1, layout.steps_together, vectors, products, ordered[0, 0].size // products)
    by_plane = rounds.transpose(0, 2, 1, 3, 4).reshape(len(rounds), vectors, planes, -1)
    unsigned = (by_plane.astype(np.uint16) & ((1 << layout.stored_bits) - 1)) ^ layout.weight_offset
    places = np.arange(planes, dtype=np.uint16)[:, None] * layout.stored_bits
    joined: Array = np.bitwise_or.reduce(unsigned << places, axis=2).astype(f"uint{layout.instructions.weight_bits}")
    return joined.view(layout.weights.dtype)


def _expanded(kernel: ConvolutionKernel, factors: Array) -> Integers:
    """The factor of each input of a linear layer, [O, I, 1, 1]."""
    repeated = np.repeat(np.asarray(factors, np.int64), kernel.weight_group, axis=1)
    return repeated[:, : kernel.input.channels, None, None]


def _factors(kernel: ConvolutionKernel, target: str, chunks: tuple[Chunk, ...], factors: Array) -> Array:
    """[panel][group of inputs][vector][lane]; those of channels that do not exist are 0."""
    layout = matrix_layout(kernel, target)
    padded = np.concatenate([np.asarray(factors, np.int8), np.zeros((1, layout.weight_groups), np.int8)])
    by_lane = padded[_lanes(chunks, "accumulator")].reshape(-1, layout.instructions.lanes, layout.weight_groups)
    vectors = panel_vectors(kernel, layout)
    parts = [by_lane[first : first + vectors].transpose(2, 0, 1).reshape(-1) for first in range(0, len(by_lane), vectors)]
    return np.ascontiguousarray(np.concatenate(parts))


def _runs(layout: MatrixLayout, weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """[output channel, inner dimension with padding], groups merged."""
    outputs, inputs, height, width = weight.shape
    merged = layout.inputs // inputs
    dense = np.zeros((layout.groups, merged, layout.outputs // merged, height, width, merged, inputs), np.int8)
    by_group = weight.reshape(layout.groups, merged, -1, inputs, height, width).transpose(0, 1, 2, 4, 5, 3)
    for member in range(merged):
        dense[:, member, :, :, :, member] = by_group[:, member]
    runs = dense.reshape(outputs, height * layout.runs, layout.run_length)
    padding = layout.steps * layout.granule - layout.run_length
    return np.pad(runs, ((0, 0), (0, 0), (0, padding))).reshape(outputs, layout.depth)


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
    parts = [spread[_lanes((chunk,), "accumulator")].transpose(1, 2, 3, 0, 4).reshape(-1) for chunk in layout.chunks]
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
        return np.concatenate([_even_then_odd(padded[_lanes((chunk,), "accumulator")], chunk.lanes) for chunk in chunks])
    return padded[_lanes(chunks, "word" if parameter.dtype == "int16" else "accumulator")].astype(parameter.dtype)


def _even_then_odd(values: Integers, lanes: int) -> Integers:
    return values.reshape(-1, lanes // 2, 2).transpose(0, 2, 1).reshape(-1)
