"""Convolutions and linear layers: calls of their kernel for each sample, or for the rows of a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.backends.tvm.kernels import (
    ITEM_SIZE,
    ConvolutionKernel,
    Extent,
)
from qcompiler.backends.tvm.operations.handler import Handler
from qcompiler.backends.tvm.operations.windows import window_of
from qcompiler.backends.tvm.templates.choice import weight_storage
from qcompiler.backends.tvm.views import View
from qcompiler.ir import edit
from qcompiler.ir.edit import argument

if TYPE_CHECKING:
    from qcompiler.backends.tvm.fuse import Fusion
    from qcompiler.backends.tvm.planner import Planner

_aten, _qc = torch.ops.aten, torch.ops.qc

_BYTE = 8


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
    kernel = weight_storage(kernel, planner.target.name, _weight_bits(fusion), fusion.weight_group)
    inputs = [view for view in (x, residual) if view is not None]
    parameters = [(view.storage, 0) for view in planner.packed(kernel, fusion.constants(), fusion.weight_group)]
    pointers = [(view.storage, _map_start(view, sample)) for view in (*inputs, output)]
    planner.call(kernel, [*pointers[:-1], *parameters, pointers[-1]], *fusion.nodes)


def _weight_bits(fusion: Fusion) -> int:
    """Bits of the weights, by their type, which the verifier has compared with the weights themselves."""
    quantized = fusion.constants()["weight"].meta.get("quantized")
    return quantized.integer.bits if quantized is not None else _BYTE


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


def _is_weight_of(node: fx.Node, user: fx.Node) -> bool:
    return edit.is_call(user, _qc.convolution.default, _qc.linear.default) and argument(user, "weight") is node


def _scale_groups(planner: Planner, node: fx.Node) -> None:
    """Nothing: its readers' kernels, or their packing, multiply codes by factors."""
    if planner.is_kept(node) or not all(_is_weight_of(node, user) for user in edit.users_of(node)):
        planner.decline(node, "a weight is a part of its layer's kernel and lies nowhere by itself; keep the layer's result instead")


HANDLERS: Mapping[object, Handler] = {
    _qc.scale_groups.default: _scale_groups,
    _qc.convolution.default: _convolution,
    _qc.linear.default: _linear,
}
