"""An ONNX graph as plain data: what the interpreter works on, free of protobuf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from qcompiler.ir.types import IntegerRange

# ``onnx.TensorProto`` element types.
ElementType = int


@dataclass(frozen=True)
class Node:
    """One call of an op. ``attributes`` hold Python values, ``torch.Tensor`` for tensors and ``Graph`` for subgraphs.

    An absent optional input or output is an empty name. ``name`` is never empty: nodes without one are ``OpType_position``.
    """

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @property
    def op(self) -> str:
        """``Conv``, or with its domain if that is not ONNX's own: ``com.microsoft.Gelu``."""
        return f"{self.domain}.{self.op_type}" if self.domain else self.op_type

    @property
    def label(self) -> str:
        """How errors and provenance name the node: ``'conv1' (Conv)``."""
        return f"'{self.name}' ({self.op})"

    def subgraphs(self) -> Iterator[Graph]:
        return (value for value in self.attributes.values() if isinstance(value, Graph))


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which they can be computed. ``inputs`` are names; ``constants`` the initializers."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, torch.Tensor]

    def all_nodes(self) -> Iterator[Node]:
        """The nodes, each followed by those of its subgraphs."""
        for node in self.nodes:
            yield node
            for graph in node.subgraphs():
                yield from graph.all_nodes()


@dataclass(frozen=True)
class Input:
    """One input of the model; a size is a number, the name of a symbol, or None where the file says nothing.

    ``range``: of integers, where the file states it, as this project's own files do.
    """

    name: str
    dtype: torch.dtype
    sizes: tuple[int | str | None, ...]
    range: IntegerRange | None = None


@dataclass(frozen=True)
class Model:
    """``opsets``: domain -> version; ``types``: element type of each value of the main graph that the file or type inference knows."""

    name: str
    graph: Graph
    inputs: tuple[Input, ...]
    opsets: Mapping[str, int]
    types: Mapping[str, ElementType] = field(default_factory=dict)
