"""Convolutions and linear layers: calls of their kernel for each sample, or for the rows of a matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.backends.tvm.kernels import ITEM_SIZE, Activation, BitPlanes, ConvolutionKernel, Extent, Size
from qcompiler.backends.tvm.operations.handler import Handler
from qcompiler.backends.tvm.operations.windows import Window, window_of
from qcompiler.backends.tvm.templates.choice import weight_storage
from qcompiler.backends.tvm.templates.layout import instruction_set
from qcompiler.backends.tvm.templates.planes_layout import bit_planes
from qcompiler.backends.tvm.views import Storage, View
from qcompiler.ir import edit
from qcompiler.ir.edit import argument
from qcompiler.ir.types import IntegerRange

if TYPE_CHECKING:
    from qcompiler.backends.tvm.fuse import Fusion
    from qcompiler.backends.tvm.planner import Planner

_aten, _qc = torch.ops.aten, torch.ops.qc

_BYTE = 8
_ROWS = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}


def _convolution(planner: Planner, node: fx.Node) -> None:
    fusion = planner.fusion(node)
    window = window_of(planner, fusion.root)
    assert window is not None  # the root is a convolution
    x = planner.feature_map(window.x, window.halo, window.pad_value, gaps=_reads_gaps(planner, fusion, window))
    residual = planner.feature_map(fusion.residual) if fusion.residual is not None else None
    output = planner.allocate(node)
    geometry = {
        "kernel": window.kernel,
        "stride": window.stride,
        "padding": (window.halo[0], window.halo[2]),
        "dilation": window.dilation,
        "groups": argument(fusion.root, "groups"),
    }
    assert x.activation is not None and output.activation is not None  # feature maps have one
    kernel = _kernel(planner, fusion, x.activation, residual.activation if residual is not None else None, output.activation, geometry)
    for sample in range(output.maxima[0]):
        _call(planner, fusion, kernel, [view for view in (x, residual) if view is not None], output, sample)


def _reads_gaps(planner: Planner, fusion: Fusion, window: Window) -> bool:
    """Whether some channels of a wider map are multiplied as fast as maps without gaps, whose kernel rows are one run of inputs."""
    groups, channels = argument(fusion.root, "groups"), int(planner.tensors[window.x].shape[1])
    return window.kernel[1] == 1 or groups > 1 or channels % instruction_set(planner.target.name).granule == 0


def _linear(planner: Planner, node: fx.Node) -> None:
    fusion = planner.fusion(node)
    inputs = [planner.rows(value) for value in _matrices_read(fusion)]
    output = planner.allocate_rows(node)
    x, *residuals, y = (view.activation for view in (*inputs, output))
    assert x is not None and y is not None  # rows have one
    kernel = _kernel(planner, fusion, x, residuals[0] if residuals else None, y, _ROWS, _dynamic_rows(planner.shape(node)))
    _call(planner, fusion, kernel, inputs, output)


def linear_kernel(planner: Planner, fusion: Fusion) -> ConvolutionKernel:
    """The kernel of a linear layer over the rows of matrices without gaps, by the sizes of its values alone."""
    residual = planner.rows_of(fusion.residual) if fusion.residual is not None else None
    x, output = planner.rows_of(argument(fusion.root, "x")), planner.rows_of(fusion.last)
    return _kernel(planner, fusion, x, residual, output, _ROWS, _dynamic_rows(planner.shape(fusion.last)))


def linear_inputs(planner: Planner, fusion: Fusion) -> list[View]:
    """The matrices that such a kernel reads: input, [residual operand]."""
    return [planner.matrix(node) for node in _matrices_read(fusion)]


def _matrices_read(fusion: Fusion) -> list[fx.Node]:
    return [node for node in (argument(fusion.root, "x"), fusion.residual) if node is not None]


def _kernel(
    planner: Planner,
    fusion: Fusion,
    x: Activation,
    residual: Activation | None,
    output: Activation,
    geometry: Mapping[str, Any],
    rows: Extent | None = None,
) -> ConvolutionKernel:
    """With its weights as they are stored on the target."""
    kernel = ConvolutionKernel(
        input=x,
        output=output,
        epilogue=fusion.kernel_epilogue(_is_per_channel(planner, fusion), residual),
        table=fusion.table is not None,
        rows=rows,
        **geometry,
    )
    planes = _bit_planes(planner, fusion) if fusion.weight_group == 0 else None
    return weight_storage(kernel, planner.target.name, _weight_bits(fusion), fusion.weight_group, planes)


def _call(planner: Planner, fusion: Fusion, kernel: ConvolutionKernel, inputs: Sequence[View], output: View, sample: int = 0) -> None:
    pointers = [buffer_pointer(view, sample) for view in (*inputs, output)]
    planner.call(kernel, [*pointers[:-1], *layer_parameters(planner, fusion, kernel), pointers[-1]], *fusion.nodes)


def layer_parameters(planner: Planner, fusion: Fusion, kernel: ConvolutionKernel) -> list[tuple[Storage, int]]:
    """Pointers to the packed parameters."""
    return [(view.storage, 0) for view in planner.packed(kernel, fusion.constants(), fusion.weight_group)]


def _weight_bits(fusion: Fusion) -> int:
    """Bits of the weights, by their type, which the verifier has compared with the weights themselves."""
    quantized = fusion.constants()["weight"].meta.get("quantized")
    return quantized.integer.bits if quantized is not None else _BYTE


def _bit_planes(planner: Planner, fusion: Fusion) -> BitPlanes | None:
    """How weights and inputs are cut into bits, by the weights themselves and the range that is proven for the inputs."""
    kind = argument(fusion.root, "x").meta.get("quantized")
    if kind is None or kind.range is None:
        return None
    proven = kind.range
    if edit.is_call(fusion.root, _qc.convolution.default) and any(argument(fusion.root, "padding")):
        pad_value = argument(fusion.root, "pad_value")
        proven = proven.union(IntegerRange(pad_value, pad_value))
    return bit_planes(planner.constant(fusion.constants()["weight"]).numpy(), proven.low, proven.high)


def _dynamic_rows(shape: Sequence[Size]) -> Extent | None:
    """The dynamic size that is the number of rows; where it counts groups of rows, or rows of groups, all of the maximum are computed."""
    lead = [size for size in shape[:-1] if size != 1]
    return lead[0] if len(lead) == 1 and isinstance(lead[0], Extent) else None


def _is_per_channel(planner: Planner, fusion: Fusion) -> bool:
    """Whether any factor of the accumulator differs between channels."""
    roles = ("pre_shift", "multiplier", "shift", "pre_shift_a", "multiplier_a")
    return any(planner.tensors[node].numel() > 1 for role, node in fusion.constants().items() if role in roles)


def buffer_pointer(view: View, sample: int = 0) -> tuple[Storage, int]:
    """To a sample's whole buffer, halo included."""
    assert view.activation is not None  # feature maps and matrices have one
    start = view.offset - view.activation.origin + (sample * view.strides[0] if sample else 0)
    return view.storage, start * ITEM_SIZE[view.dtype]


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
