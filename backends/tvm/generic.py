"""TIR for everything that is not a convolution: explicit loops over strided operands, the innermost one in vectors.

A loop over a dynamic size ends where the size does; all memory is that of the maximum.

The arithmetic is that of ``qcompiler.arithmetic``, whose formulas the functions below repeat one to one.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import BufferStore, For, ForKind, SeqStmt

from qcompiler.backends.tvm import rows
from qcompiler.backends.tvm.extents import Extents, Numbers, as_type
from qcompiler.backends.tvm.float_border import quantized
from qcompiler.backends.tvm.kernels import (
    ITEM_SIZE,
    Add,
    Clamp,
    Combine,
    Compare,
    Copy,
    Dequantize,
    ElementwiseKernel,
    Fill,
    FloatFunction,
    GenericKernel,
    HaloKernel,
    IslandDequantize,
    IslandQuantize,
    Lookup,
    Multiply,
    Operand,
    Operation,
    ProductKernel,
    Quantize,
    ReductionKernel,
    Requantize,
    RowKernel,
    Size,
    maxima,
)
from qcompiler.backends.tvm.shifts import amount, rounding_shift
from qcompiler.backends.tvm.target import KernelTarget
from qcompiler.backends.tvm.templates import elementwise, pixels
from qcompiler.backends.tvm.templates import rows as row_templates
from qcompiler.backends.tvm.templates.layout import PARALLEL_ELEMENTS

_MINIMUM_VECTOR_EXTENT = 8

Index = Sequence[Expr]
Body = Callable[[list[Expr], int], tirx.Stmt]


def emit(kernel: GenericKernel, target: KernelTarget) -> tirx.PrimFunc:
    """The kernel's function; parameters are buffers in the order that the kernel's docstring gives."""
    if isinstance(kernel, ElementwiseKernel):
        if pixels.serves(kernel):
            return pixels.emit(kernel, target)
        return elementwise.emit(kernel, target) if elementwise.serves(kernel, target) else _elementwise(kernel, target)
    if isinstance(kernel, ReductionKernel):
        return _reduction(kernel, target)
    if isinstance(kernel, ProductKernel):
        return rows.emit_product(kernel, target)
    if isinstance(kernel, RowKernel):
        return row_templates.emit(kernel, target)
    return _halo(kernel, target)


@dataclass(frozen=True)
class _Access:
    """An operand and the buffer behind its pointer."""

    operand: Operand
    buffer: tirx.Buffer

    def at(self, index: Index) -> Expr:
        position = tirx.const(self.operand.offset, "int32")
        for coordinate, stride in zip(index, self.operand.strides, strict=True):
            position = position + coordinate * stride
        return position

    def load(self, index: Index, shift: Expr | int = 0) -> Expr:
        return self.buffer[self.at(index) + shift]

    def store(self, index: Index, value: Expr) -> tirx.Stmt:
        return BufferStore(self.buffer, value.astype(_storage(self.operand.dtype)), [self.at(index)])


def _access(name: str, operand: Operand, shape: Sequence[Size], extra: int = 0) -> _Access:
    extents = zip(maxima(shape), operand.strides, strict=True)
    reach = operand.offset + sum((extent - 1) * stride for extent, stride in extents if stride > 0)
    return _Access(operand, tirx.decl_buffer((reach + 1 + extra,), _storage(operand.dtype), name=name))


def _storage(dtype: str) -> str:
    """Booleans are bytes of 0 and 1; TVM's own are bits."""
    return "uint8" if dtype == "bool" else dtype


def _elementwise(kernel: ElementwiseKernel, target: KernelTarget) -> tirx.PrimFunc:
    table_rows = 255 if isinstance(kernel.operation, Lookup) else 0
    operands = [_access(f"operand_{i}", operand, kernel.shape, table_rows) for i, operand in enumerate(kernel.operands)]
    output = _access("output", kernel.output, kernel.shape)
    numbers = Numbers(kernel)
    operation, compute = numbers.resolve(kernel.operation), _EXPRESSIONS[type(kernel.operation)]

    def body(index: list[Expr], lanes: int) -> tirx.Stmt:
        return output.store(index, compute(operation, operands, index))

    strides = [operand.strides for operand in (*kernel.operands, kernel.output)]
    lanes = target.vector_bytes // max(ITEM_SIZE[operand.dtype] for operand in (*kernel.operands, kernel.output, _arithmetic(kernel)))
    if isinstance(kernel.operation, FloatFunction) and kernel.operation.function in _LIBRARY_FUNCTIONS:
        lanes = 1
    axis, ends = _vector_axis(kernel.shape, strides), Extents(kernel)
    statement = _nest([*map(ends, kernel.shape)], axis, lanes, body, parallel=math.prod(maxima(kernel.shape)) >= PARALLEL_ELEMENTS)
    parameters = [*(access.buffer for access in (*operands, output)), *numbers.parameters, *ends.parameters]
    return tirx.PrimFunc(parameters, numbers.bind(ends.bind(statement)))


