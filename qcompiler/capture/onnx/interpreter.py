"""A torch module that computes an ONNX graph node by node: what ``torch.export`` traces.

What depends on constants alone is computed when the module is made; what depends on sizes that are known, while it is traced, by torch on
real tensors. Only the rest becomes nodes of the program. Sizes that are open are symbols; whole number tensors of them are arrays of numpy
(``sizes.py``), so that the arithmetic of shapes never becomes a node either.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import traceback
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils._python_dispatch import _disable_current_modes

from qcompiler.capture.onnx import registry, sizes
from qcompiler.capture.onnx.call import Call, Value, is_constant
from qcompiler.capture.onnx.model import Graph, Model, Node
from qcompiler.capture.onnx.types import traced_dtype
from qcompiler.errors import CaptureError, UnsupportedOpError
from qcompiler.ir.provenance import ONNX_NODE

Environment = dict[str, Value]

# Elements of a tensor of constants; more would not be a model but an accident.
_LARGEST_CONSTANT = 1 << 28


class OnnxModule(nn.Module):
    """``forward`` takes the model's inputs, by position or name, and gives a dictionary of its outputs."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.names = identifiers([given.name for given in model.inputs])
        self._folded: Environment = dict(model.graph.constants)
        self._buffers_of: dict[str, str] = {}
        self._remaining = self._fold(model.graph)
        self._register_constants()
        self._set_signature()

    def _get_name(self) -> str:
        """How ``torch`` and errors name the module."""
        return self.model.name

    def _set_signature(self) -> None:
        """``torch.export`` names the inputs of the program by the signature of ``forward``."""

        def forward(*inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return self._run(inputs)

        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in self.names]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions have it where it is set
        self.forward = forward

    def _fold(self, graph: Graph) -> list[Node]:
        """Compute what needs no input; the nodes that are left."""
        remaining = []
        for node in graph.nodes:
            known = all(not name or name in self._folded for name in node.inputs)
            if known and not any(node.subgraphs()) and self._converter(node).folds:
                self._folded.update(self._results(node, self._folded))
            else:
                remaining.append(node)
        return remaining

    def _register_constants(self) -> None:
        used = dict.fromkeys(name for node in self._remaining for name in _reads(node) if name in self._folded)
        used |= dict.fromkeys(name for name in self.model.graph.outputs if name in self._folded)
        for name, buffer in zip(used, identifiers(list(used)), strict=True):
            value = self._folded[name]
            if isinstance(value, torch.Tensor):
                unique = f"{buffer}_constant" if hasattr(self, buffer) else buffer
                self._buffers_of[name] = unique
                self.register_buffer(unique, value.to(traced_dtype(value.dtype)))

    # ---- running

    def _run(self, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        environment: Environment = dict(self._folded)
        environment.update({given.name: value for given, value in zip(self.model.inputs, inputs, strict=True)})
        for node in self._remaining:
            environment.update(self._results(node, environment))
        names = self.model.graph.outputs
        return {key: self._output(name, environment) for key, name in zip(identifiers(names), names, strict=True)}

    def _output(self, name: str, environment: Environment) -> torch.Tensor:
        value = environment.get(name)
        if not isinstance(value, torch.Tensor):
            raise CaptureError(f"output '{name}' is no tensor of the inputs: every output must be one that is computed")
        return self._materialized(name, value)

    def run_graph(self, graph: Graph, environment: Environment, arguments: Sequence[Value] = ()) -> list[Value]:
        """The outputs of a subgraph, which sees the values around it."""
        inner: Environment = {**environment, **graph.constants, **dict(zip(graph.inputs, arguments, strict=True))}
        for node in graph.nodes:
            inner.update(self._results(node, inner))
        return [inner[name] for name in graph.outputs]

    def _results(self, node: Node, environment: Environment) -> Environment:
        """The node's outputs by name; errors name the node."""
        operands = [environment[name] if name else None for name in node.inputs]
        try:
            with traceback.annotate({ONNX_NODE: (node.name, node.op)}):
                results = self._computed(node, operands, environment)
        except CaptureError as error:
            if node.label not in str(error):
                error.within(f"node {node.label}")
            raise
        except GuardOnDataDependentSymNode:
            raise CaptureError(f"node {node.label} decides by the values of a tensor: shapes must not depend on values") from None
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, ArithmeticError, KeyError, MemoryError) as error:
            reason = " ".join(str(error).split("\n")[0].split())
            raise CaptureError(f"node {node.label} cannot be computed: {reason or type(error).__name__}") from error
        outputs = list(results) if isinstance(results, tuple) else [results]
        return {name: value for name, value in zip(node.outputs, outputs, strict=False) if name}

    def _computed(self, node: Node, operands: list[Value], environment: Environment) -> Any:
        if any(isinstance(value, np.ndarray) for value in operands) and sizes.serves(node, operands):
            return sizes.compute(node, operands)
        if any(node.subgraphs()):
            from qcompiler.capture.onnx import control_flow

            return control_flow.run(self, node, operands, environment)
        found = self._converter(node)
        types = [self.model.types.get(name) for name in node.inputs]
        if found.folds and all(is_constant(value) for value in operands):
            call = Call(node, self._opset(node), operands, operands.__getitem__, types)  # type: ignore[arg-type]  # Call checks
            with _disable_current_modes():
                return _bounded(found.convert(call))
        materialize = self._materializer(node, operands)
        return found.convert(Call(node, self._opset(node), operands, materialize, types))

    def _materializer(self, node: Node, operands: Sequence[Value]) -> Callable[[int], torch.Tensor]:
        return lambda position: self._materialized(node.inputs[position], operands[position])

    def _materialized(self, name: str, value: Value) -> torch.Tensor:
        """A value in the form in which tracing sees it: constants of the file by their name."""
        assert isinstance(value, torch.Tensor)  # Call and _output see to it
        if not is_constant(value):
            return value
        if name in self._buffers_of and self._folded.get(name) is value:
            buffer: torch.Tensor = getattr(self, self._buffers_of[name])
            return buffer
        with _disable_current_modes():  # the program has no other floats than float32
            return value.to(traced_dtype(value.dtype))

    def _converter(self, node: Node) -> registry.Converter:
        found = registry.find(node.domain, node.op_type, self._opset(node))
        if found is None:
            raise UnsupportedOpError(f"node {node.label} is not supported: docs/onnx-support.md lists the ops that are")
        return found

    def _opset(self, node: Node) -> int:
        return self.model.opsets.get(node.domain, 1)


def identifiers(names: Sequence[str]) -> list[str]:
    """Names as torch can use them, each once: ``input.1`` becomes ``input_1``."""
    result: dict[str, None] = {}
    for name in names:
        wanted = re.sub(r"\W", "_", name, flags=re.ASCII).lstrip("_") or "value"
        wanted = f"value_{wanted}" if wanted[0].isdigit() else wanted
        unique, count = wanted, 0
        while unique in result:
            count += 1
            unique = f"{wanted}_{count}"
        result[unique] = None
    return list(result)


def _reads(node: Node) -> list[str]:
    """The names that a node, or a node of its subgraphs, reads."""
    inner = [name for graph in node.subgraphs() for other in graph.all_nodes() for name in other.inputs]
    results = [name for graph in node.subgraphs() for name in graph.outputs]
    return [*node.inputs, *inner, *results]


def _bounded(results: Any) -> Any:
    for value in results if isinstance(results, tuple) else (results,):
        if isinstance(value, torch.Tensor) and value.numel() > _LARGEST_CONSTANT:
            raise CaptureError(f"gives a constant of shape {list(value.shape)}: too large to be one")
    return results
