"""Build a graph that keeps the conventions of a program from nothing: for importers, for reading artifacts, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext, StrictMinMaxConstraint
from torch.utils._sympy.value_ranges import ValueRanges

from qcompiler.errors import VerificationError
from qcompiler.ir import edit
from qcompiler.ir.provenance import Provenance
from qcompiler.ir.types import DynamicSize, SpecSize

# torch takes the sizes 0 and 1 for constants; a symbol stands for the others, and what it says of them holds for those as well.
_SMALLEST_SYMBOLIC = 2


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
        self._symbols: dict[DynamicSize | None, torch.SymInt] = {}

    def input(self, name: str, shape: Sequence[SpecSize], dtype: torch.dtype) -> fx.Node:
        """A user input; None in the shape is the batch, one symbol for all inputs, as is each name of a dynamic size.

        Raises:
            VerificationError: two bounds for one name.
        """
        node = self.graph.placeholder(name)
        sizes = [size if isinstance(size, int) else self._symbolic(size) for size in shape]
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

    def _symbolic(self, size: DynamicSize | None) -> int | torch.SymInt:
        """The symbol of the batch or of a dynamic size, made where it is asked for first, plus the offset."""
        if size is None:
            return self._symbol(None)
        return self._symbol(DynamicSize(size.name, size.minimum, size.maximum)) + size.offset

    def _symbol(self, size: DynamicSize | None) -> torch.SymInt:
        if size not in self._symbols:
            other = next((known for known in self._symbols if known and size and known.name == size.name), None)
            if other is not None:
                raise VerificationError(f"'{other.name}' is bounded by {other.minimum} to {other.maximum} and elsewhere otherwise")
            self._symbols[size] = self._new_symbol(size)
        return self._symbols[size]

    def _new_symbol(self, size: DynamicSize | None) -> torch.SymInt:
        context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(
            dynamic_sizes=[DimDynamic.DYNAMIC], constraint_sizes=[None if size is None else _bounds(size)]
        )
        example = max(_SMALLEST_SYMBOLIC, size.minimum if size is not None else 0)
        return cast(torch.SymInt, self._mode.from_tensor(torch.empty(example), symbolic_context=context).size(0))


def _bounds(size: DynamicSize) -> StrictMinMaxConstraint:
    return StrictMinMaxConstraint(warn_only=False, vr=ValueRanges(max(_SMALLEST_SYMBOLIC, size.minimum), size.maximum))
