"""The registry of writers: for each op of a program one function that writes it as ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import onnx_ir as ir
from torch import Tensor

from qcompiler.backends.onnx.graph import GraphWriter, dtype_of
from qcompiler.errors import UnsupportedOpError


@dataclass
class Operand:
    """A tensor argument: its shape and dtype, its data where it is a constant, and its value in the ONNX graph."""

    meta: Tensor
    make: Callable[[], ir.Value]
    constant: Tensor | None = None
    transposed: Callable[[], ir.Value] | None = None  # of a quantized weight

    @cached_property
    def value(self) -> ir.Value:
        """The value; a constant becomes an initializer when this is first read."""
        return self.make()

    @property
    def rank(self) -> int:
        return self.meta.dim()


@dataclass(frozen=True)
class Call:
    """One call of an op: arguments by the names of its schema, with tensors as operands, and the fake tensor that it gives."""

    target: str
    arguments: Mapping[str, Any]
    result: Any = field(repr=False)

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def operand(self, name: str) -> Operand:
        found = self.arguments[name]
        assert isinstance(found, Operand)  # the schema says so
        return found

    def value(self, name: str) -> ir.Value:
        return self.operand(name).value

    def parameter(self, name: str) -> Tensor:
        """The data of a constant operand.

        Raises:
            UnsupportedOpError: it is computed by the program.
        """
        constant = self.operand(name).constant
        if constant is None:
            raise UnsupportedOpError(f"'{name}' is computed by the model, but ONNX export takes constants only there: make it a parameter")
        return constant

    @property
    def dtype(self) -> ir.DataType:
        """The ONNX dtype of the result."""
        return dtype_of(self.result)


Writer = Callable[[GraphWriter, Call], ir.Value | Operand]


class Registry(dict[str, Writer]):
    """Full name of an op (``qc.requantize.default``) -> its writer."""

    def writes(self, *targets: str) -> Callable[[Writer], Writer]:
        """Decorator: the function writes these ops."""

        def register(function: Writer) -> Writer:
            for target in targets:
                self[target] = function
            return function

        return register


def bind_arguments(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the op's schema, defaults filled in."""
    schema = target._schema
    bound = {}
    for position, parameter in enumerate(schema.arguments):
        given = args[position] if position < len(args) else kwargs.get(parameter.name, parameter.default_value)
        bound[parameter.name] = given
    return bound
