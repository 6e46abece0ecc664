"""What the planner does for each op of the INTEGER stage: a change of view, or calls of kernels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.arithmetic.normalize import OUTPUT_BOUNDS
from qcompiler.backends.tvm.fuse_rows import affine_constants, computed_side, other_side
from qcompiler.backends.tvm.kernels import (
    ITEM_SIZE,
    Add,
    ArgumentMaximum,
    Bucketize,
    Clamp,
    Combine,
    Compare,
    ConvolutionKernel,
    Copy,
    Divide,
    Embedding,
    Extent,
    Fill,
    FloatFunction,
    IslandDequantize,
    IslandQuantize,
    Lookup,
    Multiply,
    Nonlinear,
    NormalizationKernel,
    Normalize,
    Operand,
    Operation,
    ReductionKernel,
    Requantize,
    RowAffine,
    RowKernel,
    RowOperation,
    Size,
    Softmax,
    maximum,
    shifted,
)
from qcompiler.backends.tvm.views import Storage, View, dense, loop_nest, pointer_offset, splits_alike
from qcompiler.ir.edit import argument, is_call
from qcompiler.ir.types import IntegerType

if TYPE_CHECKING:
    from qcompiler.backends.tvm.fuse import Fusion
    from qcompiler.backends.tvm.fuse_rows import RowFusion
    from qcompiler.backends.tvm.planner import Planner

_aten, _qc = torch.ops.aten, torch.ops.qc

Handler = Callable[["Planner", fx.Node], None]


@dataclass(frozen=True)
class Window:
    """How an op slides over its input: the halo around ``x`` that its windows reach, and what must lie there."""

    x: fx.Node
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    halo: tuple[int, int, int, int]
    pad_value: int


def window_of(planner: Planner, node: fx.Node) -> Window | None:
    """The window of a convolution or a pooling; None for other ops.

    The halo is what the windows reach, which at the bottom and right may be less than the padding of the op.
    """
    if is_call(node, _qc.convolution.default):
        kernel, dilation = tuple(planner.tensors[argument(node, "weight")].shape[2:]), tuple(argument(node, "dilation"))
        pad_value = argument(node, "pad_value")
    elif is_call(node, _qc.max_pool2d.default):
        kernel, dilation = tuple(argument(node, "kernel")), tuple(argument(node, "dilation"))
        pad_value = torch.iinfo(planner.tensors[node].dtype).min
    elif is_call(node, _qc.sum_pool2d.default):
        kernel, dilation, pad_value = tuple(argument(node, "kernel")), (1, 1), argument(node, "zero_point")
    else:
        return None
    x, stride, padding = argument(node, "x"), tuple(argument(node, "stride")), argument(node, "padding")
    sizes, outputs = planner.tensors[x].shape[2:], planner.tensors[node].shape[2:]
    before = (padding[0], padding[2])
    after = [max(0, (outputs[d] - 1) * stride[d] + (kernel[d] - 1) * dilation[d] + 1 - sizes[d] - before[d]) for d in range(2)]
    return Window(x, kernel, stride, dilation, (before[0], after[0], before[1], after[1]), pad_value)


# Convolutions and linear layers.


def _convolution(planner: Planner, node: fx.Node) -> None:
    fusion = planner.fusion(node)
    window = window_of(planner, fusion.root)
    assert window is not None  # the root is a convolution
    x = planner.feature_map(window.x, window.halo, window.pad_value)
    residual = planner.feature_map(fusion.residual) if fusion.residual is not None else None
    output = planner.allocate(node)
    geometry = {
        "kernel": window.kernel,
        "stride": window.stride,
        "padding": (window.halo[0], window.halo[2]),
        "dilation": window.dilation,
        "groups": argument(fusion.root, "groups"),
    }
    for sample in range(output.maxima[0]):
        _accumulate(planner, fusion, x, residual, output, geometry, sample)


def _linear(planner: Planner, node: fx.Node) -> None:
    fusion = planner.fusion(node)
    x = planner.matrix(argument(fusion.root, "x"))
    residual = planner.matrix(fusion.residual) if fusion.residual is not None else None
    output = planner.allocate_matrix(node)
    geometry = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    _accumulate(planner, fusion, x, residual, output, geometry)


def _accumulate(
    planner: Planner, fusion: Fusion, x: View, residual: View | None, output: View, geometry: Mapping[str, Any], sample: int = 0
) -> None:
    """The call of a convolution kernel for one sample, or for the rows of a matrix."""
    assert x.activation is not None and output.activation is not None  # feature maps and matrices have one
    kernel = ConvolutionKernel(
        input=x.activation,
        output=output.activation,
        epilogue=fusion.kernel_epilogue(_is_per_channel(planner, fusion), residual.activation if residual is not None else None),
        table=fusion.table is not None,
        rows=_dynamic_rows(output),
        **geometry,
    )
    inputs = [view for view in (x, residual) if view is not None]
    parameters = [(view.storage, 0) for view in planner.packed(kernel, fusion.constants())]
    pointers = [(view.storage, _map_start(view, sample)) for view in (*inputs, output)]
    planner.call(kernel, [*pointers[:-1], *parameters, pointers[-1]], *fusion.nodes)


def _dynamic_rows(output: View) -> Extent | None:
    """The dynamic size that is the number of rows; where it counts groups of rows, or rows of groups, all of the maximum are computed."""
    lead = [size for size in output.shape[:-1] if size != 1]
    return lead[0] if len(lead) == 1 and isinstance(lead[0], Extent) else None


def _is_per_channel(planner: Planner, fusion: Fusion) -> bool:
    """Whether any factor of the accumulator differs between channels."""
    roles = ("pre_shift", "multiplier", "shift", "pre_shift_a", "multiplier_a")
    return any(planner.tensors[node].numel() > 1 for role, node in fusion.constants().items() if role in roles)


def _map_start(view: View, sample: int) -> int:
    """Byte offset of a sample's whole buffer, halo included."""
    assert view.activation is not None
    start = view.offset - view.activation.origin + (sample * view.strides[0] if sample else 0)
    return start * ITEM_SIZE[view.dtype]


