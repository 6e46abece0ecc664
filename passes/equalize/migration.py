"""A value's channels rewritten as x = s x' + t: the op that makes them gives x', and the layers that read them take s and t over.

layer norm      gamma / s, (beta - t) / s          rms norm (t = 0)      gamma / s
layer           W / s, (b - t) / s                 along its output channels
reader          W x + b = (W s) x' + (b + W t)     along its input channels
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import derive, describe
from qcompiler.passes.equalize.channels import Readers, readers_of
from qcompiler.passes.equalize.weights import CHANNEL_AXIS, as_layer, set_constant, write_layer
from qcompiler.pipeline.rewrite import LEFT_ALONE

_aten = torch.ops.aten

NORMS = (_aten.layer_norm.default, _aten.rms_norm.default)


@dataclass(frozen=True)
class Source:
    """A call whose result can be scaled channel by channel. ``axis``: of the channels, from the last dimension."""

    node: fx.Node
    axis: int

    @cached_property
    def readers(self) -> Readers:
        return readers_of(self.node, self.axis)

    @property
    def channels(self) -> int:
        return self.readers.channels

    @property
    def takes_shifts(self) -> bool:
        return self.node.target is not _aten.rms_norm.default

    @property
    def name(self) -> str:
        return describe(self.node)


def norm_sources(program: Program) -> list[Source]:
    """Layer and RMS norms over the last dimension, whose weights (if any) are constants."""
    return [Source(node, -1) for node in edit.calls(program.graph, *NORMS) if _is_foldable(node)]


def layer_sources(program: Program) -> list[Source]:
    """Layers with constant weights whose channels end in other such layers, some of them at least."""
    sources = [Source(node, CHANNEL_AXIS[node.target]) for node in edit.calls(program.graph, *CHANNEL_AXIS) if as_layer(node) is not None]  # type: ignore[index]  # op overloads
    return [source for source in sources if source.readers.layers]


def move(graph_module: fx.GraphModule, source: Source, scale: torch.Tensor, shift: torch.Tensor, made_by: str) -> None:
    """Rewrite x = scale x' + shift, both float64 [channels]; scale 1 and shift 0 where the source's readers pin a channel."""
    _change_source(graph_module, source.node, scale, shift, made_by)
    for reader in source.readers.layers:
        layer = as_layer(reader.layer.node)  # as it is now: an earlier move may have changed it
        assert layer is not None  # the readers were found as layers
        constant = layer.product(reader.of_inputs(shift, 0.0))
        write_layer(graph_module, layer.scale_inputs(reader.of_inputs(scale, 1.0)).add_bias(constant), made_by)


def left_alone(source: Source, reason: str) -> str:
    """The note of a candidate that was declined."""
    return f"{source.name} {LEFT_ALONE}: {reason}"


def _is_foldable(node: fx.Node) -> bool:
    shape = edit.argument(node, "normalized_shape")
    constants = [edit.argument(node, "weight")] + ([edit.argument(node, "bias")] if node.target is _aten.layer_norm.default else [])
    return len(shape) == 1 and all(value is None or edit.constant_value(value) is not None for value in constants)


def _change_source(graph_module: fx.GraphModule, node: fx.Node, scale: torch.Tensor, shift: torch.Tensor, made_by: str) -> None:
    layer = as_layer(node)
    if layer is not None:
        write_layer(graph_module, layer.add_bias(-shift).scale_outputs(1.0 / scale), made_by)
        return
    dtype = node.meta["val"].dtype
    weight = _values(node, "weight", torch.ones_like(scale)) / scale
    set_constant(graph_module, node, "weight", weight.to(dtype), f"{node.name}_weight", made_by)
    if node.target is _aten.layer_norm.default:
        bias = (_values(node, "bias", torch.zeros_like(shift)) - shift) / scale
        if edit.argument(node, "bias") is not None or bool(bias.any()):
            set_constant(graph_module, node, "bias", bias.to(dtype), f"{node.name}_bias", made_by)
    node.meta["provenance"] = derive([node], made_by)


def _values(node: fx.Node, name: str, otherwise: torch.Tensor) -> torch.Tensor:
    """The constant behind an argument, in float64."""
    constant = edit.constant_value(edit.argument(node, name))
    return otherwise if constant is None else constant.double()
