"""What a kernel must compute, as data: the contract between the planner and the templates of each instruction set.

A kernel is specialized to one sample (batch 1). Activations lie in one arena as NHWC with an optional halo whose bytes already
hold the zero point, so that no convolution template has to know about borders. Kernels take raw pointers, in this order:
input, [residual], parameters as ``packing.pack`` gives them, output. Each points to the first element of its whole buffer, halo
included (64-byte aligned unless the map has a pitch, 256 bytes of slack before and after the arena).

``templates.emit`` gives a ``PrimFunc`` whose parameters are buffers or typed handles in that order; ``codegen.build_object`` makes
it a plain C function ``int symbol(void *, ...)``. Local buffers become stack memory; no kernel may ask for workspace.

Sizes may be dynamic (``Extent``): memory is planned for their maximum, so strides and offsets are numbers, and only loops end
earlier. A kernel that holds an Extent anywhere (``is_dynamic``) gets one more, last pointer, ``extents``: int32[1], the value of
the program's one symbol. It computes every element within the extents; of a matrix, which alone lies in memory that nothing else
uses, it may also write rows past them, up to the maximum.

Zero points, shifts, bounds and the like may be left open (``Argument``), so that layers that differ in nothing else are one kernel
(``sharing.share``). A kernel that holds an Argument gets a pointer ``numbers``, int64[count], after all others but ``extents``.

``packing.pack(kernel, target, constants)`` gives the parameter tensors in the kernel's order; they are laid out 64-byte aligned.
``constants`` maps roles to tensors: ``weight`` int8 [O, I / groups, kernel height, kernel width] (of a kernel with ``weight_group`` the
codes), ``bias`` int32 [O]; for
Requantization ``pre_shift``, ``multiplier``, ``shift``, for ResidualAdd ``pre_shift_a``, ``multiplier_a``, ``pre_shift_b``,
``multiplier_b`` (a: the accumulator), int32, [O] where ``per_channel`` says so, else [1] (b is always [1]); ``table`` [256].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Form = Literal["high", "narrow", "exact64"]
Dtype = Literal["int8", "uint8", "int16", "int32"]
ITEM_SIZE = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "int32": 4, "int64": 8, "float32": 4}


@dataclass(frozen=True)
class Extent:
    """A size that is known at run time: the value of the program's one dynamic symbol plus ``offset``, at most ``maximum``.

    ``maximum`` includes the offset already.
    """

    maximum: int
    offset: int = 0


Size = int | Extent


def maximum(size: Size) -> int:
    """The size that memory is planned for."""
    return size.maximum if isinstance(size, Extent) else size


def maxima(shape: Iterable[Size]) -> tuple[int, ...]:
    """``maximum`` of each size."""
    return tuple(maximum(size) for size in shape)


def shifted(size: Size, by: int) -> Size:
    """The size plus a number."""
    return Extent(size.maximum + by, size.offset + by) if isinstance(size, Extent) else size + by


@dataclass(frozen=True)
class Argument:
    """A number that is read when the kernel runs: element ``index`` of what its pointer ``numbers`` points to."""

    index: int


Number = int | Argument


def is_dynamic(kernel: object) -> bool:
    """Whether an Extent occurs anywhere in a kernel's specification, so that its last pointer is ``extents``."""
    if isinstance(kernel, tuple):
        return any(is_dynamic(item) for item in kernel)
    if isinstance(kernel, Extent):
        return True
    return dataclasses.is_dataclass(kernel) and any(is_dynamic(getattr(kernel, field.name)) for field in dataclasses.fields(kernel))