# Element by element.


def _requantize(planner: Planner, node: fx.Node) -> None:
    _elementwise(planner, node, _requantize_operation(node), ("x", "pre_shift", "multiplier", "shift"))


def _requantize_operation(node: fx.Node) -> Requantize:
    return Requantize(**{name: argument(node, name) for name in ("form", "input_zero_point", "zero_point", "low", "high")})


def _add(planner: Planner, node: fx.Node) -> None:
    _elementwise(planner, node, _add_operation(node), ("a", "b", "pre_shift_a", "multiplier_a", "pre_shift_b", "multiplier_b"))


def _add_operation(node: fx.Node) -> Add:
    return Add(**{name: argument(node, name) for name in ("shift", "zero_point_a", "zero_point_b", "zero_point", "low", "high")})


def _multiply(planner: Planner, node: fx.Node) -> None:
    operation = Multiply(argument(node, "zero_point_a"), argument(node, "zero_point_b"))
    _elementwise(planner, node, operation, ("a", "b"))


def _clamp(planner: Planner, node: fx.Node) -> None:
    _elementwise(planner, node, Clamp(argument(node, "low"), argument(node, "high")), ("x",))


def _elementwise(planner: Planner, node: fx.Node, operation: Operation, names: Sequence[str]) -> None:
    operands = [planner.value(argument(node, name)) for name in names]
    output = planner.allocate(node, like=operands[0])
    planner.elementwise(operation, operands, output, node)