def _arithmetic(kernel: ElementwiseKernel) -> Operand:
    """The type that the operation computes in: only data movement and clamping stay in the operands' own."""
    return kernel.output if isinstance(kernel.operation, Copy | Fill | Clamp) else Operand("int32", ())


def _reduction(kernel: ReductionKernel, target: KernelTarget) -> tirx.PrimFunc:
    source = _access("operand", kernel.operand, (*kernel.shape, *kernel.window))
    output = _access("output", kernel.output, kernel.shape)
    dtype = "int32" if kernel.reduction == "sum" else kernel.operand.dtype
    ends, numbers = Extents(kernel), Numbers(kernel)
    ranges = [ends(extent) for extent in kernel.window]
    zero_point = as_type(numbers.resolve(kernel).zero_point, "int32")
    # The zero points of all terms in one.
    initial = functools.reduce(operator.mul, ranges, -zero_point) if kernel.reduction == "sum" else tirx.min_value(dtype)

    def body(index: list[Expr], lanes: int) -> tirx.Stmt:
        accumulator = tirx.decl_buffer((lanes,), dtype, name="accumulator", scope="local")
        window = [tirx.Var(f"w{i}", "int32") for i in range(len(kernel.window))]

        def vector(make: Callable[[Expr], tirx.Stmt]) -> tirx.Stmt:
            lane = tirx.Var("lane", "int32")
            return For(lane, 0, lanes, ForKind.VECTORIZED, make(lane)) if lanes > 1 else make(tirx.const(0, "int32"))

        def at(lane: Expr) -> list[Expr]:
            return [coordinate + lane if i == axis else coordinate for i, coordinate in enumerate(index)]

        def step(lane: Expr) -> tirx.Stmt:
            value = source.load([*at(lane), *window]).astype(dtype)
            combined = accumulator[lane] + value if kernel.reduction == "sum" else tirx.max(accumulator[lane], value)
            return BufferStore(accumulator, combined, [lane])

        loop = vector(step)
        for variable, extent in reversed(list(zip(window, ranges, strict=True))):
            loop = For(variable, 0, extent, ForKind.SERIAL, loop)
        start = vector(lambda lane: BufferStore(accumulator, initial, [lane]))
        end = vector(lambda lane: output.store(at(lane), accumulator[lane]))
        return SeqStmt([tirx.AllocBuffer(accumulator), start, loop, end])

    axis = _vector_axis(kernel.shape, [kernel.operand.strides[: len(kernel.shape)], kernel.output.strides])
    contiguous = axis is not None and kernel.operand.strides[axis] == 1
    lanes = target.vector_bytes // ITEM_SIZE[dtype] if contiguous else 1
    work = math.prod(maxima((*kernel.shape, *kernel.window)))
    statement = _nest([*map(ends, kernel.shape)], axis, lanes, body, parallel=work >= PARALLEL_ELEMENTS, vectorize=False)
    return tirx.PrimFunc([source.buffer, output.buffer, *numbers.parameters, *ends.parameters], numbers.bind(ends.bind(statement)))


def _halo(kernel: HaloKernel, target: KernelTarget) -> tirx.PrimFunc:
    """Three runs of memory: before the first row's map, between one row's and the next row's, after the last row's."""
    activation = kernel.activation
    buffer = tirx.decl_buffer((activation.elements,), activation.dtype, name="output")
    numbers = Numbers(kernel)
    value = as_type(numbers.resolve(kernel).value, activation.dtype)
    lanes = target.vector_bytes // ITEM_SIZE[activation.dtype]

    def run(start: Expr | int, length: int) -> list[tirx.Stmt]:
        def store(index: list[Expr], lanes: int) -> tirx.Stmt:
            return BufferStore(buffer, value, [start + index[0]])

        return [_nest((length,), 0, lanes, store, parallel=False)] if length else []

    used = activation.width * activation.channels
    last = activation.origin + (activation.height - 1) * activation.row_stride + used
    row = tirx.Var("row", "int32")
    between = run(activation.origin + used + row * activation.row_stride, activation.row_stride - used)
    rows = [For(row, 0, activation.height - 1, ForKind.SERIAL, piece) for piece in between if activation.height > 1]
    statement = _sequence([*run(0, activation.origin), *rows, *run(last, activation.elements - last)])
    return tirx.PrimFunc([buffer, *numbers.parameters], numbers.bind(statement))


