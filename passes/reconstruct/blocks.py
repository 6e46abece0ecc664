"""Blocks: spans of the graph between consecutive cut points, found by structure alone.

A *cut point* is a node through which all data flow passes: no value that was computed before it is read after it. The sum of a residual
block is one, what lies on either branch is not. Data are float values; what follows from integer inputs alone (attention masks) may bypass
a cut, as it can be computed anew from the inputs. Of the cut points those serve that the float program knows under the same name and
whose first dimension is the batch.

Between two cut points lies a span. A span without weighted layers joins the one before it where it keeps the value's shape (an activation,
a normalization after the sum), else the one after it (flattening, pooling); the option ``least`` joins spans until each has so many layers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.errors import PassError
from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.passes.reconstruct.layers import QuantizedLayer

_aten, _qc = torch.ops.aten, torch.ops.qc
_ROUNDING = (_qc.quantize.default, _qc.dequantize.default)


@dataclass(frozen=True, eq=False)
class Block:
    """``sources``: the nodes whose values go in; ``outputs``: those that come out; both exist in the float program under the same names."""

    sources: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    layers: tuple[QuantizedLayer, ...]

    @property
    def name(self) -> str:
        return self.outputs[0].name


def find_blocks(program: Program, reference: Program, layers: Sequence[QuantizedLayer], least: int = 1) -> list[Block]:
    """The blocks of a QDQ program in order; the last one ends at the program's outputs."""
    graph = program.graph
    position = {node: number for number, node in enumerate(graph.nodes)}
    layer_at = {layer.node: layer for layer in layers}
    ends: list[tuple[fx.Node, ...]] = [(cut,) for cut in _cut_points(graph, reference)]
    outputs = _float_outputs(graph)
    if not ends or ends[-1] != outputs:
        ends.append(outputs)
    sources = tuple(node for node in float_inputs(graph) if (node,) != ends[0])
    if not sources:
        sources, ends = ends[0], ends[1:]
    spans: list[Block] = []
    start = -1
    for end in ends:
        stop = max(position[node] for node in end)
        inside = tuple(layer for node, layer in layer_at.items() if start < position[node] <= stop)
        spans.append(Block(sources, end, inside))
        sources, start = end, stop
    return _with_enough_layers(_without_empty(spans), least)


def float_inputs(graph: fx.Graph) -> list[fx.Node]:
    """The program's inputs that are data: floats."""
    return [node for node in graph.nodes if node.op == "placeholder" and node.meta["val"].is_floating_point()]


def side_inputs(graph: fx.Graph) -> list[fx.Node]:
    """The program's inputs that are integers: masks and the like, which any block may read."""
    return [node for node in graph.nodes if node.op == "placeholder" and not node.meta["val"].is_floating_point()]


def _cut_points(graph: fx.Graph, reference: Program) -> list[fx.Node]:
    data = _data_nodes(graph)
    position = {node: number for number, node in enumerate(graph.nodes)}
    known = {node.name for node in reference.graph.nodes if node.op != "get_attr"}
    batch = _batch_size(graph)
    first = max((position[node] for node in data if node.op == "placeholder"), default=0)
    reach = -1  # the last position that reads a data value from before the node
    cuts = []
    for node in graph.nodes:
        if node not in data:
            continue
        usable = node.name in known and node.target not in _ROUNDING and node.op != "output"
        if reach <= position[node] >= first and usable and _holds_samples(node, batch):
            cuts.append(node)
        reach = max([reach, *(position[user] for user in node.users if user in data)])
    return cuts


def _data_nodes(graph: fx.Graph) -> Collection[fx.Node]:
    """What depends on a float input, or on an embedding of integers."""
    data: dict[fx.Node, None] = {}
    for node in graph.nodes:
        is_input = node.op == "placeholder" and node.meta["val"].is_floating_point()
        looks_up = edit.is_call(node, _aten.embedding.default) and any(operand.op != "get_attr" for operand in node.all_input_nodes[1:])
        if is_input or looks_up or any(operand in data for operand in node.all_input_nodes):
            data[node] = None
    return data


def _batch_size(graph: fx.Graph) -> str:
    """The first dimension of the first input: a symbol, or a number where the batch is fixed."""
    values = (node.meta["val"] for node in graph.nodes if node.op == "placeholder")
    return next((str(value.shape[0]) for value in values if value.dim()), "")


def _holds_samples(node: fx.Node, batch: str) -> bool:
    value = node.meta["val"]
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 0 and str(value.shape[0]) == batch


def _float_outputs(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """The nodes that compute the program's float outputs, before they are rounded."""
    chosen: dict[fx.Node, None] = {}
    for output in graph.output_node().all_input_nodes:
        node = output
        while edit.is_call(node, *_ROUNDING) and isinstance(node.args[0], fx.Node):
            node = node.args[0]
        if node.meta["val"].is_floating_point():
            chosen[node] = None
    if not chosen:
        raise PassError("the program has no float output: there is nothing to compare with the float program")
    return tuple(chosen)


def _without_empty(spans: Sequence[Block]) -> list[Block]:
    """Spans without layers joined to a neighbour, by the rule of the module's docstring."""
    blocks: list[Block] = []
    waiting: Block | None = None
    for span in spans:
        span = span if waiting is None else replace(span, sources=waiting.sources)
        waiting = None
        if span.layers:
            blocks.append(span)
        elif blocks and blocks[-1].outputs == span.sources and _shapes(span.sources) == _shapes(span.outputs):
            blocks[-1] = replace(blocks[-1], outputs=span.outputs)
        else:
            waiting = span
    if waiting is not None and blocks:
        blocks[-1] = replace(blocks[-1], outputs=waiting.outputs)
    return blocks


def _with_enough_layers(spans: Sequence[Block], least: int) -> list[Block]:
    blocks: list[Block] = []
    for span in spans:
        if blocks and len(blocks[-1].layers) < least:
            blocks[-1] = Block(blocks[-1].sources, span.outputs, blocks[-1].layers + span.layers)
        else:
            blocks.append(span)
    if len(blocks) > 1 and len(blocks[-1].layers) < least:
        last = blocks.pop()
        blocks[-1] = Block(blocks[-1].sources, last.outputs, blocks[-1].layers + last.layers)
    return blocks


def _shapes(nodes: Sequence[fx.Node]) -> list[str]:
    return [str(tuple(node.meta["val"].shape)) for node in nodes]