def _lookup(planner: Planner, node: fx.Node) -> None:
    """A table for each channel is a view that only its channel moves; the entry is added by the kernel."""
    x, table = planner.value(argument(node, "x")), planner.value(argument(node, "table"))
    rows = table.select(len(table.shape) - 1, 0)
    if rows.shape:
        spread = rows.reshape([extent if d == 1 else 1 for d, extent in enumerate(x.maxima)])
        assert spread is not None  # one dimension takes any such shape
        rows = spread
    output = planner.allocate(node, like=x)
    planner.elementwise(Lookup(torch.iinfo(planner.tensors[argument(node, "x")].dtype).min), [x, rows], output, node)


def _compare(planner: Planner, node: fx.Node) -> None:
    relation = str(node.target).split(".")[1]
    number = int(argument(node, "other"))
    _elementwise(planner, node, Compare(relation, number), ("self",))  # type: ignore[arg-type]  # one of the handlers' six


def _logical_not(planner: Planner, node: fx.Node) -> None:
    _elementwise(planner, node, Compare("eq", 0), ("self",))


def _mask_and(planner: Planner, node: fx.Node) -> None:
    _elementwise(planner, node, Combine("and"), ("self", "other"))


def _mask_or(planner: Planner, node: fx.Node) -> None:
    _elementwise(planner, node, Combine("or"), ("self", "other"))


def _cast(planner: Planner, node: fx.Node) -> None:
    """Between integers a copy; to bool a comparison with 0."""
    operation = Compare("ne", 0) if planner.tensors[node].dtype == torch.bool else Copy()
    _elementwise(planner, node, operation, ("self",))


# Float islands.


def _island_quantize(planner: Planner, node: fx.Node) -> None:
    scale, zero_point, kind = _island_type(planner, node)
    reciprocal = torch.tensor(scale, dtype=torch.float32).reciprocal().item()
    _elementwise(planner, node, IslandQuantize(reciprocal, zero_point, kind.low, kind.high), ("x",))


def _island_dequantize(planner: Planner, node: fx.Node) -> None:
    scale, zero_point, _ = _island_type(planner, node)
    _elementwise(planner, node, IslandDequantize(torch.tensor(scale, dtype=torch.float32).item(), zero_point), ("x",))


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
    _elementwise(planner, node, FloatFunction(function, numbers[0] if numbers else None), tensors)


# Reductions.


def _pool(planner: Planner, node: fx.Node) -> None:
    window = window_of(planner, node)
    assert window is not None  # the handlers of poolings only
    planner.check_fixed(window.x)
    padded = any(window.halo)
    x = planner.feature_map(window.x, window.halo, window.pad_value) if padded else planner.value(window.x)
    start = x.offset - window.halo[0] * x.strides[2] - window.halo[2] * x.strides[3]
    output = planner.allocate(node)
    windows = dataclasses.replace(x, offset=start).windows(window.kernel, window.stride, window.dilation, output.maxima[2:])
    _reduce(planner, node, windows, output, (4, 5))


def _adaptive_pool(planner: Planner, node: fx.Node) -> None:
    """Output i covers inputs floor(i * size / outputs) to ceil((i + 1) * size / outputs): regular windows where outputs divide size."""
    planner.check_fixed(argument(node, "x"))
    x, outputs = planner.value(argument(node, "x")), tuple(argument(node, "output_size"))
    output = planner.allocate(node)
    sizes = x.maxima[2:]
    if all(size % count == 0 for size, count in zip(sizes, outputs, strict=True)):
        kernel = [size // count for size, count in zip(sizes, outputs, strict=True)]
        _reduce(planner, node, x.windows(kernel, kernel, (1, 1), outputs), output, (4, 5))
        return
    rows, columns = (
        [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)] for size, count in zip(sizes, outputs, strict=True)
    )
    for row, (top, bottom) in enumerate(rows):
        for column, (left, right) in enumerate(columns):
            cell = output.slice(2, row, row + 1).slice(3, column, column + 1).squeeze((2, 3))
            _reduce(planner, node, x.slice(2, top, bottom).slice(3, left, right), cell, (2, 3))


