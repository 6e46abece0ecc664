"""A value's channels rewritten as x = s x' + t: the op that makes them gives x', and the layers that read them take s and t over.

layer norm      gamma / s, (beta - t) / s          rms norm (t = 0)      gamma / s
layer           W / s, (b - t) / s                 along its output channels
reader          W x + b = (W s) x' + (b + W t)     along its input channels
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import fx

from qcompiler.calibration.statistics import Observation, ObserverSpec, StatisticRequest
from qcompiler.ir import edit
from qcompiler.ir.channels import Readers, readers_of
from qcompiler.ir.layers import CHANNEL_AXIS, as_layer, channel_axis, write_layer
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import derive, provenance_of
from qcompiler.pipeline.contract import Pass, PassContext, PassResult
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
    def reader_names(self) -> str:
        return ", ".join(f"'{reader.node.name}'" for reader in self.readers.layers)

    @property
    def name(self) -> str:
        location = provenance_of(self.node).location
        return f"{self.node.name} ({location})" if location else self.node.name


def norm_sources(program: Program) -> list[Source]:
    """Layer and RMS norms over the last dimension, whose weights (if any) are constants."""
    return [Source(node, -1) for node in edit.calls(program.graph, *NORMS) if _is_foldable(node)]


def layer_sources(program: Program) -> list[Source]:
    """Layers with constant weights whose channels end in other such layers, some of them at least."""
    sources = [Source(node, channel_axis(node)) for node in edit.calls(program.graph, *CHANNEL_AXIS) if as_layer(node) is not None]
    return [source for source in sources if source.readers.layers]


def move(graph_module: fx.GraphModule, source: Source, scale: torch.Tensor, shift: torch.Tensor, made_by: str) -> None:
    """Rewrite x = scale x' + shift, both float64 [channels]; scale 1 and shift 0 where the source's readers pin a channel."""
    take_shift_over(graph_module, source.readers, shift, made_by)
    _change_source(graph_module, source.node, scale, shift, made_by)
    for reader in source.readers.layers:
        write_layer(graph_module, reader.layer.scale_inputs(reader.of_inputs(scale, 1.0)), made_by)


@dataclass(frozen=True)
class Affine:
    """x = scale x' + shift for each channel, and what to tell the user about it; both float64 [channels]."""

    scale: torch.Tensor
    shift: torch.Tensor
    note: str


@dataclass(frozen=True)
class MigrationPass(Pass):
    """One affine map for each source that it finds; where it finds none, or declines all, the program stays."""

    @abstractmethod
    def sources(self, program: Program) -> list[Source]:
        """The candidates, in topological order."""

    @abstractmethod
    def declines(self, source: Source) -> str | None:
        """Why this candidate is left alone (one clause), or None."""

    @abstractmethod
    def affine(self, source: Source, seen: Observation) -> Affine | None:
        """What to do with the source, whose channels have the ranges ``seen``; None where nothing would change."""

    def observer(self, source: Source) -> ObserverSpec | None:
        """How the ranges of the channels are estimated; None where none are needed."""
        return ObserverSpec("min-max", axis=source.axis)

    def statistics(self, program: Program) -> Sequence[StatisticRequest]:
        taken = (source for source in self.sources(program) if self.declines(source) is None)
        return [request for source in taken for request in _requests(source, self.observer(source))]

    def run(self, program: Program, context: PassContext) -> PassResult:
        candidates = [(source, self.declines(source)) for source in self.sources(program)]
        declined = tuple(left_alone(source, reason) for source, reason in candidates if reason is not None)
        if len(declined) == len(candidates):
            return PassResult(program, False, declined or ("nothing to do: no value that layers with constant weights read",))
        work = edit.copy(program)
        done = self.rewrite([source for source in self.sources(work) if self.declines(source) is None], work, context)
        if not done:
            return PassResult(program, False, ("nothing to do: the channels are alike", *declined))
        edit.erase_dead(work)
        return PassResult(work, True, (*done, *declined))

    def rewrite(self, sources: Sequence[Source], work: Program, context: PassContext) -> tuple[str, ...]:
        """Move the channels of each source in turn; a note for each that changed."""
        notes = []
        for source in sources:
            affine = self.affine(source, _combined(source, self.observer(source), context))
            if affine is not None:
                notes.append(f"{source.name} into {source.reader_names}: {affine.note}")
                move(work.graph_module, source, affine.scale, affine.shift, self.name)
        return tuple(notes)


def _requests(source: Source, spec: ObserverSpec | None) -> list[StatisticRequest]:
    """A norm is observed itself. Of a layer's channels it is what the readers get that counts, after activations and pools."""
    if spec is None:
        return []
    if source.node.target in NORMS:
        return [StatisticRequest(source.node.name, spec)]
    return [StatisticRequest(reader.value.name, replace(spec, axis=reader.layer.axis)) for reader in source.readers.layers]


def _combined(source: Source, spec: ObserverSpec | None, context: PassContext) -> Observation:
    """The ranges of the source's channels over all its readers; [0, 0] for a channel that none of them reads."""
    if source.node.target in NORMS and spec is not None:
        return context.statistics[source.node.name]
    low, high, mean, deviation = np.zeros((4, source.channels + 1))
    for reader in source.readers.layers if spec is not None else ():
        seen = context.statistics[reader.value.name]
        numbers = reader.channel.numpy()
        np.minimum.at(low, numbers, seen.low)
        np.maximum.at(high, numbers, seen.high)
        if seen.mean:  # readers of one channel see the same values, or a part of them
            mean[numbers], deviation[numbers] = seen.mean, seen.deviation
    columns = (tuple(column[:-1].tolist()) for column in (low, high, mean, deviation))
    return Observation(next(columns), next(columns), source.axis, next(columns), next(columns))


def left_alone(source: Source, reason: str) -> str:
    """The note of a candidate that was declined."""
    return f"{source.name} {LEFT_ALONE}: {reason}"


def take_shift_over(graph_module: fx.GraphModule, readers: Readers, shift: torch.Tensor, made_by: str) -> None:
    """The layers get x - shift where they got x: b + W shift."""
    for reader in readers.layers:
        layer = reader.layer
        write_layer(graph_module, layer.add_bias(layer.product(reader.of_inputs(shift, 0.0))), made_by)


def sources_in_order(program: Program) -> list[Source]:
    """Norms and layers, as they stand in the graph."""
    found = {source.node: source for source in (*norm_sources(program), *layer_sources(program))}
    return [found[node] for node in program.graph.nodes if node in found]


def magnitudes(seen: Observation) -> torch.Tensor:
    """max |x| of each channel, float64."""
    return torch.tensor(seen.largest_magnitude, dtype=torch.float64)


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
    edit.set_constant(graph_module, node, "weight", weight.to(dtype), f"{node.name}_weight", made_by)
    if node.target is _aten.layer_norm.default:
        bias = (_values(node, "bias", torch.zeros_like(shift)) - shift) / scale
        if edit.argument(node, "bias") is not None or bool(bias.any()):
            edit.set_constant(graph_module, node, "bias", bias.to(dtype), f"{node.name}_bias", made_by)
    node.meta["provenance"] = derive([node], made_by)


def _values(node: fx.Node, name: str, otherwise: torch.Tensor) -> torch.Tensor:
    """The constant behind an argument, in float64."""
    constant = edit.constant_value(edit.argument(node, name))
    return otherwise if constant is None else constant.double()