def _sequence(statements: Sequence[tirx.Stmt]) -> tirx.Stmt:
    """One after the other; TVM has no sequence of one."""
    return SeqStmt(statements) if len(statements) > 1 else statements[0]


def _vector_axis(shape: Sequence[Size], strides: Sequence[Sequence[int]]) -> int | None:
    """The axis along which most operands are contiguous or constant; the innermost of equals; None for a scalar."""
    axes = [axis for axis, extent in enumerate(maxima(shape)) if extent >= _MINIMUM_VECTOR_EXTENT] or list(range(len(shape)))
    return max(axes, key=lambda axis: (sum(stride[axis] in (0, 1) for stride in strides), axis), default=None)


def _nest(shape: Sequence[int | Expr], axis: int | None, lanes: int, body: Body, *, parallel: bool, vectorize: bool = True) -> tirx.Stmt:
    """Loops over ``shape`` with ``axis`` innermost, in steps of ``lanes`` and then of its halves for what is left.

    ``body(index, lanes)`` computes one element where ``vectorize`` makes the vector, else ``lanes`` elements from ``index`` on.
    """
    if axis is None:
        return body([], 1)
    index: list[Expr] = [tirx.Var(f"i{i}", "int32") for i in range(len(shape))]
    outer = [i for i in range(len(shape)) if i != axis]
    kind = ForKind.PARALLEL if parallel else ForKind.SERIAL
    pieces = []
    for start, count, width in _pieces(shape[axis], lanes):
        chunk, lane = tirx.Var("chunk", "int32"), tirx.Var("lane", "int32")
        first = start + chunk * width
        spread = vectorize and width > 1
        piece = body([*index[:axis], first + lane if spread else first, *index[axis + 1 :]], width)
        piece = For(lane, 0, width, ForKind.VECTORIZED, piece) if spread else piece
        pieces.append(For(chunk, 0, count, ForKind.SERIAL if outer else kind, piece))
    statement = _sequence(pieces)
    for position in reversed(outer):
        statement = For(index[position], 0, shape[position], kind if position == outer[0] else ForKind.SERIAL, statement)
    return statement


def _pieces(extent: int | Expr, lanes: int) -> Iterator[tuple[int | Expr, int | Expr, int]]:
    """Start, number and width of the steps that cover ``extent``: of ``lanes``, then of its halves for what is left.

    For a dynamic extent n: n // lanes steps, and one of each half h that n has as a binary digit, from n rounded down to 2 h.
    """
    if not isinstance(extent, int):
        yield 0, extent // lanes, lanes
        while lanes > 1:
            yield extent // lanes * lanes, extent // (lanes // 2) % 2, lanes // 2
            lanes //= 2
        return
    start = 0
    while start < extent:
        count = (extent - start) // lanes
        if count:
            yield start, count, lanes
        start += count * lanes
        lanes = max(lanes // 2, 1)


def _clamp(value: Expr, low: Any, high: Any) -> Expr:
    return tirx.max(tirx.min(value, as_type(high, value.ty.dtype)), as_type(low, value.ty.dtype))


def _high_product(value: Expr, pre_shift: Expr, multiplier: Expr) -> Expr:
    """((value << pre_shift) * multiplier) >> 32"""
    product = (value << amount(pre_shift)).astype("int64") * multiplier.astype("int64")
    return (product >> tirx.const(32, "int64")).astype("int32")


def _requantize(operation: Requantize, operands: Sequence[_Access], index: Index) -> Expr:
    x, pre_shift, multiplier, shift = (operand.load(index).astype("int32") for operand in operands)
    value = x - as_type(operation.input_zero_point, "int32")
    if operation.form == "high":
        scaled = rounding_shift(_high_product(value, pre_shift, multiplier), shift)
    elif operation.form == "narrow":
        narrow = _clamp(rounding_shift(value, pre_shift), -(1 << 15), (1 << 15) - 1)
        scaled = rounding_shift((narrow * multiplier + (1 << 14)) >> 15, shift)
    else:
        wide = rounding_shift(value.astype("int64") * multiplier.astype("int64"), shift.astype("int64"))
        return _clamp(wide + as_type(operation.zero_point, "int64"), operation.low, operation.high)
    return _clamp(scaled + as_type(operation.zero_point, "int32"), operation.low, operation.high)


def _add(operation: Add, operands: Sequence[_Access], index: Index) -> Expr:
    a, b, pre_shift_a, multiplier_a, pre_shift_b, multiplier_b = (operand.load(index).astype("int32") for operand in operands)
    left = _high_product(a - as_type(operation.zero_point_a, "int32"), pre_shift_a, multiplier_a)
    right = _high_product(b - as_type(operation.zero_point_b, "int32"), pre_shift_b, multiplier_b)
    total = rounding_shift(left + right, as_type(operation.shift, "int32"))
    return _clamp(total + as_type(operation.zero_point, "int32"), operation.low, operation.high)


def _multiply(operation: Multiply, operands: Sequence[_Access], index: Index) -> Expr:
    a, b = (operand.load(index).astype("int32") for operand in operands)
    return (a - as_type(operation.zero_point_a, "int32")) * (b - as_type(operation.zero_point_b, "int32"))


def _lookup(operation: Lookup, operands: Sequence[_Access], index: Index) -> Expr:
    x, table = operands
    return table.load(index, x.load(index).astype("int32") - operation.low)


def _clamp_value(operation: Clamp, operands: Sequence[_Access], index: Index) -> Expr:
    return _clamp(operands[0].load(index), operation.low, operation.high)


def _copy(operation: Copy, operands: Sequence[_Access], index: Index) -> Expr:
    return operands[0].load(index)


def _fill(operation: Fill, operands: Sequence[_Access], index: Index) -> Expr:
    return as_type(operation.value, "int32")


def _quantize(operation: Quantize, operands: Sequence[_Access], index: Index) -> Expr:
    x, reciprocal, zero_point = (operand.load(index) for operand in operands)
    return quantized(x, reciprocal, zero_point.astype("float32"), operation.low, operation.high)


def _dequantize(operation: Dequantize, operands: Sequence[_Access], index: Index) -> Expr:
    x, scale, zero_point = (operand.load(index) for operand in operands)
    return (x.astype("int32") - zero_point).astype("float32") * scale


def _compare(operation: Compare, operands: Sequence[_Access], index: Index) -> Expr:
    x = operands[0].load(index)
    wide = x.astype("int32") if ITEM_SIZE[operands[0].operand.dtype] < ITEM_SIZE["int32"] else x
    relation = getattr(operator, operation.relation)
    return relation(wide, tirx.const(operation.number, wide.ty.dtype))


def _combine(operation: Combine, operands: Sequence[_Access], index: Index) -> Expr:
    a, b = (operand.load(index) for operand in operands)
    return a & b if operation.function == "and" else a | b


# Of the C library; the others are instructions, which round as IEEE 754 says.
_LIBRARY_FUNCTIONS = {
    name: f"{name}f" for name in ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "log", "erf")
}
_LIBRARY_FUNCTIONS |= {"log2": "log2f", "log10": "log10f", "log1p": "log1pf", "expm1": "expm1f", "exp2": "exp2f", "pow": "powf"}