def _sum(planner: Planner, node: fx.Node) -> None:
    x = planner.value(argument(node, "x"))
    dims = sorted({dim % len(x.shape) for dim in argument(node, "dim")}) or list(range(len(x.shape)))
    output = planner.allocate(node)
    kept = output.squeeze(dims) if argument(node, "keepdim") else output
    _reduce(planner, node, x, kept, dims)


def _reduce(planner: Planner, node: fx.Node, x: View, output: View, dims: Sequence[int]) -> None:
    """Reduce ``dims`` of x; the others are those of ``output`` in order."""
    kept = [d for d in range(len(x.shape)) if d not in dims]
    moved = x.permute([*kept, *dims])
    reduction: Literal["sum", "max"] = "max" if is_call(node, _qc.max_pool2d.default, _qc.adaptive_max_pool2d.default) else "sum"
    inner = dataclasses.replace(moved, shape=moved.shape[len(kept) :], strides=moved.strides[len(kept) :])
    outer = dataclasses.replace(moved, shape=moved.shape[: len(kept)], strides=moved.strides[: len(kept)])
    shape, (source, target) = loop_nest(output.shape, [outer, output])
    window, (steps,) = loop_nest(inner.shape, [inner])
    kernel = ReductionKernel(
        reduction=reduction,
        shape=shape,
        window=window,
        operand=Operand(x.dtype, (*source.strides, *steps.strides), source.offset + steps.offset),
        output=target,
        zero_point=0 if reduction == "max" else argument(node, "zero_point"),
    )
    operands = [(view.storage, pointer_offset(view) * ITEM_SIZE[view.dtype]) for view in (moved, output)]
    planner.call(kernel, operands, node)


# Rows.


def _softmax(planner: Planner, node: fx.Node) -> None:
    operation = Softmax(argument(node, "form"), tuple(argument(node, "constants")), argument(node, "bits"), argument(node, "rounding"))
    _row_kernel(planner, node, operation, argument(node, "x"), second=argument(node, "mask"), table=argument(node, "table"))


def _normalize(planner: Planner, node: fx.Node) -> None:
    """Of the forms that have no fused kernel."""
    _row_kernel(planner, node, _normalize_operation(node), argument(node, "x"))


def _normalize_operation(node: fx.Node) -> Normalize:
    return Normalize(**{name: argument(node, name) for name in ("zero_point", "epsilon", "centre", "form")})


def _nonlinear(planner: Planner, node: fx.Node) -> None:
    names = ("zero_point", "function", "form")
    operation = Nonlinear(**{name: argument(node, name) for name in names}, constants=tuple(argument(node, "constants")))
    plan = _row_kernel if operation.form == "shift-gelu" else _vector_kernel  # which alone knows rows
    plan(planner, node, operation, argument(node, "x"))


def _divide(planner: Planner, node: fx.Node) -> None:
    _row_kernel(planner, node, Divide(argument(node, "fraction_bits")), argument(node, "x"), second=argument(node, "divisor"))


def _bucketize(planner: Planner, node: fx.Node) -> None:
    boundaries = argument(node, "boundaries")
    _vector_kernel(planner, node, Bucketize(planner.tensors[boundaries].numel()), argument(node, "x"), boundaries)


