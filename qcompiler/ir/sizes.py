"""Sizes of inputs and outputs that are known when a program is called: the batch, and at most one more symbol (a sequence length)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import sympy
import torch

from qcompiler.errors import QCompilerError
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.types import DynamicSize, SpecSize

BATCH_TEXT = "N"

# A symbol of a graph's values -> the size that it stands for (without offset); None for the batch.
Symbols = Mapping[sympy.Symbol, DynamicSize | None]


def dynamic_sizes(specs: Iterable[ValueSpec]) -> dict[str, DynamicSize]:
    """The symbols of specifications by name, each as its size without offset."""
    sizes = (size for spec in specs for size in spec.shape if isinstance(size, DynamicSize))
    return {size.name: DynamicSize(size.name, size.minimum, size.maximum) for size in sizes}


def concrete_shape(shape: Sequence[SpecSize], batch: int = 1, values: Mapping[str, int] | None = None) -> tuple[int, ...]:
    """Numbers for a specified shape; ``values`` by the symbols' names, which are otherwise taken at their maximum."""
    return tuple(_concrete(size, batch, values or {}) for size in shape)


def _concrete(size: SpecSize, batch: int, values: Mapping[str, int]) -> int:
    if isinstance(size, DynamicSize):
        return values.get(size.name, size.maximum) + size.offset
    return batch if size is None else size


def fits(shape: Sequence[SpecSize], found: Sequence[int]) -> bool:
    """Whether sizes are among those that a specified shape allows."""
    return len(shape) == len(found) and all(_allows(size, have) for size, have in zip(shape, found, strict=True))


def _allows(size: SpecSize, found: int) -> bool:
    if isinstance(size, DynamicSize):
        return size.minimum <= found - size.offset <= size.maximum
    return size is None or size == found


def shape_text(shape: Sequence[SpecSize], batch: str = BATCH_TEXT) -> str:
    """``N, sequence (1 to 128), 32``: for messages and listings."""
    return ", ".join(_size_text(size, batch) for size in shape)


def _size_text(size: SpecSize, batch: str) -> str:
    if isinstance(size, DynamicSize):
        return f"{size} ({size.minimum + size.offset} to {size.largest})"
    return batch if size is None else str(size)


def bind(specs: Sequence[ValueSpec], shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """The value of each symbol in a call with inputs of these shapes, which fit their specifications.

    Raises:
        QCompilerError: two inputs give one symbol different values; names both.
    """
    values: dict[str, int] = {}
    origins: dict[str, str] = {}
    for spec, shape in zip(specs, shapes, strict=True):
        for size, found in zip(spec.shape, shape, strict=True):
            if not isinstance(size, DynamicSize):
                continue
            value = found - size.offset
            if values.setdefault(size.name, value) != value:
                raise QCompilerError(
                    f"inputs '{origins[size.name]}' and '{spec.name}' must agree in '{size.name}', got {values[size.name]} and {value}"
                )
            origins.setdefault(size.name, spec.name)
    return values


def symbols_of(program: Program) -> dict[sympy.Symbol, DynamicSize | None]:
    """What the symbols in the values of a program's inputs stand for."""
    symbols: dict[sympy.Symbol, DynamicSize | None] = {}
    placeholders = (node for node in program.graph.nodes if node.op == "placeholder")
    for node, spec in zip(placeholders, program.inputs, strict=False):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dim() != len(spec.shape):
            continue
        for size, wanted in zip(value.shape, spec.shape, strict=True):
            for symbol in expression(size).free_symbols:
                symbols.setdefault(symbol, _without_offset(wanted))
    return symbols


def _without_offset(size: SpecSize) -> DynamicSize | None:
    return DynamicSize(size.name, size.minimum, size.maximum) if isinstance(size, DynamicSize) else None


def expression(size: int | torch.SymInt) -> sympy.Expr:
    """The size as sympy has it."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def specified(size: int | torch.SymInt, symbols: Symbols) -> SpecSize:
    """The size of an input or output as a specification says it.

    Raises:
        QCompilerError: it is neither a number, the batch, nor a symbol plus a number.
    """
    expr = expression(size)
    if expr.is_Integer:
        return int(expr)
    known = [symbol for symbol in expr.free_symbols if symbol in symbols]
    if len(expr.free_symbols) == 1 and known:
        symbol = symbols[known[0]]
        offset = expr - known[0]
        if symbol is None and offset == 0:
            return None
        if symbol is not None and offset.is_Integer:
            return DynamicSize(symbol.name, symbol.minimum, symbol.maximum, int(offset))
    raise QCompilerError(f"the size {named(size, symbols)} is neither a number, the batch, nor a dynamic size plus a number")


def named(size: int | torch.SymInt, symbols: Symbols, batch: str = BATCH_TEXT) -> str:
    """The size with the names of the symbols that it is made of."""
    names = {symbol: sympy.Symbol(known.name if known is not None else batch) for symbol, known in symbols.items()}
    return str(expression(size).xreplace(names))