@dataclass(frozen=True)
class Activation:
    """A feature map in the arena: rows of ``left + width + right`` pixels, ``top + height + bottom`` of them.

    ``pitch``: elements from one pixel to the next where the map is some of the channels of a wider one, None where pixels follow each
    other. What lies between its pixels belongs to others and is never written.
    """

    height: int
    width: int
    channels: int
    dtype: Dtype
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, bottom, left, right
    pitch: int | None = None

    @property
    def pixel_stride(self) -> int:
        """Elements from one pixel to the next."""
        return self.channels if self.pitch is None else self.pitch

    @property
    def row_stride(self) -> int:
        return (self.halo[2] + self.width + self.halo[3]) * self.pixel_stride

    @property
    def elements(self) -> int:
        return (self.halo[0] + self.height + self.halo[1]) * self.row_stride

    @property
    def origin(self) -> int:
        """Offset of the first element inside the halo."""
        return self.halo[0] * self.row_stride + self.halo[2] * self.pixel_stride

    def part(self, channels: int) -> Activation:
        """So many of its channels where they lie: from the first one, or from any other if the buffer is taken to start that much later."""
        return dataclasses.replace(self, channels=channels, pitch=None if channels == self.pixel_stride else self.pixel_stride)


@dataclass(frozen=True)
class Requantization:
    """``qc::requantize`` on the int32 accumulator, zero point and clamp included; parameters per channel or per tensor."""

    form: Form
    per_channel: bool
    zero_point: Number
    low: Number
    high: Number


@dataclass(frozen=True)
class ResidualAdd:
    """``qc::add`` of the accumulator (operand a, multipliers per channel or per tensor) and another feature map (operand b, per tensor)."""

    operand: Activation
    per_channel: bool
    operand_zero_point: Number
    shift: Number
    zero_point: Number
    low: Number
    high: Number


@dataclass(frozen=True)
class BitPlanes:
    """Numbers of so few bits that products of their bits are counted: ``w = weight_low + weight_step * v``, ``x = input_low + u``.

    v has ``weights`` bits and u, wherever a window reads it, ``inputs``; both are unsigned.
    """

    weights: int
    weight_low: int
    weight_step: int
    inputs: int
    input_low: int


@dataclass(frozen=True)
class ConvolutionKernel:
    """int32 convolution of one sample, then an epilogue, then optionally a 256-entry table (8 bits to 8 bits).

    Input height and width are those of the real map; the window of output (0, 0) starts ``padding`` (top, left) above and left of
    the origin, inside the halo. ``epilogue`` None stores the int32 accumulators. ``groups`` is 1, ``input.channels`` (depthwise,
    with one or more outputs a channel) or anything between. A linear layer over M rows is a 1x1 convolution of height 1, width M;
    ``rows``: how many of the rows count, where that is known at run time only (at most M). Inputs of a linear layer may have 16 bits
    (zero point 0). ``weight_bits``: 8, or 4 or 2 where the kernel reads weights of so few bits that share bytes
    (``choice.weight_storage`` chooses). Such a linear layer may have weights with factors: partial sums over ``weight_group`` inputs are
    multiplied by an int8 for each output channel, role ``factors``, int8 [O, groups]; 0: without.
    ``bit_planes``: how its weights and inputs are cut into bits, where products of bits are what the kernel counts.
    """

    input: Activation
    output: Activation
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]  # top, left
    dilation: tuple[int, int]
    groups: int
    epilogue: Requantization | ResidualAdd | None
    table: bool = False
    rows: Extent | None = None
    weight_bits: int = 8
    weight_group: int = 0
    bit_planes: BitPlanes | None = None


@dataclass(frozen=True)
class Operand:
    """A tensor as a loop nest walks it: element ``i`` lies ``offset + sum(i[d] * strides[d])`` elements after the pointer."""

    dtype: str
    strides: tuple[int, ...]
    offset: int = 0


@dataclass(frozen=True)
class Copy:
    """y = x."""


@dataclass(frozen=True)
class Fill:
    """y = value; no operand."""

    value: Number


@dataclass(frozen=True)
class Requantize:
    """``qc::requantize`` of operands x, pre_shift, multiplier, shift."""

    form: Form
    input_zero_point: Number
    zero_point: Number
    low: Number
    high: Number