def _argument_maximum(planner: Planner, node: fx.Node) -> None:
    """Rows are the dimension that the op looks along; without one, everything is one row."""
    x, dim = argument(node, "self"), argument(node, "dim")
    view = planner.value(x)
    if dim is None:
        view = view.reshape([math.prod(view.maxima)]) or _reshaped_copy(planner, x, [math.prod(view.maxima)])
        order = [0]
    else:
        last = dim % len(view.shape)
        order = [*(d for d in range(len(view.shape)) if d != last), last]
    moved = view.permute(order)
    if moved.strides[-1] != 1 and moved.shape[-1] != 1:
        copy = dense(Storage("arena", math.prod(moved.maxima) * ITEM_SIZE[moved.dtype]), moved.dtype, moved.shape)
        planner.elementwise(Copy(), [moved], copy, node)
        moved = copy
    output = planner.allocate_matrix(node)
    result = output.squeeze([dim % len(output.shape)]) if dim is not None and argument(node, "keepdim") else output
    kept = moved.select(len(order) - 1, 0)
    outer, (source, target) = loop_nest(kept.shape, [kept, result.reshape(kept.shape) or result])
    operand = dataclasses.replace(source, strides=(*source.strides, 1))
    kernel = RowKernel(ArgumentMaximum(), outer, moved.shape[-1], operand, target)
    planner.call(kernel, [_pointer(moved), _pointer(output)], node)


def _embedding(planner: Planner, node: fx.Node) -> None:
    """The table is read row by row where it lies."""
    ids, output = planner.value(argument(node, "ids")), planner.allocate_matrix(node)
    weight = planner.value(argument(node, "weight"))
    outer, (source, target) = loop_nest(ids.shape, [ids, output.select(len(output.shape) - 1, 0)])
    kernel = RowKernel(
        operation=Embedding(),
        shape=outer,
        length=output.shape[-1],
        operand=dataclasses.replace(source, strides=(*source.strides, 0)),
        output=dataclasses.replace(target, strides=(*target.strides, 1)),
        second=Operand(weight.dtype, weight.strides),
    )
    planner.call(kernel, [_pointer(ids), _pointer(weight), _pointer(output)], node)


def _pointer(view: View) -> tuple[Storage, int]:
    return view.storage, pointer_offset(view) * ITEM_SIZE[view.dtype]


def _vector_kernel(planner: Planner, node: fx.Node, operation: RowOperation, x: fx.Node, table: fx.Node | None = None) -> None:
    """A function of each element, along whatever runs of elements operand and result have in common."""
    source = planner.value(x)
    output = planner.allocate(node, like=source)
    outer, walks = loop_nest(output.shape, [source, output])
    if not outer or any(walk.strides[-1] != 1 for walk in walks):
        _row_kernel(planner, node, operation, x, table=table)
        return
    kernel = RowKernel(operation, outer[:-1], outer[-1], walks[0], walks[1])
    tables = [(planner.value(table).storage, 0)] if table is not None else []
    planner.call(kernel, [_pointer(source), *tables, _pointer(output)], node)


def _row_kernel(
    planner: Planner, node: fx.Node, operation: RowOperation, x: fx.Node, second: fx.Node | None = None, table: fx.Node | None = None
) -> None:
    """A function of each row along the last dimension; operands that do not lie along it are copied first."""
    shape = planner.shape(node)
    views = [_row_view(planner, x, shape)]
    if second is not None:
        views.append(_row_view(planner, second, shape, may_repeat=True))
    views.append(planner.allocate_matrix(node))
    if not shape:
        views = [view.unsqueeze(0) for view in views]
    length = views[-1].shape[-1]
    outer, walks = loop_nest(views[-1].shape[:-1], [view.select(len(view.shape) - 1, 0) for view in views])
    steps = [1, *(int(view.strides[-1] != 0) for view in views[1:-1]), 1]
    operands = [dataclasses.replace(walk, strides=(*walk.strides, step)) for walk, step in zip(walks, steps, strict=True)]
    middle = operands[1] if second is not None else None
    tables = [(planner.value(table).storage, 0)] if table is not None else []
    pointers = [_pointer(view) for view in views]
    kernel = RowKernel(operation, outer, length, operands[0], operands[-1], middle)
    planner.call(kernel, [*pointers[:-1], *tables, pointers[-1]], node)


