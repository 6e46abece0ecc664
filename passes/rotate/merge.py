"""A linear map of the channels, merged into what makes a stream and what reads it. All products in float64, rounded once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.layers import Layer, as_layer, write_layer
from qcompiler.ir.provenance import derive
from qcompiler.passes.rotate.stream import Constant, Stream

_aten = torch.ops.aten


def merge_into_makers(graph_module: fx.GraphModule, stream: Stream, matrix: torch.Tensor, made_by: str) -> None:
    """Every value x of the stream becomes matrix @ x, as far as its makers can do it; float64 [channels, channels]."""
    for node in stream.makers:
        write_layer(graph_module, layer_of(node).mix_outputs(matrix), made_by)
    for table in stream.tables:
        _replace(graph_module, table, "weight", lambda rows: rows @ matrix.T, made_by)
    for constant in stream.constants:
        _mix_constant(graph_module, constant, matrix, made_by)


def merge_into_readers(graph_module: fx.GraphModule, stream: Stream, inverse: torch.Tensor, made_by: str) -> None:
    """The layers that read x get W inverse where they had W."""
    for node in stream.readers:
        write_layer(graph_module, layer_of(node).mix_inputs(inverse), made_by)


def layer_of(node: fx.Node) -> Layer:
    """With its weights as they are now."""
    layer = as_layer(node)
    assert layer is not None  # it was found as one
    return layer


def _mix_constant(graph_module: fx.GraphModule, constant: Constant, matrix: torch.Tensor, made_by: str) -> None:
    axis, channels = constant.axis, matrix.shape[0]

    def mixed(values: torch.Tensor) -> torch.Tensor:
        missing = -axis - values.dim()
        values = values.reshape(*[1] * missing, *values.shape)
        values = values.expand(*(channels if d == values.dim() + axis else size for d, size in enumerate(values.shape)))
        return (values.movedim(axis, -1) @ matrix.T).movedim(-1, axis)

    if constant.argument == "tensors":
        _replace_parts(graph_module, constant.user, mixed, made_by)
    else:
        _replace(graph_module, constant.user, constant.argument, mixed, made_by)


def _replace(
    graph_module: fx.GraphModule, node: fx.Node, argument: str, change: Callable[[torch.Tensor], torch.Tensor], made_by: str
) -> None:
    old = edit.argument(node, argument)
    values = edit.constant_value(old)
    assert values is not None  # it was found as one
    edit.set_constant(graph_module, node, argument, change(values.double()).to(values.dtype), str(old.target), made_by)
    node.meta["provenance"] = derive([node], made_by)


def _replace_parts(graph_module: fx.GraphModule, node: fx.Node, change: Callable[[torch.Tensor], torch.Tensor], made_by: str) -> None:
    """The constants among the operands of a concatenation."""
    parts = []
    for part in edit.argument(node, "tensors"):
        values = edit.constant_value(part)
        if values is not None:
            changed = change(values.double()).to(values.dtype).contiguous()
            part = edit.add_constant(graph_module, str(part.target), changed, provenance_from=[part], made_by=made_by)
        parts.append(part)
    node.args = (parts, *node.args[1:])