@dataclass(frozen=True)
class Add:
    """``qc::add`` of operands a, b, pre_shift_a, multiplier_a, pre_shift_b, multiplier_b."""

    shift: Number
    zero_point_a: Number
    zero_point_b: Number
    zero_point: Number
    low: Number
    high: Number


@dataclass(frozen=True)
class Multiply:
    """``qc::multiply`` of operands a, b."""

    zero_point_a: Number
    zero_point_b: Number


@dataclass(frozen=True)
class Lookup:
    """``qc::lookup`` of operands x, table; ``low`` is the smallest value of x's dtype, the table's strides choose its row."""

    low: int


@dataclass(frozen=True)
class Clamp:
    """``qc::clamp`` of operand x."""

    low: Number
    high: Number


@dataclass(frozen=True)
class Quantize:
    """``arithmetic.quantize`` of operands x (float32), reciprocal of the scale (float32), zero point (int32)."""

    low: int
    high: int


@dataclass(frozen=True)
class Dequantize:
    """``arithmetic.dequantize`` of operands x, scale (float32), zero point (int32)."""


@dataclass(frozen=True)
class Compare:
    """A comparison of operand x with a number: 1 where it holds, else 0."""

    relation: Literal["eq", "ne", "gt", "ge", "lt", "le"]
    number: int


@dataclass(frozen=True)
class Combine:
    """``and`` or ``or`` of two operands of bool."""

    function: Literal["and", "or"]


@dataclass(frozen=True)
class FloatFunction:
    """An elementwise function of floats in an island; ``number`` is the second operand of those that take one."""

    function: str
    number: float | None = None


@dataclass(frozen=True)
class IslandQuantize:
    """``arithmetic.quantize`` of operand x (float32) with one scale."""

    reciprocal: float
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True)
class IslandDequantize:
    """``arithmetic.dequantize`` of operand x with one scale."""

    scale: float
    zero_point: int


IslandOperation = FloatFunction | IslandQuantize | IslandDequantize
Operation = Copy | Fill | Requantize | Add | Multiply | Lookup | Clamp | Quantize | Dequantize | Compare | Combine | IslandOperation


@dataclass(frozen=True)
class ElementwiseKernel:
    """``output[i] = operation(operand[i], ...)`` for every index i of ``shape``; pointers: the operands, then the output."""

    operation: Operation
    shape: tuple[Size, ...]
    operands: tuple[Operand, ...]
    output: Operand


@dataclass(frozen=True)
class ReductionKernel:
    """``output[i] = reduce over w of operand[i, w]``, i over ``shape`` and w over ``window``; pointers: operand, output.

    ``sum`` subtracts ``zero_point`` from every term and accumulates in int32; ``max`` keeps the operand's dtype.
    """

    reduction: Literal["sum", "max"]
    shape: tuple[Size, ...]
    window: tuple[Size, ...]
    operand: Operand
    output: Operand
    zero_point: Number = 0


@dataclass(frozen=True)
class ProductKernel:
    """``output[i] = sum over w < length of (a[i, w] - zero_point_a) * (b[i, w] - zero_point_b)`` in int32, i over ``shape``.

    Of any strides and integer types, in plain loops: what MatrixProductKernel does not do. Pointers: a, b, output.
    """

    shape: tuple[Size, ...]
    length: Size
    a: Operand
    b: Operand
    output: Operand
    zero_point_a: Number
    zero_point_b: Number