def normalization(planner: Planner, fusion: RowFusion) -> None:
    """The call of a row kernel for all nodes of the fusion; values that only the kernel itself reads get no memory."""
    addition = fusion.addition
    sources = [argument(addition, side) for side in "ab"] if addition is not None else [argument(fusion.root, "x")]
    shape = planner.shape(fusion.root)
    inputs = {name: _row_view(planner, source, shape) for name, source in zip(("operand", "addend"), sources, strict=False)}
    stored = {"total": addition, "output": fusion.affine or fusion.root, "narrow_output": fusion.narrowing}
    kept = {name: node for name, node in stored.items() if node is not None and _is_stored(planner, fusion, node)}
    outputs = {name: planner.allocate_matrix(node) for name, node in kept.items()}
    views = {**inputs, **outputs}
    outer, walks = loop_nest(shape[:-1], [view.select(len(shape) - 1, 0) for view in views.values()])
    operands = {name: dataclasses.replace(walk, strides=(*walk.strides, 1)) for name, walk in zip(views, walks, strict=True)}
    kernel = NormalizationKernel(
        operation=_normalize_operation(fusion.root),
        shape=outer,
        length=maximum(shape[-1]),
        addition=_add_operation(addition) if addition is not None else None,
        affine=_row_affine(planner, fusion.affine, fusion.root, OUTPUT_BOUNDS["newton"]) if fusion.affine is not None else None,
        narrowing=_narrowing(planner, fusion),
        narrowing_per_channel=any(planner.tensors[node].numel() > 1 for role, node in fusion.constants().items() if "narrow_" in role),
        **operands,
    )
    parameters = [(view.storage, 0) for view in planner.packed(kernel, fusion.constants())]
    pointers = {name: (view.storage, pointer_offset(view) * ITEM_SIZE[view.dtype]) for name, view in views.items()}
    arguments = [*(pointers[name] for name in inputs), *parameters, *(pointers[name] for name in outputs)]
    planner.call(kernel, arguments, *fusion.nodes)


def _is_stored(planner: Planner, fusion: RowFusion, node: fx.Node) -> bool:
    """Whether anything but the fused kernel itself reads the value."""
    return planner.is_kept(node) or any(user not in fusion.nodes for user in node.users)


def _row_view(planner: Planner, node: fx.Node, shape: Sequence[Size], may_repeat: bool = False) -> View:
    """The value, broadcast to ``shape``, whose last dimension is contiguous, or one element for all if it ``may_repeat``."""
    view = planner.value(node)
    repeats = may_repeat and (not view.shape or view.shape[-1] == 1 or view.strides[-1] == 0)
    if not repeats and view.shape and view.shape[-1] != 1 and view.strides[-1] != 1:
        view = planner.materialize(node)
    return view.expand(shape)


def _row_affine(planner: Planner, node: fx.Node, operand: fx.Node, bound: int) -> RowAffine:
    """A ``qc::add`` of a constant, or a ``qc::requantize``, of an operand of at most ``bound``."""
    constants = affine_constants(node, operand)
    pre_shift, multiplier = (planner.constant(constants[name]).to(torch.int64) for name in ("pre_shift", "multiplier"))
    zero_point, side = argument(node, "zero_point"), computed_side(node, operand) if is_call(node, _qc.add.default) else None
    shift = planner.constant(constants["shift"]).to(torch.int64) if side is None else torch.tensor(argument(node, "shift"))
    # The most that the sum before the last shift can be; the constant's part is at most 2^30.
    largest = ((bound << pre_shift) * multiplier.abs() >> 32) + 1 + ((abs(zero_point) + 1) << shift) + (0 if side is None else 1 << 30)
    return RowAffine(
        pre_shift=_common(pre_shift),
        shift=_common(shift),
        zero_point=zero_point,
        low=argument(node, "low"),
        high=argument(node, "high"),
        offset_has_zero_point=bool(largest.max() < 1 << 31),
        constant_zero_point=0 if side is None else argument(node, f"zero_point_{other_side(side)}"),
        input_zero_point=argument(node, "input_zero_point" if side is None else f"zero_point_{side}"),
    )


