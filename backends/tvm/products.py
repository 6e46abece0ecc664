"""How the planner lays out products of two activations and attention, and calls their kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.arithmetic import DYADIC_PARAMETERS
from qcompiler.backends.tvm.fuse_products import AttentionFusion, ProductFusion, has_matrix_kernel
from qcompiler.backends.tvm.kernels import (
    ITEM_SIZE,
    Add,
    AttentionKernel,
    Copy,
    Extent,
    MatrixProductKernel,
    Operand,
    ProductKernel,
    Requantization,
    Size,
)
from qcompiler.backends.tvm.templates.product_layout import fits_stack
from qcompiler.backends.tvm.views import Storage, View, dense, loop_nest, operand, pointer_offset
from qcompiler.ir import edit
from qcompiler.ir.edit import argument, is_call

if TYPE_CHECKING:
    from qcompiler.backends.tvm.planner import Planner

_aten = torch.ops.aten


def emit(planner: Planner, fusion: ProductFusion | AttentionFusion) -> None:
    """The call of the kernel for all nodes of the fusion; where attention would need too much stack, of a kernel for each part."""
    if isinstance(fusion, ProductFusion):
        _product(planner, fusion)
    elif not _attention(planner, fusion):
        _product(planner, ProductFusion(fusion.scores, None if fusion.adds else fusion.rounding))
        for node in [fusion.rounding, fusion.softmax] if fusion.adds else [fusion.softmax]:
            planner.plan_alone(node)
        _product(planner, fusion.result)


def _product(planner: Planner, fusion: ProductFusion) -> None:
    node = fusion.product
    if not has_matrix_kernel(node, planner.tensors):
        _plain_product(planner, node)
        return
    a = _contiguous(planner, argument(node, "a"), (-1,))
    b = _contiguous(planner, argument(node, "b"), (-1, -2))
    output = allocate_rows(planner, fusion.last)
    batch, operands = _matrices((output.shape[:-2]), [a, b, output])
    kernel = MatrixProductKernel(
        batch=batch,
        rows=output.shape[-2],
        columns=output.shape[-1],
        length=a.shape[-1],
        a=operands[0],
        b=operands[1],
        output=operands[2],
        zero_point_a=argument(node, "zero_point_a"),
        zero_point_b=argument(node, "zero_point_b"),
        epilogue=_requantization(fusion.rounding),
    )
    if fits_stack(kernel, planner.target.name):
        pointers = [_pointer(view, output.shape[:-2]) for view in (a, b, output)]
        planner.call(kernel, [*pointers[:2], *_rounding_pointers(planner, fusion.rounding), pointers[2]], *fusion.nodes)
        return
    _plain_product(planner, node)
    if fusion.rounding is not None:
        planner.plan_alone(fusion.rounding)


def _attention(planner: Planner, fusion: AttentionFusion) -> bool:
    """Whether the kernel fits; if so it is called."""
    scores, result = fusion.scores, fusion.result.product
    q = _contiguous(planner, argument(scores, "a"), (-1,))
    k = _swapped(_contiguous(planner, argument(scores, "b"), (-1, -2)))
    v = _contiguous(planner, argument(result, "b"), (-1, -2))
    output = allocate_rows(planner, fusion.last)
    if isinstance(q.shape[-1], Extent) or isinstance(v.shape[-1], Extent) or (fusion.adds and planner.is_dynamic(fusion.softmax)):
        return False
    views = {"q": q, "k": k, "v": v, "output": output}
    views |= {name: view for name, view in (("mask", _mask(planner, fusion.softmax)), ("bias", _bias(planner, fusion))) if view is not None}
    lead = output.shape[:-2]
    batch, operands = _matrices(lead, list(views.values()))
    kernel = AttentionKernel(
        batch=batch,
        queries=q.shape[-2],
        keys=k.shape[-2],
        depth=q.shape[-1],
        value_depth=v.shape[-1],
        zero_points=(argument(scores, "zero_point_a"), argument(scores, "zero_point_b"), argument(result, "zero_point_b")),
        scores=_addition(fusion) if fusion.adds else _required(fusion.rounding),
        scores_dtype=_dtype(planner, fusion.rounding),
        bits=argument(fusion.softmax, "bits"),
        result=_required(fusion.result.rounding),
        **dict(zip(views, operands, strict=True)),
    )
    if not fits_stack(kernel, planner.target.name):
        return False
    pointers = {name: [_pointer(view, lead)] for name, view in views.items()}
    arguments = [
        *(*pointers["q"], *pointers["k"], *pointers["v"], *pointers.get("bias", ())),
        *(_addition_pointers(planner, fusion) if fusion.adds else _rounding_pointers(planner, fusion.rounding)),
        *(_pointer(planner.value(argument(fusion.softmax, "table")), ()), *pointers.get("mask", ())),
        *(*_rounding_pointers(planner, fusion.result.rounding), *pointers["output"]),
    ]
    planner.call(kernel, arguments, *fusion.nodes)
    return True


def _plain_product(planner: Planner, node: fx.Node) -> None:
    """[..., M, K] and [..., K, N], which broadcast, walked as [..., M, N, K]."""
    a, b = planner.value(argument(node, "a")), planner.value(argument(node, "b"))
    output = planner.allocate(node)
    lead, length = output.shape[:-2], a.shape[-1]
    columns, rows = output.shape[-1], output.shape[-2]
    left = a.unsqueeze(len(a.shape) - 1).expand((*lead, rows, columns, length))
    right = _swapped(b)
    right = right.unsqueeze(len(b.shape) - 2).expand((*lead, rows, columns, length))
    starts = [view.select(len(lead) + 2, 0) for view in (left, right)]
    shape, (walk_a, walk_b, target) = loop_nest(output.shape, [*starts, output])
    kernel = ProductKernel(
        shape=shape,
        length=length,
        a=dataclasses.replace(walk_a, strides=(*walk_a.strides, left.strides[-1])),
        b=dataclasses.replace(walk_b, strides=(*walk_b.strides, right.strides[-1])),
        output=target,
        zero_point_a=argument(node, "zero_point_a"),
        zero_point_b=argument(node, "zero_point_b"),
    )
    planner.call(kernel, [(view.storage, pointer_offset(view) * ITEM_SIZE[view.dtype]) for view in (left, right, output)], node)


def allocate_rows(planner: Planner, node: fx.Node) -> View:
    """Room for the value with dense rows, set as its value. Where its readers permute it, it lies in the order that they want, so that
    heads side by side in the rows of a matrix cost nothing."""
    order = _wanted_order(node)
    if order is None:
        return planner.allocate_matrix(node)
    dtype = str(planner.tensors[node].dtype).removeprefix("torch.")
    shape = planner.shape(node)
    storage = Storage("arena", planner.tensors[node].numel() * ITEM_SIZE[dtype])
    view = dense(storage, dtype, [shape[d] for d in order]).permute([order.index(d) for d in range(len(order))])
    planner.set_value(node, view)
    return view


def _wanted_order(node: fx.Node) -> list[int] | None:
    """The order of dimensions in which all readers want the value; None where that is its own or they differ.

    The last dimension has to stay innermost.
    """
    dims = node.meta["val"].dim()
    orders = [_permutation(user, dims) for user in edit.users_of(node)]
    first = orders[0] if orders else None
    if first is None or any(order != first for order in orders):
        return None
    return first if first[-1] == dims - 1 and first != list(range(dims)) else None


def _permutation(user: fx.Node, dims: int) -> list[int] | None:
    if is_call(user, _aten.permute.default):
        return [d % dims for d in argument(user, "dims")]
    if is_call(user, _aten.transpose.int):
        order = list(range(dims))
        first, second = argument(user, "dim0"), argument(user, "dim1")
        order[first], order[second] = order[second], order[first]
        return order
    return None


def _contiguous(planner: Planner, node: fx.Node, dims: Sequence[int]) -> View:
    """The value, contiguous along one of ``dims``: where it lies if possible, else a copy."""
    view = planner.value(node)
    if any(view.strides[d] == 1 or view.shape[d] == 1 for d in dims):
        return _with_step(view, dims)
    return planner.materialize(node)


def _with_step(view: View, dims: Sequence[int]) -> View:
    """A dimension of extent 1 has any stride: 1 where no other is contiguous."""
    if any(view.strides[d] == 1 for d in dims):
        return view
    single = next(d % len(view.shape) for d in dims if view.shape[d] == 1)
    strides = tuple(1 if d == single else stride for d, stride in enumerate(view.strides))
    return dataclasses.replace(view, strides=strides, activation=None)


def _swapped(view: View) -> View:
    """The last two dimensions exchanged."""
    dims = list(range(len(view.shape)))
    return view.permute([*dims[:-2], dims[-1], dims[-2]])


def _mask(planner: Planner, softmax: fx.Node) -> View | None:
    """The mask as [..., queries, keys], contiguous along keys; a row for all queries has stride 0."""
    node = argument(softmax, "mask")
    if node is None:
        return None
    shape = planner.shape(softmax)
    view = planner.value(node)
    if view.shape[-1:] == shape[-1:] and view.strides[-1] == 1:
        return view.expand(shape)
    copy = dense(Storage("arena", planner.tensors[softmax].numel()), view.dtype, shape)
    planner.elementwise(Copy(), [view], copy, node)
    return copy


def _bias(planner: Planner, fusion: AttentionFusion) -> View | None:
    """What is added to the scores, as [..., queries, keys]."""
    if not fusion.adds:
        return None
    node = argument(fusion.rounding, fusion.bias_side)
    view = planner.value(node)
    return (view if view.strides[-1] == 1 else planner.materialize(node)).expand(planner.shape(fusion.softmax))


def _addition(fusion: AttentionFusion) -> Add:
    """The scores as operand a."""
    names = ("shift", "zero_point", "low", "high")
    zero_points = {"zero_point_a": 0, "zero_point_b": argument(fusion.rounding, f"zero_point_{fusion.bias_side}")}
    return Add(**zero_points, **{name: argument(fusion.rounding, name) for name in names})


def _addition_pointers(planner: Planner, fusion: AttentionFusion) -> list[tuple[Storage, int]]:
    sides = (fusion.scores_side, fusion.bias_side)
    views = [planner.value(argument(fusion.rounding, f"{name}_{side}")) for side in sides for name in ("pre_shift", "multiplier")]
    return [(view.storage, pointer_offset(view) * ITEM_SIZE[view.dtype]) for view in views]


def _matrices(lead: Sequence[Size], views: Sequence[View]) -> tuple[tuple[Size, ...], list[Operand]]:
    """The loops over all matrices, and each view as the kernels walk it: those loops, then rows and columns."""
    spread = [view.expand((*lead, *view.shape[-2:])) for view in views]
    starts = [_first_element(view, len(lead)) for view in spread]
    batch, walks = loop_nest(lead, starts)
    inner = [operand(view.dtype, view.shape[-2:], view.strides[-2:]) for view in spread]
    both = zip(walks, inner, strict=True)
    return batch, [Operand(walk.dtype, (*walk.strides, *part.strides), walk.offset + part.offset) for walk, part in both]


def _first_element(view: View, dims: int) -> View:
    """Of each matrix."""
    while len(view.shape) > dims:
        view = view.select(dims, 0)
    return view


def _pointer(view: View, lead: Sequence[Size]) -> tuple[Storage, int]:
    spread = view.expand((*lead, *view.shape[-2:])) if lead else view
    return view.storage, pointer_offset(spread) * ITEM_SIZE[view.dtype]


def _rounding_pointers(planner: Planner, rounding: fx.Node | None) -> list[tuple[Storage, int]]:
    if rounding is None:
        return []
    views = [planner.value(argument(rounding, name)) for name in DYADIC_PARAMETERS]
    return [(view.storage, pointer_offset(view) * ITEM_SIZE[view.dtype]) for view in views]


def _requantization(node: fx.Node | None) -> Requantization | None:
    if node is None:
        return None
    return Requantization(per_channel=False, **{name: argument(node, name) for name in ("form", "zero_point", "low", "high")})


def _required(node: fx.Node | None) -> Requantization:
    spec = _requantization(node)
    assert spec is not None  # attention is fused with both roundings
    return spec


def _dtype(planner: Planner, node: fx.Node) -> Any:
    return str(planner.tensors[node].dtype).removeprefix("torch.")
