"""``rotate-residual-stream``: every value of a residual stream becomes R x, at no cost.

    makers      R W, R b along the output channels; rows of tables and constants that are added likewise
    norms       R x / |R x| = R (x / |x|): an RMS norm without weight passes R on
    readers     W R^T along the input channels

The channels of the stream and of what its norms give are mixed: a few large ones, which decide the scale of an activation with one scale,
become shares of many. Source: QuaRot (arXiv 2404.00456), section 4, stage 1; SliceGPT, theorem 1.

The passes before: ``layer-norm-to-rms-norm``. Streams without any norm (the linear bottlenecks of MobileNet and EfficientNet) are rotated
likewise. Left alone, with the reason: a stream that is an input or output of the program, that a layer norm or an elementwise function
(relu: the residual blocks of ResNet) reads, whose channels a layer takes in groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.layers import channel_axis, is_layer
from qcompiler.ir.program import Program
from qcompiler.passes.rotate.learned import Objective
from qcompiler.passes.rotate.merge import layer_of, merge_into_makers, merge_into_readers
from qcompiler.passes.rotate.rotating import RotatingPass
from qcompiler.passes.rotate.samples import sample_rows
from qcompiler.passes.rotate.stream import NORMS, SUMS, Stream, stream_of
from qcompiler.pipeline.contract import PassContext, PassResult
from qcompiler.pipeline.rewrite import LEFT_ALONE

_aten = torch.ops.aten

# Fewer channels have no outliers to spread.
_FEWEST_CHANNELS = 4


@dataclass(frozen=True)
class RotateResidualStream(RotatingPass):
    """A rotation of the residual stream, merged into all layers that make or read it (QuaRot, SpinQuant, DuQuant).

    Options:
        kind: ``hadamard``, ``randomized``, ``block``, ``pca`` or ``learned``, see ``passes/rotate/matrices.py``; the last three follow
            the calibration data.
        seed: of the signs of ``randomized`` and ``learned``.
        block: channels of a block, for ``block``.
        steps: of ``learned``.
        w, a: bits of weights and activations that ``learned`` rounds to.
    """

    name: ClassVar[str] = "rotate-residual-stream"

    def run(self, program: Program, context: PassContext) -> PassResult:
        found = list(_streams(program))
        declined = tuple(f"{stream.name} {LEFT_ALONE}: {stream.why_not}" for stream in found if stream.why_not is not None)
        taken = [stream for stream in found if stream.why_not is None]
        if not taken:
            return PassResult(program, False, declined or ("nothing to do: no residual stream of layers with constant weights",))
        read = {value.name: axis for stream in taken for value, axis in _read_values(stream).items()} if self.needs_samples else {}
        rows = sample_rows(program, read, context.data, self.name) if read else {}
        work = edit.copy(program)
        notes = []
        for stream in [stream for stream in _streams(work) if stream.why_not is None]:
            objective = _objective(stream, rows) if rows else None
            matrix = self.matrix(stream.channels, objective)
            merge_into_makers(work.graph_module, stream, matrix, self.name)
            merge_into_readers(work.graph_module, stream, matrix.T, self.name)
            ends = f"{len(stream.makers) + len(stream.tables) + len(stream.constants)} that make it, {len(stream.readers)} that read it"
            notes.append(f"{stream.name}: {self.describe(stream.channels)}; {ends}")
        edit.erase_dead(work)
        return PassResult(work, True, (*notes, *declined))


def _streams(program: Program) -> Iterator[Stream]:
    """Each stream once: what norms read, then what is left of sums."""
    seen: set[fx.Node] = set()
    starts = [(node.args[0], -1) for node in edit.calls(program.graph, *NORMS)]
    starts += [(node, axis) for node in edit.calls(program.graph, *SUMS) for axis in _axes_of_sum(node)]
    for start, axis in starts:
        if isinstance(start, fx.Node) and start.op != "get_attr" and start not in seen:
            stream = stream_of(start, axis, centring=False)
            seen |= stream.values.keys()
            if stream.channels >= _FEWEST_CHANNELS and (stream.readers or stream.why_not):
                yield stream


def _axes_of_sum(node: fx.Node) -> list[int]:
    """Where the channels of a residual sum are: where the layer that made one of the operands has them."""
    operands = [operand for operand in node.args[:2] if isinstance(operand, fx.Node) and operand.op != "get_attr"]
    if len(operands) < 2:
        return []
    return [channel_axis(operand) for operand in operands if is_layer(operand)][:1]


def _read_values(stream: Stream) -> dict[fx.Node, int]:
    """What the layers read, and the axis of its channels."""
    sources = dict.fromkeys(reader.args[0] for reader in stream.readers)
    return {source: stream.values[source] for source in sources if isinstance(source, fx.Node)}


def _objective(stream: Stream, rows: dict[str, torch.Tensor]) -> Objective:
    """All that is read of the stream, side by side, and all the weights that read it."""
    samples = torch.cat([rows[value.name] for value in _read_values(stream)])
    weights = [layer_of(reader).weight.squeeze(0).movedim(1, -1).reshape(-1, stream.channels) for reader in stream.readers]
    return Objective(samples, weights)