def _narrowing(planner: Planner, fusion: RowFusion) -> Requantize | RowAffine | None:
    """One factor for all channels, or one and an offset for each."""
    node, affine = fusion.narrowing, fusion.affine
    if node is None or affine is None:
        return None
    if is_call(node, _qc.requantize.default):
        return _requantize_operation(node)
    return _row_affine(planner, node, affine, 1 << 16)


def _common(values: torch.Tensor) -> int | None:
    """The number that all elements are."""
    return int(values.flatten()[0]) if bool((values == values.flatten()[0]).all()) else None


# Movement: a change of view where it can be, else copies into the value's own memory.


def _reshape(planner: Planner, node: fx.Node) -> None:
    source, shape = node.args[0], planner.shape(node)
    assert isinstance(source, fx.Node)
    if not splits_alike(planner.shape(source), shape):
        planner.decline(node, "it moves elements across a dynamic dimension; reshape the dimensions before and behind it by themselves")
    planner.set_value(node, planner.value(source).reshape(shape) or _reshaped_copy(planner, source, shape))


def _reshaped_copy(planner: Planner, source: fx.Node, shape: Sequence[Size]) -> View:
    view = planner.materialize(source).reshape(shape)
    assert view is not None  # row-major memory takes any shape
    return view


def _view_change(change: Callable[[View, fx.Node], View]) -> Handler:
    def handler(planner: Planner, node: fx.Node) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)  # the first operand of every movement op
        planner.set_value(node, change(planner.value(source), node))

    return handler


def _permute(view: View, node: fx.Node) -> View:
    return view.permute([dim % len(view.shape) for dim in argument(node, "dims")])


def _transpose(view: View, node: fx.Node) -> View:
    order = list(range(len(view.shape)))
    first, second = argument(node, "dim0"), argument(node, "dim1")
    order[first], order[second] = order[second], order[first]
    return view.permute(order)


def _slice(planner: Planner, node: fx.Node) -> None:
    """The size is that of the result, whichever of the ends is dynamic; the start has to be a number."""
    view = planner.value(argument(node, "self"))
    dim, start, step = argument(node, "dim") % len(view.shape), argument(node, "start") or 0, argument(node, "step")
    size = planner.shape(node)[dim]
    if isinstance(view.shape[dim], int) and isinstance(start, int):
        start = slice(start, None).indices(view.maxima[dim])[0]
    if not isinstance(start, int) or start < 0:
        planner.decline(node, "it starts at a place that depends on a dynamic size; slice from the front")
    planner.set_value(node, view.slice(dim, start, shifted(size, start) if step == 1 else start + maximum(size) * step, step))


def _select(planner: Planner, node: fx.Node) -> None:
    view, index = planner.value(argument(node, "self")), argument(node, "index")
    dim = argument(node, "dim") % len(view.shape)
    if not isinstance(index, int) or (index < 0 and isinstance(view.shape[dim], Extent)):
        planner.decline(node, "it selects a place that depends on a dynamic size; select by a number from the front")
    planner.set_value(node, view.select(dim, index % view.maxima[dim]))


def _flip(planner: Planner, node: fx.Node) -> None:
    view = planner.value(argument(node, "self"))
    dims = [dim % len(view.shape) for dim in argument(node, "dims")]
    if any(isinstance(view.shape[dim], Extent) for dim in dims):
        planner.decline(node, "it flips a dynamic dimension")
    planner.set_value(node, view.flip(dims))


def _same(view: View, node: fx.Node) -> View:
    return view


def _expand(planner: Planner, node: fx.Node) -> None:
    planner.set_value(node, planner.value(argument(node, "self")).expand(planner.shape(node)))