def _float_function(operation: FloatFunction, operands: Sequence[_Access], index: Index) -> Expr:
    values = [operand.load(index) for operand in operands]
    if operation.number is not None:
        values.append(tirx.const(operation.number, "float32"))
    if operation.function in _LIBRARY_FUNCTIONS:
        return tirx.call_pure_extern("float32", _LIBRARY_FUNCTIONS[operation.function], *values)
    one = tirx.const(1.0, "float32")
    instructions: dict[str, Callable[..., Expr]] = {
        "sqrt": tirx.sqrt,
        "rsqrt": lambda x: one / tirx.sqrt(x),
        "reciprocal": lambda x: one / x,
        "abs": tirx.abs,
        "floor": tirx.floor,
        "ceil": tirx.ceil,
        "neg": lambda x: tirx.const(0.0, "float32") - x,
        "add": operator.add,
        "sub": operator.sub,
        "mul": operator.mul,
        "div": operator.truediv,
        "maximum": tirx.max,
        "minimum": tirx.min,
    }
    return instructions[operation.function](*values)


def _island_quantize(operation: IslandQuantize, operands: Sequence[_Access], index: Index) -> Expr:
    reciprocal, zero_point = (tirx.const(number, "float32") for number in (operation.reciprocal, operation.zero_point))
    return quantized(operands[0].load(index), reciprocal, zero_point, operation.low, operation.high)


def _island_dequantize(operation: IslandDequantize, operands: Sequence[_Access], index: Index) -> Expr:
    centred = operands[0].load(index).astype("int32") - operation.zero_point
    return centred.astype("float32") * tirx.const(operation.scale, "float32")


_EXPRESSIONS: dict[type[Operation], Callable[..., Expr]] = {
    Copy: _copy,
    Fill: _fill,
    Requantize: _requantize,
    Add: _add,
    Multiply: _multiply,
    Lookup: _lookup,
    Clamp: _clamp_value,
    Quantize: _quantize,
    Dequantize: _dequantize,
    Compare: _compare,
    Combine: _combine,
    FloatFunction: _float_function,
    IslandQuantize: _island_quantize,
    IslandDequantize: _island_dequantize,
}
