"""What a user says about sizes that are known when a program is called, besides the batch: ``dynamic_shapes`` of ``capture``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.export import Dim

from qcompiler.errors import CaptureError, VerificationError
from qcompiler.ir.types import DynamicSize

BATCH_NAME = "batch"
# torch.export takes the sizes 0 and 1 for constants.
_SMALLEST_EXAMPLE = 2

# By dimension, or one entry for each dimension; None: the size of the example. A number where an ONNX file leaves a size open that is to
# have it.
_Sizes = Mapping[int, DynamicSize | Dim | int | None] | Sequence[DynamicSize | Dim | int | None] | None
# By input (its name in ``forward``, or its position), or one entry for each input, as torch.export takes them.
DynamicShapes = Mapping[str | int, _Sizes] | Sequence[_Sizes]
# The same by dimension, for each input in order.
Resolved = tuple[Mapping[int, DynamicSize], ...]


def resolve(model: nn.Module, inputs: Sequence[torch.Tensor], shapes: DynamicShapes | None, dynamic_batch: bool) -> Resolved:
    """The dynamic sizes of each input.

    Raises:
        CaptureError: no such input or dimension, a size without maximum, two bounds for one name, or an example that
            contradicts itself or the bounds.
    """
    resolved: list[dict[int, DynamicSize]] = [{} for _ in inputs]
    names = list(inspect.signature(model.forward).parameters)
    for key, dims in by_input(shapes):
        position = names.index(key) if key in names else key
        if not isinstance(position, int) or not 0 <= position < len(inputs):
            raise CaptureError(f"dynamic_shapes names the input {key!r}: {type(model).__name__} has {', '.join(names[: len(inputs)])}")
        rank = inputs[position].ndim
        for dim, size in dims.items():
            if not -rank <= dim < rank:
                raise CaptureError(f"dynamic_shapes names dimension {dim} of the input {key!r}, which has {rank} dimensions")
            if dim % rank == 0 and dynamic_batch:
                raise CaptureError(f"dimension 0 of the input {key!r} is the batch: leave it out of dynamic_shapes")
            if isinstance(size, int):
                raise CaptureError(f"dimension {dim} of the input {key!r} has the size of the example: leave it out of dynamic_shapes")
            resolved[position][dim % rank] = bounded(size)
    _check_examples(inputs, resolved)
    return tuple(resolved)


def by_input(shapes: DynamicShapes | None) -> list[tuple[str | int, dict[int, DynamicSize | Dim | int]]]:
    """What the user wrote, in one form: inputs by name or position, each with the sizes that are said of its dimensions.

    Raises:
        CaptureError: an entry is neither a mapping nor a sequence.
    """
    entries = shapes.items() if isinstance(shapes, Mapping) else enumerate(shapes or ())
    return [(key, _by_dimension(key, sizes)) for key, sizes in entries]


def _by_dimension(key: str | int, sizes: _Sizes) -> dict[int, DynamicSize | Dim | int]:
    if not isinstance(sizes, Mapping | list | tuple | None):
        raise CaptureError(
            f"dynamic_shapes gives the input {key!r} a {type(sizes).__name__}: give {{dimension: Dim(name, min=..., max=...)}}"
        )
    entries = sizes.items() if isinstance(sizes, Mapping) else enumerate(sizes or ())
    return {dim: size for dim, size in entries if size is not None}


def bounded(size: DynamicSize | Dim) -> DynamicSize:
    """A size of the user with its bounds.

    Raises:
        CaptureError: it has no maximum, or is no name of its own.
    """
    if isinstance(size, DynamicSize):
        found = size
    elif not isinstance(size, Dim) or not isinstance(size.max, int):
        name = getattr(size, "__name__", size)
        raise CaptureError(
            f"the dynamic size {str(name)!r} has no maximum, and memory is planned for it: use Dim({str(name)!r}, min=..., max=...)"
        )
    else:
        try:
            found = DynamicSize(size.__name__, max(1, size.min), size.max)
        except VerificationError as error:
            raise CaptureError(str(error)) from error
    if found.offset or found.name == BATCH_NAME:
        raise CaptureError(f"the dynamic size '{found}' of an input must be a name of its own, without offset, and not '{BATCH_NAME}'")
    return found


def _check_examples(inputs: Sequence[torch.Tensor], resolved: Sequence[Mapping[int, DynamicSize]]) -> None:
    known: dict[str, tuple[DynamicSize, int]] = {}
    for value, sizes in zip(inputs, resolved, strict=True):
        for dim, size in sizes.items():
            bounds, example = known.setdefault(size.name, (size, value.shape[dim]))
            if bounds != size:
                raise CaptureError(f"the dynamic size '{size.name}' is given two bounds: use one for all inputs")
            if example != value.shape[dim]:
                raise CaptureError(f"the example inputs give '{size.name}' the values {example} and {value.shape[dim]}: make them equal")
            if not max(size.minimum, _SMALLEST_EXAMPLE) <= example <= size.maximum:
                raise CaptureError(
                    f"the example inputs give '{size.name}' the value {example}: choose one of"
                    f" {max(size.minimum, _SMALLEST_EXAMPLE)} to {size.maximum}"
                )
