"""Sizes of a model's inputs: numbers of the file, the batch, and sizes that the user bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.export import Dim

from qcompiler.capture.dynamic import DynamicShapes, Resolved, bounded, by_input
from qcompiler.capture.onnx.model import Input, Model
from qcompiler.capture.onnx.types import traced_dtype
from qcompiler.errors import CaptureError
from qcompiler.ir.types import DynamicSize

_LARGEST_INPUT = 1 << 28
_EXAMPLE_BATCH = 2

Given = dict[tuple[int, int], DynamicSize | int]


@dataclass(frozen=True)
class Examples:
    """Inputs to trace the model with; ``batch``: whether dimension 0 of every one is open; ``dynamic``: the other open sizes."""

    inputs: tuple[torch.Tensor, ...]
    batch: bool
    dynamic: Resolved


def examples(model: Model, dynamic_batch: bool, dynamic_shapes: DynamicShapes | None) -> Examples:
    """What the shapes of the file and the user say about each input.

    Raises:
        CaptureError: an open size without maximum, inputs that do not share a batch, ``dynamic_shapes`` that do not fit the model.
    """
    batch = dynamic_batch and _shares_batch(model)
    given = _given(model, dynamic_shapes or {}, batch)
    inputs, dynamic = [], []
    for position, spec in enumerate(model.inputs):
        sizes = [_size(spec, dim, size, given.get((position, dim)), batch) for dim, size in enumerate(spec.sizes)]
        shape = [size.maximum if isinstance(size, DynamicSize) else size for size in sizes]
        if math.prod(shape) > _LARGEST_INPUT:
            raise CaptureError(f"input '{spec.name}' has the shape {shape}: too large for one sample")
        inputs.append(torch.zeros(shape, dtype=traced_dtype(spec.dtype)))
        dynamic.append({dim: size for dim, size in enumerate(sizes) if isinstance(size, DynamicSize)})
    return Examples(tuple(inputs), batch, tuple(dynamic))


def _shares_batch(model: Model) -> bool:
    """Whether the file leaves dimension 0 of every input open; no input may stand apart."""
    is_open = [bool(spec.sizes) and not isinstance(spec.sizes[0], int) for spec in model.inputs]
    if not any(is_open):
        return False
    apart = [spec.name for spec, found in zip(model.inputs, is_open, strict=True) if not found]
    if apart:
        raise CaptureError(f"input '{apart[0]}' has no open batch in dimension 0 as others have: capture with dynamic_batch=False")
    batch = {spec.sizes[0] for spec in model.inputs if spec.sizes[0] is not None}
    for spec in model.inputs:
        elsewhere = [dim for dim, size in enumerate(spec.sizes) if dim > 0 and size in batch]
        if elsewhere:
            raise CaptureError(
                f"input '{spec.name}' has the batch in dimension {elsewhere[0]} ('{spec.sizes[elsewhere[0]]}') too:"
                " capture with dynamic_batch=False"
            )
    return True


def _given(model: Model, shapes: DynamicShapes, batch: bool) -> Given:
    """The user's sizes by input and dimension; what is said of a symbol holds wherever the file names it. A batch that is not to stay
    open is 1."""
    given: Given = {}
    names = [spec.name for spec in model.inputs]
    for key, dims in by_input(shapes):
        position = names.index(key) if key in names else key
        if not isinstance(position, int) or not 0 <= position < len(names):
            raise CaptureError(f"dynamic_shapes names the input {key!r}: {model.name} has {', '.join(names)}")
        for dim, wanted in dims.items():
            given[position, _checked(model.inputs[position], dim, batch)] = _resolved(wanted)
    symbols: dict[str, DynamicSize | int] = {}
    for (position, dim), size in given.items():
        symbol = model.inputs[position].sizes[dim]
        if isinstance(symbol, str) and symbols.setdefault(symbol, size) != size:
            raise CaptureError(f"dynamic_shapes gives the size '{symbol}' two values: use one for all inputs")
    if not batch:
        symbols = {**{spec.sizes[0]: 1 for spec in model.inputs if spec.sizes and isinstance(spec.sizes[0], str)}, **symbols}
    for position, spec in enumerate(model.inputs):
        for dim, symbol in enumerate(spec.sizes):
            if isinstance(symbol, str) and symbol in symbols:
                given[position, dim] = symbols[symbol]
    return given


def _resolved(size: DynamicSize | Dim | int) -> DynamicSize | int:
    if isinstance(size, int):
        if size < 1:
            raise CaptureError(f"dynamic_shapes gives the size {size}: sizes must be positive")
        return size
    return bounded(size)


def _checked(spec: Input, dim: int, batch: bool) -> int:
    rank = len(spec.sizes)
    if not -rank <= dim < rank:
        raise CaptureError(f"dynamic_shapes names dimension {dim} of the input '{spec.name}', which has {rank} dimensions")
    if isinstance(spec.sizes[dim], int):
        raise CaptureError(f"dimension {dim} of the input '{spec.name}' is {spec.sizes[dim]} in the file: leave it out of dynamic_shapes")
    if dim % rank == 0 and batch:
        raise CaptureError(f"dimension 0 of the input '{spec.name}' is the batch: leave it out of dynamic_shapes")
    return dim % rank


def _size(spec: Input, dim: int, size: int | str | None, given: DynamicSize | int | None, batch: bool) -> DynamicSize | int:
    if isinstance(size, int):
        return size
    if given is not None:
        return given
    if dim == 0:
        return _EXAMPLE_BATCH if batch else 1
    name = f" ('{size}')" if size else ""
    shown = f"Dim({size!r}, min=..., max=...)" if size and size.isidentifier() else "Dim(name, min=..., max=...)"
    raise CaptureError(
        f"input '{spec.name}' leaves its dimension {dim}{name} open: give its size, dynamic_shapes={{'{spec.name}': {{{dim}: number}}}},"
        f" or its bounds, {{{dim}: torch.export.{shown}}}"
    )
