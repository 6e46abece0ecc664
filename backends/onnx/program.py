"""From a program to an ONNX graph: inputs, one writer a node, outputs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx

from qcompiler.backends.onnx.graph import DTYPES, GraphWriter, dtype_of
from qcompiler.backends.onnx.writers import Call, Operand, Writer, bind_arguments
from qcompiler.errors import QCompilerError, UnsupportedOpError
from qcompiler.ir.edit import constant_value
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.provenance import describe
from qcompiler.ir.sizes import BATCH_TEXT, expression, symbols_of
from qcompiler.ir.stages import target_text
from qcompiler.ir.types import SpecSize

InputBorder = Callable[[GraphWriter, ir.Value, ValueSpec], ir.Value]


class ProgramWriter:
    """Writes a program's graph; ``enter`` and ``leave`` are what stands between its own inputs and outputs and those of the file."""

    def __init__(
        self,
        program: Program,
        writers: Mapping[str, Writer],
        opset: int,
        enter: InputBorder | None = None,
        leave: InputBorder | None = None,
    ) -> None:
        self.program, self.writers = program, writers
        self.writer = GraphWriter(opset)
        self._enter, self._leave = enter or _unchanged, leave or _unchanged
        self._operands: dict[fx.Node, Any] = {}

    def graph(self) -> ir.Graph:
        """The whole graph."""
        placeholders = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        values = [self._input(node, spec) for node, spec in zip(placeholders, self.program.inputs, strict=True)]
        for node, spec, value in zip(placeholders, self.program.inputs, values, strict=True):
            with self.writer.scope(node.name, f"input '{spec.name}'"):
                self._set(node, self._enter(self.writer, value, spec))
        for node in self.program.graph.nodes:
            self._visit(node)
        outputs = self._outputs()
        w = self.writer
        return ir.Graph(
            values, outputs, nodes=w.nodes, initializers=list(w.initializers.values()), opset_imports={"": w.opset}, name="qcompiler"
        )

    def _input(self, node: fx.Node, spec: ValueSpec) -> ir.Value:
        name = self.writer.unique(spec.name)
        value = ir.Value(name=name, type=ir.TensorType(DTYPES[spec.dtype]), shape=_shape(spec.shape))
        symbols = symbols_of(self.program)
        for position, size in enumerate(node.meta["val"].shape):
            for symbol in expression(size).free_symbols & set(symbols):
                offset = expression(size) - symbol
                if offset.is_Integer:
                    self.writer.dimensions.setdefault(symbol, (value, position, int(offset)))
        return value

    def _visit(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self._operands[node] = self._constant(node)
        elif node.op == "call_function" and not isinstance(node.meta["val"], Tensor | tuple | list):
            self._operands[node] = node.meta["val"]  # a size: users read it from the shapes
        elif node.op == "call_function":
            with self.writer.scope(node.name, describe(node)):
                self._call(node)

    def _call(self, node: fx.Node) -> None:
        name = target_text(node.target)  # type: ignore[arg-type]  # a call's target is callable
        if node.target is operator.getitem:
            self._operands[node] = self._item(node)
            return
        writer = self.writers.get(name)
        if writer is None:
            raise UnsupportedOpError(f"{describe(node)} has no ONNX writer: export at another stage, or leave the op out of the model")
        arguments = {key: self._resolve(value) for key, value in bind_arguments(node.target, node.args, node.kwargs).items()}
        try:
            self._set(node, writer(self.writer, Call(name, arguments, node.meta["val"])))
        except QCompilerError as error:
            raise error.within(describe(node)) from error

    def _item(self, node: fx.Node) -> Operand:
        source, position = node.args
        found = self._operands[source]  # type: ignore[index]  # its first argument is a node
        if position != 0:
            raise UnsupportedOpError(f"{describe(node)} reads what ONNX export does not write: use only the first result")
        operand: Operand = found[0]
        return operand

    def _resolve(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self._operands[argument]
        if isinstance(argument, list | tuple):
            return [self._resolve(item) for item in argument]
        return argument

    def _constant(self, node: fx.Node) -> Operand:
        tensor = constant_value(node)
        assert tensor is not None  # the convention of a program
        return Operand(node.meta["val"], lambda: self.writer.constant(tensor, DTYPES[tensor.dtype], str(node.target)), tensor)

    def _set(self, node: fx.Node, value: ir.Value | Operand) -> None:
        if isinstance(value, Operand):
            self._operands[node] = value
            return
        meta = node.meta["val"]
        several = isinstance(meta, tuple | list)  # of which only the first is of use: the values of a pooling, not where they were
        kept: Tensor = meta[0] if several else meta
        wide = kept.dtype == torch.int32 and value.dtype == ir.DataType.UINT16  # what QuantizeLinear gives for unsigned 9 to 16 bits
        assert value.dtype == dtype_of(kept) or wide, f"{node.name}: {value.dtype} for {kept.dtype}"
        operand = Operand(kept, lambda: value)
        self._operands[node] = [operand] if several else operand

    def _outputs(self) -> list[ir.Value]:
        returned = self.program.graph.output_node().args[0]
        assert isinstance(returned, tuple)  # the convention of a program
        return [self._output(node, spec) for node, spec in zip(returned, self.program.outputs, strict=True)]

    def _output(self, node: fx.Node, spec: ValueSpec) -> ir.Value:
        """A value of its own under the output's name: one node may be two outputs, or an input."""
        w = self.writer
        with w.scope(spec.name, f"output '{spec.name}'"):
            value = w.op("Identity", self._leave(w, self._operands[node].value, spec))
        value.name = w.unique(spec.name)
        value.shape = _shape(spec.shape)
        return value


def _unchanged(w: GraphWriter, value: ir.Value, spec: ValueSpec) -> ir.Value:
    return value


def _shape(shape: tuple[SpecSize, ...]) -> ir.Shape:
    return ir.Shape([size if isinstance(size, int) else BATCH_TEXT if size is None else str(size) for size in shape])
