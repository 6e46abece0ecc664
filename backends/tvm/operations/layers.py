"""Convolutions and linear layers: calls of their kernel for each sample, or for the rows of a matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.backends.tvm.fuse_layers import residual_channels
from qcompiler.backends.tvm.kernels import ITEM_SIZE, Activation, BitPlanes, ConvolutionKernel, Extent, Size
from qcompiler.backends.tvm.operations.handler import Handler
from qcompiler.backends.tvm.operations.windows import Window, window_of
from qcompiler.backends.tvm.templates.choice import predicted_cycles, weight_storage
from qcompiler.backends.tvm.templates.layout import instruction_set
from qcompiler.backends.tvm.templates.planes_layout import bit_planes
from qcompiler.backends.tvm.views import Storage, View, joined
from qcompiler.ir import edit
from qcompiler.ir.edit import argument, is_call
from qcompiler.ir.types import IntegerRange

if TYPE_CHECKING:
    from qcompiler.backends.tvm.fuse import Fusion
    from qcompiler.backends.tvm.planner import Planner

_aten, _qc = torch.ops.aten, torch.ops.qc

_BYTE = 8
_ROWS = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}


def joint_layers(planner: Planner, fusions: Sequence[Fusion]) -> None:
    """The calls of the kernels of neighbouring layers, one for as many as it is predicted to be no slower for than one for each."""
    runs = [[fusions[0]]]
    for fusion in fusions[1:]:
        together = [*runs[-1], fusion]
        if _cycles(planner, together) <= _cycles(planner, runs[-1]) + _cycles(planner, [fusion]):
            runs[-1] = together
        else:
            runs.append([fusion])
    for run in runs:
        _plan_layers(planner, run)


def _layer(planner: Planner, node: fx.Node) -> None:
    _plan_layers(planner, [planner.fusion(node)])


def _plan_layers(planner: Planner, fusions: Sequence[Fusion]) -> None:
    (_convolution if is_call(fusions[0].root, _qc.convolution.default) else _linear)(planner, fusions)


def _convolution(planner: Planner, fusions: Sequence[Fusion]) -> None:
    fusion = fusions[0]
    window = _window(planner, fusion)
    x = planner.feature_map(window.x, window.halo, window.pad_value, gaps=_reads_gaps(planner, fusion, window))
    residual = _residual(fusions, planner.feature_map)
    output = _output([planner.allocate(each.last) for each in fusions], 1)
    assert x.activation is not None and output.activation is not None  # feature maps have one
    geometry = _geometry(fusion, window)
    kernel = _kernel(planner, fusions, x.activation, residual.activation if residual is not None else None, output.activation, geometry)
    for sample in range(output.maxima[0]):
        _call(planner, fusions, kernel, [view for view in (x, residual) if view is not None], output, sample)


def _window(planner: Planner, fusion: Fusion) -> Window:
    window = window_of(planner, fusion.root)
    assert window is not None  # the root is a convolution
    return window


def _geometry(fusion: Fusion, window: Window) -> dict[str, Any]:
    return {
        "kernel": window.kernel,
        "stride": window.stride,
        "padding": (window.halo[0], window.halo[2]),
        "dilation": window.dilation,
        "groups": argument(fusion.root, "groups"),
    }


def _residual(fusions: Sequence[Fusion], place: Callable[[fx.Node], View]) -> View | None:
    """The residual operand of one layer, or of several the channels that theirs are parts of; ``place``: where a value lies."""
    node = fusions[0].residual
    if node is None or len(fusions) == 1:
        return None if node is None else place(node)
    channels = residual_channels(fusions)
    assert channels is not None  # layers with other residual operands are not joint
    whole = place(channels.value)
    return whole.slice(1 if is_call(fusions[0].root, _qc.convolution.default) else len(whole.shape) - 1, channels.start, channels.stop)


def _output(views: Sequence[View], dim: int) -> View:
    """Where one or more layers store, whose places are neighbours."""
    whole = views[0] if len(views) == 1 else joined(views, dim)
    assert whole is not None  # layers whose places are none are not joint
    return whole


def _cycles(planner: Planner, fusions: Sequence[Fusion]) -> float:
    """Predicted for one kernel for all of them, by the sizes of its values alone."""
    fusion, target = fusions[0], planner.target.name
    if not is_call(fusion.root, _qc.convolution.default):
        return predicted_cycles(linear_kernel(planner, *fusions), target)
    channels = sum(int(planner.tensors[each.last].shape[1]) for each in fusions)
    window, dtype = _window(planner, fusion), planner.rows_of(fusion.last).dtype
    (_, inputs, *sizes), extents = planner.tensors[window.x].shape, planner.tensors[fusion.last].shape[2:]
    x = Activation(sizes[0], sizes[1], inputs, planner.rows_of(window.x).dtype, window.halo)
    output = Activation(extents[0], extents[1], channels, dtype)
    residual = None if fusion.residual is None else replace(output, dtype=planner.rows_of(fusion.residual).dtype)
    return predicted_cycles(_kernel(planner, fusions, x, residual, output, _geometry(fusion, window)), target)


def _reads_gaps(planner: Planner, fusion: Fusion, window: Window) -> bool:
    """Whether some channels of a wider map are multiplied as fast as maps without gaps, whose kernel rows are one run of inputs."""
    groups, channels = argument(fusion.root, "groups"), int(planner.tensors[window.x].shape[1])
    return window.kernel[1] == 1 or groups > 1 or channels % instruction_set(planner.target.name).granule == 0


def _linear(planner: Planner, fusions: Sequence[Fusion]) -> None:
    fusion = fusions[0]
    x, residual = planner.rows(argument(fusion.root, "x")), _residual(fusions, planner.rows)
    output = _output([planner.allocate_rows(each.last) for each in fusions], len(planner.shape(fusion.last)) - 1)
    assert x.activation is not None and output.activation is not None  # rows have one
    rows = _dynamic_rows(planner.shape(fusion.last))
    kernel = _kernel(planner, fusions, x.activation, residual.activation if residual is not None else None, output.activation, _ROWS, rows)
    _call(planner, fusions, kernel, [view for view in (x, residual) if view is not None], output)


def linear_kernel(planner: Planner, *fusions: Fusion) -> ConvolutionKernel:
    """The kernel of a linear layer over the rows of matrices without gaps, or of several, by the sizes of its values alone."""
    fusion = fusions[0]
    x, output = planner.rows_of(argument(fusion.root, "x")), planner.rows_of(fusion.last)
    output = replace(output, channels=sum(planner.rows_of(each.last).channels for each in fusions))
    residual = replace(output, dtype=planner.rows_of(fusion.residual).dtype) if fusion.residual is not None else None
    return _kernel(planner, fusions, x, residual, output, _ROWS, _dynamic_rows(planner.shape(fusion.last)))


def linear_inputs(planner: Planner, fusion: Fusion) -> list[View]:
    """The matrices that such a kernel reads: input, [residual operand]."""
    return [planner.matrix(node) for node in (argument(fusion.root, "x"), fusion.residual) if node is not None]


def _kernel(
    planner: Planner,
    fusions: Sequence[Fusion],
    x: Activation,
    residual: Activation | None,
    output: Activation,
    geometry: Mapping[str, Any],
    rows: Extent | None = None,
) -> ConvolutionKernel:
    """Of layers that differ in their constants alone, with the weights as they are stored on the target."""
    fusion, per_channel = fusions[0], len(fusions) > 1 or _is_per_channel(planner, fusions[0])
    kernel = ConvolutionKernel(
        input=x,
        output=output,
        epilogue=fusion.kernel_epilogue(per_channel, residual),
        table=fusion.table is not None,
        rows=rows,
        **geometry,
    )
    planes = _bit_planes(planner, fusions) if fusion.weight_group == 0 else None
    return weight_storage(kernel, planner.target.name, max(map(_weight_bits, fusions)), fusion.weight_group, planes)


def _call(
    planner: Planner, fusions: Sequence[Fusion], kernel: ConvolutionKernel, inputs: Sequence[View], output: View, sample: int = 0
) -> None:
    pointers = [buffer_pointer(view, sample) for view in (*inputs, output)]
    nodes = [node for fusion in fusions for node in fusion.nodes]
    planner.call(kernel, [*pointers[:-1], *layer_parameters(planner, kernel, *fusions), pointers[-1]], *nodes)


def layer_parameters(planner: Planner, kernel: ConvolutionKernel, *fusions: Fusion) -> list[tuple[Storage, int]]:
    """Pointers to the packed parameters."""
    views = planner.packed(kernel, *(fusion.constants() for fusion in fusions), group=fusions[0].weight_group)
    return [(view.storage, 0) for view in views]


def _weight_bits(fusion: Fusion) -> int:
    """Bits of the weights, by their type, which the verifier has compared with the weights themselves."""
    quantized = fusion.constants()["weight"].meta.get("quantized")
    return quantized.integer.bits if quantized is not None else _BYTE


def _bit_planes(planner: Planner, fusions: Sequence[Fusion]) -> BitPlanes | None:
    """How weights and inputs are cut into bits, by the weights themselves and the range that is proven for the inputs."""
    fusion = fusions[0]
    kind = argument(fusion.root, "x").meta.get("quantized")
    if kind is None or kind.range is None:
        return None
    proven = kind.range
    if is_call(fusion.root, _qc.convolution.default) and any(argument(fusion.root, "padding")):
        pad_value = argument(fusion.root, "pad_value")
        proven = proven.union(IntegerRange(pad_value, pad_value))
    weights = [planner.constant(each.constants()["weight"]) for each in fusions]
    return bit_planes(torch.cat(weights).numpy(), proven.low, proven.high)


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
    return is_call(user, _qc.convolution.default, _qc.linear.default) and argument(user, "weight") is node


def _scale_groups(planner: Planner, node: fx.Node) -> None:
    """Nothing: its readers' kernels, or their packing, multiply codes by factors."""
    if planner.is_kept(node) or not all(_is_weight_of(node, user) for user in edit.users_of(node)):
        planner.decline(node, "a weight is a part of its layer's kernel and lies nowhere by itself; keep the layer's result instead")


HANDLERS: Mapping[object, Handler] = {
    _qc.scale_groups.default: _scale_groups,
    _qc.convolution.default: _layer,
    _qc.linear.default: _layer,
}
