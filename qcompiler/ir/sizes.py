"""Sizes of inputs and outputs that are known when a program is called: the batch, and at most one more symbol (a sequence length)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from qcompiler.errors import QCompilerError
from qcompiler.ir.program import ValueSpec
from qcompiler.ir.types import DynamicSize, SpecSize

BATCH_TEXT = "N"


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
