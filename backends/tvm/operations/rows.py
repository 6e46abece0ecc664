"""Ops on rows: softmax, normalization and what is fused to it, non-linear functions, embedding, argmax."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.arithmetic.normalize import OUTPUT_BOUNDS, drops_bits
from qcompiler.backends.tvm.fuse_rows import affine_constants, computed_side, other_side
from qcompiler.backends.tvm.kernels import (
    ITEM_SIZE,
    ArgumentMaximum,
    Bucketize,
    Copy,
    Divide,
    Embedding,
    Nonlinear,
    NormalizationKernel,
    Normalize,
    Operand,
    Requantize,
    RowAffine,
    RowKernel,
    RowOperation,
    Size,
    Softmax,
    maximum,
)
from qcompiler.backends.tvm.operations.elementwise import add_operation, requantize_operation
from qcompiler.backends.tvm.operations.handler import Handler
from qcompiler.backends.tvm.operations.movement import reshaped_copy
from qcompiler.backends.tvm.views import Storage, View, dense, loop_nest, pointer_offset
from qcompiler.ir.edit import argument, is_call

if TYPE_CHECKING:
    from qcompiler.backends.tvm.fuse_rows import RowFusion
    from qcompiler.backends.tvm.planner import Planner

_aten, _qc = torch.ops.aten, torch.ops.qc


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
        view = view.reshape([math.prod(view.maxima)]) or reshaped_copy(planner, x, [math.prod(view.maxima)])
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
        operation=_newton_operation(planner, fusion),
        shape=outer,
        length=maximum(shape[-1]),
        addition=add_operation(addition) if addition is not None else None,
        affine=_row_affine(planner, fusion.affine, fusion.root, OUTPUT_BOUNDS["newton"]) if fusion.affine is not None else None,
        narrowing=_narrowing(planner, fusion),
        narrowing_per_channel=any(planner.tensors[node].numel() > 1 for role, node in fusion.constants().items() if "narrow_" in role),
        **operands,
    )
    parameters = [(view.storage, 0) for view in planner.packed(kernel, fusion.constants())]
    pointers = {name: (view.storage, pointer_offset(view) * ITEM_SIZE[view.dtype]) for name, view in views.items()}
    arguments = [*(pointers[name] for name in inputs), *parameters, *(pointers[name] for name in outputs)]
    planner.call(kernel, arguments, *fusion.nodes)


def _newton_operation(planner: Planner, fusion: RowFusion) -> Normalize:
    operation = _normalize_operation(fusion.root)
    x = planner.tensors[argument(fusion.root, "x")]
    span = (1 << 8 if x.dtype in (torch.int8, torch.uint8) else 1 << 16) - 1
    return dataclasses.replace(operation, drops=drops_bits(x.shape[-1], span, argument(fusion.root, "epsilon"), operation.centre))


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
        return requantize_operation(node)
    return _row_affine(planner, node, affine, 1 << 16)


def _common(values: torch.Tensor) -> int | None:
    """The number that all elements are."""
    return int(values.flatten()[0]) if bool((values == values.flatten()[0]).all()) else None


HANDLERS: Mapping[object, Handler] = {
    _qc.softmax.default: _softmax,
    _qc.normalize.default: _normalize,
    _qc.nonlinear.default: _nonlinear,
    _qc.divide.default: _divide,
    _qc.bucketize.default: _bucketize,
    _qc.embedding.default: _embedding,
    _aten.argmax.default: _argument_maximum,
}