@dataclass(frozen=True)
class MatrixProductKernel:
    """``output[i, m, n] = sum over k of (a[i, m, k] - zero_point_a) * (b[i, k, n] - zero_point_b)``, i over ``batch``, then ``epilogue``.

    a has 8 bits, or is int16 with zero point 0, and is contiguous along k; b has 8 bits and is contiguous along k or n; the output, int32
    without ``epilogue`` (which is per tensor), is contiguous along n. Pointers: a, b, [pre_shift, multiplier, shift (int32[1])], output.
    Up to 64 bytes are read past the end of a row of a or b; the output's rows are written up to the maximum of ``columns``.
    """

    batch: tuple[Size, ...]
    rows: Size
    columns: Size
    length: Size
    a: Operand  # strides: those of the batch, then along m and k
    b: Operand
    output: Operand
    zero_point_a: Number
    zero_point_b: Number
    epilogue: Requantization | None = None


@dataclass(frozen=True)
class AttentionKernel:
    """Attention of queries [i, m, :], keys [i, n, :] and values [i, n, :], i over ``batch`` (heads), in the ops' own integers::

        s = scores(sum over d of (q - zero_points[0]) * (k - zero_points[1]))     8 bits; an Add adds ``bias``, its operand b
        p = arithmetic.softmax(s, table, bits), with ``mask`` of those kept       8 bits
        output = result(sum over n of p * (v - zero_points[2]))                   8 bits

    All are contiguous along their last dimension, k and v there or along n. ``mask`` is bool, ``bias`` of 8 or 16 bits, both [i, m, n].
    Pointers: q, k, v, of the scores pre_shift, multiplier and shift or bias, pre_shift_a, multiplier_a, pre_shift_b and multiplier_b
    (int32[1] each), table (int32[256]), [mask], pre_shift, multiplier and shift of the result, output. Reads and writes past rows are as
    in MatrixProductKernel.
    """

    batch: tuple[Size, ...]
    queries: Size
    keys: Size
    depth: int
    value_depth: int
    q: Operand
    k: Operand
    v: Operand
    output: Operand
    zero_points: tuple[Number, Number, Number]
    scores: Requantization | Add
    scores_dtype: Dtype
    bits: int
    result: Requantization
    mask: Operand | None = None
    bias: Operand | None = None


@dataclass(frozen=True)
class Softmax:
    """``qc::softmax``; the second operand, if any, is the mask; form ``table`` has its int32 [256] as one more pointer."""

    form: str
    constants: tuple[int, ...]
    bits: int
    rounding: str = "nearest"


@dataclass(frozen=True)
class Normalize:
    """``qc::normalize``; ``drops``: whether the deviations of some row lose bits (``arithmetic.normalize.drops_bits``)."""

    zero_point: Number
    epsilon: Number
    centre: bool
    form: str = "newton"
    drops: bool = True


@dataclass(frozen=True)
class Nonlinear:
    """``qc::nonlinear``."""

    zero_point: int
    function: str
    form: str
    constants: tuple[int, ...]


@dataclass(frozen=True)
class Divide:
    """``qc::divide``; the second operand is the divisor, whose last stride is 0 where a row has one divisor."""

    fraction_bits: int


@dataclass(frozen=True)
class Bucketize:
    """``qc::bucketize``; the int32 boundaries are one more pointer."""

    boundaries: int


@dataclass(frozen=True)
class ArgumentMaximum:
    """``aten.argmax`` along the row: the first place of the largest element, int64. Output strides have no row dimension."""


@dataclass(frozen=True)
class Embedding:
    """``qc::embedding``: the operand is the id, one a row (last stride 0), the second operand the table (strides of its two dimensions)."""


@dataclass(frozen=True)
class RowAffine:
    """In each channel ``clamp(((((y - input_zero_point) << pre_shift) * multiplier >> 32) + offset >> shift) + zero_point)``.

    ``qc::add`` of y and a constant, or ``qc::requantize`` of form high; ``offset`` holds the high half of the constant operand (less
    ``constant_zero_point``) and the rounding term. ``pre_shift`` and ``shift`` are numbers where all channels share them, else None.
    Where nothing can overflow, ``offset`` holds ``zero_point << shift`` as well.
    """

    pre_shift: Number | None
    shift: Number | None
    zero_point: Number
    low: Number
    high: Number
    offset_has_zero_point: bool = False
    constant_zero_point: int = 0
    input_zero_point: Number = 0


