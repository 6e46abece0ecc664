"""``rotate-mlp``: an online Hadamard transform before the second matrix product of an MLP, its inverse merged into that product's weight.

    W f(x) + b  =  (W H / n) (H^T f(x)) + b          y = qc.hadamard(f(x)) is f(x) H for rows, unnormalized: H H^T = n I

Between the function f (GELU, SiLU, a gate) and the product nothing can be merged into what comes before: f is not linear. So the
transform is computed, in integers: log2(n) additions for each element, where the product that follows costs as many as it has outputs.
The massive values that a few channels of f(x) take become shares of all channels. Source: QuaRot (arXiv 2404.00456), section 4, stage 1c.

What is an MLP's second product is decided by structure: a linear layer with constant weights whose input, through nothing but movement,
comes from an elementwise function or a gate (a product of two computed values). ``inputs=norms`` takes the layers that read a norm whose
result the residual sum reads too: in post-norm transformers that is all that can be done for them, as the norm's scale and offset are part
of the stream (``layer-norm-to-rms-norm`` says so). ``inputs=all``: both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import fx

from qcompiler.arithmetic.hadamard import block_of, hadamard
from qcompiler.ir import edit, elementwise
from qcompiler.ir.channels import MOVES
from qcompiler.ir.layers import as_layer, is_layer, write_layer
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.passes.rotate.merge import layer_of
from qcompiler.passes.rotate.stream import NORMS, place
from qcompiler.pipeline.contract import Equivalent, Pass, PassContext, PassResult, Promise
from qcompiler.pipeline.rewrite import LEFT_ALONE

_aten, _qc = torch.ops.aten, torch.ops.qc

# Smaller blocks spread an outlier over too few channels to be worth a pass over the values.
_SMALLEST_BLOCK = 8


@dataclass(frozen=True)
class RotateMlp(Pass):
    """An online Hadamard transform of what the second product of an MLP reads, undone in its weight (QuaRot).

    Options:
        inputs: ``functions`` (of an elementwise function or a gate: MLPs), ``norms`` (of a norm that the residual sum reads too: post-norm
            transformers), or ``all``.
        block: channels that one transform mixes; none: as many as there is a Hadamard matrix for.
    """

    name: ClassVar[str] = "rotate-mlp"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Promise] = Equivalent(1e-4)

    inputs: Literal["functions", "norms", "all"] = "functions"
    block: int | None = None

    def run(self, program: Program, context: PassContext) -> PassResult:
        work = edit.copy(program)
        done, declined = [], []
        for source, layers in self._sources(work.graph).items():
            why = self._why_not(source, layers)
            if why is not None:
                declined.append(f"{place(source)} {LEFT_ALONE}: {why}")
                continue
            block = self._block(_channels(source))
            _rotate(work.graph_module, source, layers, block, self.name)
            count = _channels(source) // block
            blocks = f"{count} blocks of {block}" if count > 1 else f"{block} channels"
            done.append(f"{place(source)}: {blocks}, read by {', '.join(place(layer) for layer in layers)}")
        if not done:
            reason = "nothing to do: no linear layer with constant weights reads a function or a gate"
            return PassResult(program, False, tuple(declined) or (reason,))
        edit.erase_dead(work)
        return PassResult(work, True, (*done, *declined))

    def _sources(self, graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
        """What linear layers read, if it is of the kind asked for, with those layers."""
        found: dict[fx.Node, list[fx.Node]] = {}
        for layer in graph.nodes:
            source = layer.args[0] if is_layer(layer) else None
            if isinstance(source, fx.Node) and as_layer(layer) is not None and self._is_asked_for(source):
                found.setdefault(source, []).append(layer)
        return found

    def _is_asked_for(self, source: fx.Node) -> bool:
        origin = _origin(source)
        of_function = _is_function(origin) or _is_gate(origin)
        of_norm = origin.target in NORMS and any(user.target is _aten.add.Tensor for user in origin.users)
        return (of_function and self.inputs != "norms") or (of_norm and self.inputs != "functions")

    def _why_not(self, source: fx.Node, layers: list[fx.Node]) -> str | None:
        odd = [layer for layer in layers if layer.target is not _aten.linear.default]
        if odd:
            return f"{place(odd[0])} is no linear layer: its channels are not along the last dimension"
        size = self._block(_channels(source))
        if size < _SMALLEST_BLOCK or _channels(source) % size:
            return f"{_channels(source)} channels have no blocks of {self.block or _SMALLEST_BLOCK} with a Hadamard matrix"
        return None

    def _block(self, channels: int) -> int:
        return block_of(channels if self.block is None else self.block, online=True)


def _rotate(graph_module: fx.GraphModule, source: fx.Node, layers: list[fx.Node], block: int, made_by: str) -> None:
    """All layers that read the value read its transform."""
    rotated = edit.insert_call(
        graph_module.graph,
        _qc.hadamard.default,
        (source, block),
        after=source,
        name=f"{source.name}_rotated",
        provenance_from=[source],
        made_by=made_by,
    )
    for layer in layers:
        layer.args = (rotated, *layer.args[1:])
        known = layer_of(layer)
        inverse = hadamard(known.weight.squeeze(-1), block) / block  # W H / n; of a linear layer, whose taps are one
        write_layer(graph_module, replace(known, weight=inverse.unsqueeze(-1)), made_by)


def _channels(source: fx.Node) -> int:
    return int(source.meta["val"].shape[-1])


def _origin(value: fx.Node) -> fx.Node:
    """Where the elements of a value were computed, before they were moved."""
    while value.target in MOVES and isinstance(value.args[0], fx.Node):
        value = value.args[0]
    return value


def _is_function(node: fx.Node) -> bool:
    return node.op == "call_function" and (elementwise.is_function(node) or node.target in elementwise.CLAMPS) and not _scales(node)


def _scales(node: fx.Node) -> bool:
    return node.target in (_aten.mul.Tensor, _aten.div.Tensor)


def _is_gate(node: fx.Node) -> bool:
    operands = node.args[:2]
    return node.target is _aten.mul.Tensor and all(isinstance(each, fx.Node) and each.op != "get_attr" for each in operands)
