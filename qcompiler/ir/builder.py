"""Build a graph that keeps the conventions of a program from nothing: for importers, for reading artifacts, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from qcompiler.ir import edit
from qcompiler.ir.provenance import Provenance


class GraphBuilder:
    """Adds nodes in order, each with ``val`` and ``provenance``.

    ::

        builder = GraphBuilder()
        x = builder.input("x", (None, 3, 32, 32), torch.float32)          # None: the symbolic batch
        w = builder.constant("conv_weight", weight)
        y = builder.call(torch.ops.aten.conv2d.default, x, w)
        graph_module = builder.finish(y)
    """

    def __init__(self) -> None:
        self.graph_module = fx.GraphModule(torch.nn.Module(), fx.Graph())
        self.graph = self.graph_module.graph
        self._mode = FakeTensorMode(shape_env=ShapeEnv())
        self._batch: torch.SymInt | None = None

    def input(self, name: str, shape: Sequence[int | None], dtype: torch.dtype) -> fx.Node:
        """A user input; None in the shape is the batch, one symbol for all inputs."""
        node = self.graph.placeholder(name)
        sizes = [self._symbolic_batch() if size is None else size for size in shape]
        with self._mode:
            node.meta["val"] = torch.empty(sizes, dtype=dtype)
        node.meta["provenance"] = Provenance()
        return node

    def constant(self, name: str, tensor: torch.Tensor, provenance: Provenance | None = None) -> fx.Node:
        """A buffer and its ``get_attr`` node; ``name`` is a hint that is made unique."""
        attribute = edit.unique_attribute(self.graph_module, name)
        self.graph_module.register_buffer(attribute, tensor.detach())
        return self.attribute(attribute, attribute, provenance)

    def attribute(self, name: str, attribute: str, provenance: Provenance | None = None) -> fx.Node:
        """A ``get_attr`` node for a buffer that the graph module has already."""
        tensor = self.graph_module.get_buffer(attribute)
        node = self.graph.create_node("get_attr", attribute, name=name)
        node.meta["val"] = edit.fake_like(tensor, self._mode)
        node.meta["provenance"] = provenance or Provenance()
        return node

    def call(
        self, target: edit.Target, *args: Any, name: str | None = None, provenance: Provenance | None = None, **kwargs: Any
    ) -> fx.Node:
        """A call at the end of the graph as it stands; ``name`` is a hint that is made unique."""
        node = self.graph.create_node("call_function", target, args, kwargs, name=name or edit.op_name(target))
        node.meta["val"] = edit.evaluate(node)
        node.meta["provenance"] = provenance or Provenance()
        return node

    def finish(self, *outputs: fx.Node) -> fx.GraphModule:
        """Close the graph with its outputs and compile it."""
        node = self.graph.output(tuple(outputs))
        node.meta["val"] = tuple(output.meta["val"] for output in outputs)
        node.meta["provenance"] = Provenance()
        edit.finish(self.graph_module)
        return self.graph_module

    def _symbolic_batch(self) -> torch.SymInt:
        if self._batch is None:
            context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
            # The example size 2 keeps torch from specializing to 0 or 1.
            size = self._mode.from_tensor(torch.empty(2), symbolic_context=context).size(0)
            self._batch = cast(torch.SymInt, size)
        return self._batch