@dataclass(frozen=True)
class NormalizationKernel:
    """Residual add, normalization, affine part and a narrower copy of rows of ``length``, i over ``shape``; all but the second optional::

        x[i, :] = addition(operand[i, :], addend[i, :])       stored to ``total`` if that is given
        y[i, :] = operation(x[i, :])                          int32
        z[i, :] = affine(y[i, :])                             y itself without ``affine``; stored to ``output`` if that is given
        n[i, :] = narrowing(z[i, :])                          stored to ``narrow_output``

    Every operand is contiguous along a row. Pointers: operand, [addend], the arrays of ``packing_rows.pack``, [total], [output],
    [narrow_output].
    """

    operation: Normalize
    shape: tuple[Size, ...]
    length: int
    operand: Operand
    addend: Operand | None = None
    addition: Add | None = None
    affine: RowAffine | None = None
    narrowing: Requantize | RowAffine | None = None
    narrowing_per_channel: bool = False
    total: Operand | None = None
    output: Operand | None = None
    narrow_output: Operand | None = None


RowOperation = Softmax | Normalize | Nonlinear | Divide | Bucketize | ArgumentMaximum | Embedding


@dataclass(frozen=True)
class RowKernel:
    """``output[i, :] = operation(operand[i, :], second[i, :])``, i over ``shape``, rows of ``length``.

    Operand and output are contiguous along the row, the second operand is that or constant. Pointers: operand, [second], [table], output.
    """

    operation: RowOperation
    shape: tuple[Size, ...]
    length: Size
    operand: Operand
    output: Operand
    second: Operand | None = None


@dataclass(frozen=True)
class HaloKernel:
    """Writes ``value`` to every element of the halo; pointer: the whole buffer."""

    activation: Activation
    value: Number


@dataclass(frozen=True)
class HadamardKernel:
    """``output[i, :] = rounding(hadamard(operand[i, :] - zero_point))`` in blocks of the row, i over ``shape``; int32 without ``rounding``.

    Rows of ``length``, contiguous. Pointers: operand, [pre_shift, multiplier, shift (int32[1])], output.
    """

    block: int
    zero_point: Number
    shape: tuple[Size, ...]
    length: int
    operand: Operand
    output: Operand
    rounding: Requantize | None = None


@dataclass(frozen=True)
class LinearHadamardKernel:
    """``transform`` of the rows that ``layer`` gives, a linear layer: in blocks of ``block_rows`` rows, which alone are ever in memory.

    ``layer.output`` and ``transform.operand`` are dense rows, as many as the layer has, and so are those of ``transform.output``. Pointers:
    those of ``part``, but to all rows of its input and its residual operand, without its output; then those of ``transform`` without its
    operand.
    """

    layer: ConvolutionKernel
    transform: HadamardKernel
    block_rows: int

    @property
    def part(self) -> ConvolutionKernel:
        """The layer of one block: its parameters are packed for it."""
        epilogue = self.layer.epilogue
        if isinstance(epilogue, ResidualAdd):
            epilogue = dataclasses.replace(epilogue, operand=self._rows_of(epilogue.operand))
        x, output = self._rows_of(self.layer.input), self._rows_of(self.layer.output)
        return dataclasses.replace(self.layer, input=x, output=output, epilogue=epilogue, rows=None)

    def _rows_of(self, rows: Activation) -> Activation:
        return dataclasses.replace(rows, width=self.block_rows)


GenericKernel = ElementwiseKernel | ReductionKernel | ProductKernel | RowKernel | HaloKernel
PackedKernel = ConvolutionKernel | NormalizationKernel  # whose parameters are packed
HadamardKernels = HadamardKernel | LinearHadamardKernel
Kernel = ConvolutionKernel | NormalizationKernel | MatrixProductKernel | AttentionKernel | HadamardKernels | GenericKernel
