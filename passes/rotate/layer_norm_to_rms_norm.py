"""``layer-norm-to-rms-norm``: the mean and the affine part of layer norms move into their neighbours.

    layer_norm(x) = gamma rms_norm(C x) + beta        C x = x - mean(x), which is linear; eps is the same
    C x           what makes x gives C x: C W, C b, rows of tables and constants likewise; sums, slices and pads pass C on
    gamma, beta   the layers that read the norm take them over: W diag(gamma), b + W beta

The weights of RMS norms move likewise. What is left, x / |x| up to a factor, commutes with rotations (QuaRot, arXiv 2404.00456, section 3;
SliceGPT, arXiv 2401.15024, section 3.2), where gamma does not.

Left alone, each with its reason:

1. A stream that anything but layer norms reads: its mean would be missing there. So the first stages of Swin, where a norm of four
   neighbours' channels reads it too.
2. A norm whose result not only layers read. In a post-norm transformer (BERT) that is every norm: the residual sum reads it, gamma and beta
   are part of the stream, and a rotation of it would have to pass diag(gamma). There is none that does unless all gammas are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.channels import Readers, readers_of
from qcompiler.ir.layers import write_layer
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.passes.rotate.merge import merge_into_makers
from qcompiler.passes.rotate.stream import Stream, place, stream_of
from qcompiler.pipeline.contract import Equivalent, Pass, PassContext, PassResult, Promise
from qcompiler.pipeline.rewrite import LEFT_ALONE

_aten = torch.ops.aten


@dataclass(frozen=True)
class LayerNormToRmsNorm(Pass):
    """Layer norms become RMS norms without weight: mean, scale and offset move into their neighbours (QuaRot)."""

    name: ClassVar[str] = "layer-norm-to-rms-norm"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Promise] = Equivalent(1e-4)

    def run(self, program: Program, context: PassContext) -> PassResult:
        work = edit.copy(program)
        notes = _layer_norms(work, self.name)
        notes += _rms_norms(work, self.name)
        if not any(modified for _, modified in notes):
            reasons = tuple(note for note, _ in notes) or ("nothing to do: no layer norm, no RMS norm with a weight",)
            return PassResult(program, False, reasons)
        edit.erase_dead(work)
        return PassResult(work, True, tuple(note for note, _ in notes))


Note = tuple[str, bool]  # what happened, and whether it changed the graph


def _layer_norms(work: Program, made_by: str) -> list[Note]:
    notes: list[Note] = []
    seen: set[fx.Node] = set()
    for norm in edit.calls(work.graph, _aten.layer_norm.default):
        source = norm.args[0]
        if norm in seen or not isinstance(source, fx.Node):
            continue
        if len(edit.argument(norm, "normalized_shape")) != 1:
            notes.append((f"{place(norm)} {LEFT_ALONE}: it normalizes over several dimensions", False))
            continue
        stream = stream_of(source, -1, centring=True)
        seen |= stream.layer_norms.keys()
        notes += _stream(work.graph_module, stream, made_by)
    return notes


def _stream(graph_module: fx.GraphModule, stream: Stream, made_by: str) -> list[Note]:
    """Centre a stream, and replace the layer norms on it whose affine part can go."""
    if stream.why_not is not None:
        return [(f"{stream.name} {LEFT_ALONE}: {stream.why_not}", False)]
    readers = {norm: readers_of(norm, -1) for norm in stream.layer_norms}
    declined = [(f"{place(norm)} {LEFT_ALONE}: {why}", False) for norm, found in readers.items() if (why := _why_not(norm, found))]
    taken = {norm: found for norm, found in readers.items() if _why_not(norm, found) is None}
    if not taken:
        return declined
    channels = stream.channels
    centre = torch.eye(channels, dtype=torch.float64) - 1.0 / channels
    merge_into_makers(graph_module, stream, centre, made_by)
    for norm, found in taken.items():
        _fold_affine(graph_module, norm, found, made_by)
        arguments = (norm.args[0], edit.argument(norm, "normalized_shape"), None, edit.argument(norm, "eps"))
        bare = edit.insert_call(
            norm.graph, _aten.rms_norm.default, arguments, before=norm, name=norm.name, provenance_from=[norm], made_by=made_by
        )
        edit.replace(norm, bare)
    return [(f"{stream.name}: {len(taken)} layer norms become RMS norms", True), *declined]


def _rms_norms(work: Program, made_by: str) -> list[Note]:
    notes: list[Note] = []
    for norm in edit.calls(work.graph, _aten.rms_norm.default):
        if edit.argument(norm, "weight") is None:
            continue
        readers = readers_of(norm, -1)
        why = _why_not(norm, readers)
        if why is None:
            _fold_affine(work.graph_module, norm, readers, made_by)
            edit.set_argument(norm, "weight", None)
        notes.append(
            (
                f"{place(norm)}: weight into {len(readers.layers)} layers" if why is None else f"{place(norm)} {LEFT_ALONE}: {why}",
                why is None,
            )
        )
    return notes


def _why_not(norm: fx.Node, readers: Readers) -> str | None:
    """Why the affine part cannot move into the layers that read the norm."""
    names = ("weight", "bias") if norm.target is _aten.layer_norm.default else ("weight",)
    affine = [edit.argument(norm, name) for name in names]
    if any(value is not None and not edit.is_constant(value) for value in affine):
        return "its weight is computed"
    if len(edit.argument(norm, "normalized_shape")) != 1:
        return "it normalizes over several dimensions"
    if norm.target is _aten.rms_norm.default:
        return next(iter(readers.reasons), "no layer reads it") if bool(readers.pinned.any()) or not readers.layers else None
    return readers.why_not_all()


def _fold_affine(graph_module: fx.GraphModule, norm: fx.Node, readers: Readers, made_by: str) -> None:
    """W (gamma x + beta) + b = (W diag(gamma)) x + (b + W beta)."""
    gamma = edit.constant_value(edit.argument(norm, "weight"))
    beta = edit.constant_value(edit.argument(norm, "bias")) if norm.target is _aten.layer_norm.default else None
    for reader in readers.layers:
        layer = reader.layer
        if beta is not None:
            layer = layer.add_bias(layer.product(reader.of_inputs(beta.double(), 0.0)))
        if gamma is not None:
            layer = layer.scale_inputs(reader.of_inputs(gamma.double(), 1.0))
        write_layer(graph_module, layer, made_by)
