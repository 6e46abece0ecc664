"""What exporters add to attention and stage FLOAT needs no op for.

``scaled_dot_product_attention`` with a mask is exported as softmax, then 0 wherever it is NaN: where a row of the mask hides every key.
docs/capture.md asks that masks keep at least one key of each row; then no element is NaN, and ``Where(IsNaN(p), 0, p)`` is p.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from qcompiler.capture.onnx.model import Graph, Model, Node


def simplified(model: Model) -> Model:
    """The model without such guards."""
    graph = model.graph
    producers = {name: node for node in graph.nodes for name in node.outputs if name}
    nodes = tuple(_unguarded(node, graph, producers) for node in graph.nodes)
    needed = {name for node in nodes for name in _reads(node)} | set(graph.outputs)
    kept = tuple(node for node in nodes if node.op_type != "IsNaN" or needed.intersection(node.outputs))
    return replace(model, graph=replace(graph, nodes=kept))


def _unguarded(node: Node, graph: Graph, producers: Mapping[str, Node]) -> Node:
    if node.op != "Where" or len(node.inputs) != 3:
        return node
    condition, guard = producers.get(node.inputs[0]), node.inputs[2]
    softmax = producers.get(guard)
    if condition is None or condition.op != "IsNaN" or condition.inputs[0] != guard or softmax is None or softmax.op != "Softmax":
        return node
    if not _is_zero(_constant(node.inputs[1], graph, producers)):
        return node
    return replace(node, op_type="Identity", inputs=(guard,))


def _constant(name: str, graph: Graph, producers: Mapping[str, Node]) -> torch.Tensor | None:
    producer = producers.get(name)
    value = graph.constants.get(name) if producer is None else producer.attributes.get("value")
    return value if isinstance(value, torch.Tensor) else None


def _is_zero(value: torch.Tensor | None) -> bool:
    return value is not None and value.numel() == 1 and float(value) == 0.0


def _reads(node: Node) -> list[str]:
    return [*node.inputs, *(name for graph in node.subgraphs() for inner in graph.all_nodes() for name in inner.inputs)]
