"""What exporters add to attention and its masks, and stage FLOAT needs no op for.

1. ``scaled_dot_product_attention`` with a mask is exported as softmax, then 0 wherever it is NaN: where a row of the mask hides every key.
   docs/capture.md asks that masks keep at least one key of each row; then no element is NaN, and ``Where(IsNaN(p), 0, p)`` is p. What
   DequantizeLinear gives never is NaN.
2. ``mask[a, b]`` is exported as GatherND of the positions ``Concat(Unsqueeze(Expand(a, shape)), Unsqueeze(Expand(b, shape)))``. Indices
   broadcast by themselves: it is the op ``Index`` of (mask, a, b), which capture knows how to read where a and b count.
3. A file in which weights alone are quantized, and no value, has the meaning of a float model: DequantizeLinear of constants gives reals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from qcompiler.capture.onnx.model import Graph, Model, Node

# The domain of ops that are none of ONNX.
OWN_DOMAIN = "qcompiler"

# Ops that make integers of reals, or compute with integers that stand for reals.
_QUANTIZES = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm"})
_NEVER_NAN = frozenset({"Softmax", "DequantizeLinear"})


def simplified(model: Model) -> Model:
    """The model with these patterns replaced."""
    graph = model.graph
    producers = {name: node for node in graph.nodes for name in node.outputs if name}
    if not any(node.op in _QUANTIZES for node in graph.all_nodes()):
        graph = replace(graph, nodes=tuple(_dequantized(node, graph) for node in graph.nodes))
    nodes = [_indexed(_unguarded(node, graph, producers), producers) for node in graph.nodes]
    return replace(model, graph=replace(graph, nodes=tuple(_alive(nodes, graph.outputs))))


def _dequantized(node: Node, graph: Graph) -> Node:
    known = node.op == "DequantizeLinear" and all(not name or name in graph.constants for name in node.inputs)
    return replace(node, domain=OWN_DOMAIN) if known else node


def _alive(nodes: list[Node], outputs: tuple[str, ...]) -> list[Node]:
    """The nodes that an output needs, in order."""
    needed, alive = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            needed.update(_reads(node))
            alive.append(node)
    return alive[::-1]


def _unguarded(node: Node, graph: Graph, producers: Mapping[str, Node]) -> Node:
    if node.op != "Where" or len(node.inputs) != 3:
        return node
    condition, guard = producers.get(node.inputs[0]), node.inputs[2]
    guarded = producers.get(guard)
    if condition is None or condition.op != "IsNaN" or condition.inputs[0] != guard or guarded is None or guarded.op not in _NEVER_NAN:
        return node
    if not _is_zero(_constant(node.inputs[1], graph, producers)):
        return node
    return replace(node, op_type="Identity", inputs=(guard,))


def _indexed(node: Node, producers: Mapping[str, Node]) -> Node:
    joined = producers.get(node.inputs[1]) if node.op == "GatherND" and not node.attributes.get("batch_dims") else None
    if joined is None or joined.op != "Concat" or joined.attributes.get("axis") != -1:
        return node
    parts = [_expanded(name, producers) for name in joined.inputs]
    known = [part for part in parts if part is not None]
    if len(known) != len(parts):
        return node
    return replace(node, op_type="Index", domain=OWN_DOMAIN, inputs=(node.inputs[0], *known))


def _expanded(name: str, producers: Mapping[str, Node]) -> str | None:
    """x of ``Unsqueeze(Expand(x, shape))``."""
    outer = producers.get(name)
    inner = producers.get(outer.inputs[0]) if outer is not None and outer.op == "Unsqueeze" else None
    return inner.inputs[0] if inner is not None and inner.op == "Expand" else None


def _constant(name: str, graph: Graph, producers: Mapping[str, Node]) -> torch.Tensor | None:
    producer = producers.get(name)
    value = graph.constants.get(name) if producer is None else producer.attributes.get("value")
    return value if isinstance(value, torch.Tensor) else None


def _is_zero(value: torch.Tensor | None) -> bool:
    return value is not None and value.numel() == 1 and float(value) == 0.0


def _reads(node: Node) -> list[str]:
    graphs = list(node.subgraphs())
    inner = [name for graph in graphs for other in graph.all_nodes() for name in other.inputs]
    return [*node.inputs, *inner, *(name for graph in graphs for name in graph.outputs)]