def _cat(planner: Planner, node: fx.Node) -> None:
    output = planner.allocate(node)
    dim, start = argument(node, "dim") % len(output.shape), 0
    views = [planner.value(source) for source in argument(node, "tensors")]
    if any(isinstance(view.shape[dim], Extent) for view in views[:-1]):
        planner.decline(node, "it joins something behind a dynamic dimension; only the last part may be dynamic")
    for view in views:
        planner.elementwise(Copy(), [view], output.slice(dim, start, shifted(view.shape[dim], start)), node)
        start += view.maxima[dim]


def _constant_pad(planner: Planner, node: fx.Node) -> None:
    """``pad`` counts from the last dimension, (before, after) each; a negative count crops."""
    pad, view = argument(node, "pad"), planner.value(argument(node, "self"))
    output = planner.allocate(node)
    planner.elementwise(Fill(argument(node, "value")), [], output, node)
    inside = output
    for position in range(len(pad) // 2):
        dim, before, after = len(view.shape) - 1 - position, pad[2 * position], pad[2 * position + 1]
        view = view.slice(dim, max(0, -before), shifted(view.shape[dim], -max(0, -after)))
        inside = inside.slice(dim, max(0, before), shifted(inside.shape[dim], -max(0, after)))
    planner.elementwise(Copy(), [view], inside, node)


def _dilate(planner: Planner, node: fx.Node) -> None:
    output = planner.allocate(node)
    planner.elementwise(Fill(argument(node, "value")), [], output, node)
    inside = output
    for dim, factor in zip((-2, -1), argument(node, "factor"), strict=True):
        inside = inside.slice(dim % len(output.shape), 0, output.shape[dim], factor)
    planner.elementwise(Copy(), [planner.value(argument(node, "x"))], inside, node)


_COMPARISONS = (_aten.eq.Scalar, _aten.ne.Scalar, _aten.gt.Scalar, _aten.ge.Scalar, _aten.lt.Scalar, _aten.le.Scalar)
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

HANDLERS: Mapping[object, Handler] = {
    **dict.fromkeys(_COMPARISONS, _compare),
    **dict.fromkeys(_FLOAT_FUNCTIONS, _float_function),
    _aten.logical_not.default: _logical_not,
    _aten.logical_and.default: _mask_and,
    _aten.bitwise_and.Tensor: _mask_and,
    _aten.bitwise_or.Tensor: _mask_or,
    _aten.to.dtype: _cast,
    _qc.quantize.default: _island_quantize,
    _qc.dequantize.default: _island_dequantize,
    _qc.convolution.default: _convolution,
    _qc.linear.default: _linear,
    _qc.softmax.default: _softmax,
    _qc.normalize.default: _normalize,
    _qc.nonlinear.default: _nonlinear,
    _qc.divide.default: _divide,
    _qc.bucketize.default: _bucketize,
    _qc.embedding.default: _embedding,
    _aten.argmax.default: _argument_maximum,
    _qc.requantize.default: _requantize,
    _qc.add.default: _add,
    _qc.multiply.default: _multiply,
    _qc.lookup.default: _lookup,
    _qc.clamp.default: _clamp,
    _qc.max_pool2d.default: _pool,
    _qc.sum_pool2d.default: _pool,
    _qc.adaptive_sum_pool2d.default: _adaptive_pool,
    _qc.adaptive_max_pool2d.default: _adaptive_pool,
    _qc.sum.default: _sum,
    _qc.dilate.default: _dilate,
    _aten.view.default: _reshape,
    _aten.reshape.default: _reshape,
    _aten.flatten.using_ints: _reshape,
    _aten.unflatten.int: _reshape,
    _aten.squeeze.dims: _reshape,
    _aten.unsqueeze.default: _reshape,
    _aten.permute.default: _view_change(_permute),
    _aten.transpose.int: _view_change(_transpose),
    _aten.slice.Tensor: _slice,
    _aten.select.int: _select,
    _aten.flip.default: _flip,
    _aten.clone.default: _view_change(_same),
    _aten.expand.default: _expand,
    _aten.cat.default: _cat,
    _aten.constant_pad_nd.default: _constant_pad,
}
