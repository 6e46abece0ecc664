"""Nodes and constants of an ONNX graph in the making; each node is named after the node of the program that it is written for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import sympy
import torch
from torch.utils._sympy.functions import FloorDiv

from qcompiler.errors import UnsupportedOpError
from qcompiler.ir.sizes import expression

BOOL, FLOAT = ir.DataType.BOOL, ir.DataType.FLOAT
UINT8, INT8, INT16 = ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.INT16
UINT32, INT32 = ir.DataType.UINT32, ir.DataType.INT32
UINT64, INT64 = ir.DataType.UINT64, ir.DataType.INT64

DTYPES: Mapping[torch.dtype, ir.DataType] = {
    torch.bool: BOOL,
    torch.uint8: UINT8,
    torch.int8: INT8,
    torch.int16: INT16,
    torch.int32: INT32,
    torch.int64: INT64,
    torch.float32: FLOAT,
    torch.float64: ir.DataType.DOUBLE,
}

Attribute = int | float | str | Sequence[int]
Size = int | torch.SymInt
Dimension = tuple[ir.Value, int, int]  # an input of the graph, which of its dimensions, and what that is more than the symbol

_SHARED_BYTES = 1024  # constants up to this size stand once in the graph


class GraphWriter:
    """Collects nodes and initializers for opset ``opset``; ``scope`` says which node of the program they belong to."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.dimensions: dict[sympy.Symbol, Dimension] = {}
        self._shared: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._sizes: dict[sympy.Expr, ir.Value] = {}
        self._names: set[str] = set()
        self._scope, self._place = "graph", ""

    @contextmanager
    def scope(self, name: str, place: str) -> Iterator[None]:
        """Nodes made inside are named after ``name`` and carry ``place``, the origin in the user's model, as their doc string."""
        before = self._scope, self._place
        self._scope, self._place = name, place
        try:
            yield
        finally:
            self._scope, self._place = before

    def op(self, op_type: str, *inputs: ir.Value | None, dtype: ir.DataType | None = None, **attributes: Attribute) -> ir.Value:
        """A node with one output, of ``dtype`` or that of the first input."""
        name = self.unique(f"{self._scope}/{op_type}")
        node = ir.node(op_type, inputs, attributes, name=name, doc_string=self._place or None)
        self.nodes.append(node)
        output = node.outputs[0]
        output.name = name
        inferred = dtype or (inputs[0].dtype if inputs and inputs[0] is not None else None)
        assert inferred is not None, f"{op_type} needs a dtype"
        output.dtype = inferred
        return output

    def cast(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Nothing where x has the dtype. Bits beyond the dtype's are dropped, as ONNX says for integers."""
        return x if x.dtype == dtype else self.op("Cast", x, dtype=dtype, to=int(dtype))

    def constant(self, values: object, dtype: ir.DataType, hint: str = "constant") -> ir.Value:
        """An initializer; small ones with the same content are one. Integers are reduced modulo the width of an unsigned dtype."""
        array = _array(values, dtype)
        key = (dtype.name, array.shape, array.tobytes()) if array.nbytes <= _SHARED_BYTES else None
        if key is not None and key in self._shared:
            return self._shared[key]
        prefix = "constants" if key is not None else self._scope
        name = self.unique(f"{prefix}/{hint}")
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name), type=ir.TensorType(dtype), shape=ir.Shape(array.shape))
        self.initializers[name] = value
        if key is not None:
            self._shared[key] = value
        return value

    def axes(self, *axes: int) -> ir.Value:
        """A list of int64: axes, starts, ends, shapes."""
        return self.constant(list(axes), INT64, "list")

    def size(self, size: Size) -> ir.Value:
        """A size as an int64 vector of one element; symbolic ones are computed from the shapes of the graph's inputs."""
        expr = expression(size)
        if expr.is_Integer:
            return self.axes(int(expr))
        if expr not in self._sizes:
            with self.scope("sizes", ""):
                self._sizes[expr] = self._compute(expr)
        return self._sizes[expr]

    def shape(self, sizes: Sequence[Size]) -> ir.Value:
        """Sizes as an int64 vector."""
        if all(isinstance(size, int) for size in sizes):
            return self.axes(*(int(size) for size in sizes))
        return self.op("Concat", *(self.size(size) for size in sizes), axis=0)

    def unique(self, name: str) -> str:
        """The name, with a number where it is taken."""
        base = re.sub(r"[^\w/.]", "_", name)
        candidate, count = base, 0
        while candidate in self._names:
            count += 1
            candidate = f"{base}_{count}"
        self._names.add(candidate)
        return candidate

    def _compute(self, expr: sympy.Expr) -> ir.Value:
        if expr in self.dimensions:
            source, dimension, offset = self.dimensions[expr]
            size = self.op("Gather", self.op("Shape", source, dtype=INT64), self.axes(dimension), axis=0)
            return self.op("Sub", size, self.axes(offset)) if offset else size
        parts = [self._part(part) for part in expr.args]
        if isinstance(expr, sympy.Add | sympy.Mul):
            total = parts[0]
            for part in parts[1:]:
                total = self.op("Add" if isinstance(expr, sympy.Add) else "Mul", total, part)
            return total
        if isinstance(expr, FloorDiv):  # sizes are not negative: to truncate is to round down
            return self.op("Div", *parts)
        raise UnsupportedOpError(f"the size {expr} has no ONNX form: capture the model with that size fixed")

    def _part(self, expr: sympy.Expr) -> ir.Value:
        return self.axes(int(expr)) if expr.is_Integer else self._compute(expr)


def dtype_of(meta: torch.Tensor) -> ir.DataType:
    """The ONNX name of a tensor's dtype."""
    return DTYPES[meta.dtype]


def _array(values: object, dtype: ir.DataType) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().contiguous().cpu().numpy()
    kind = dtype.numpy()
    array = np.asarray(values)
    if array.dtype == kind:
        return array
    if kind.kind == "u":
        mask = (1 << 8 * kind.itemsize) - 1
        reduced = [int(value) & mask for value in np.asarray(values, dtype=object).reshape(-1)]
        return np.asarray(reduced, dtype=kind).reshape(array.shape)
    return array.astype(kind)
