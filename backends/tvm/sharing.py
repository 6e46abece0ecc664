"""Kernels that differ in numbers alone become one: the numbers are read when it runs instead of being part of its code.

Which zero points, shifts and bounds a layer has is an accident of calibration. With them in the code each layer of a network would be a
kernel of its own, compiled by itself. A number stays where it decides what code there is: a zero point of 0 is not subtracted, a bound that
the type implies is not checked, an activation whose zero point the instructions want anyway needs no correction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qcompiler.backends.tvm import kernels as k
from qcompiler.backends.tvm.kernels import Argument, Kernel

_NOTHING: frozenset[int] = frozenset()
_ZERO = frozenset({0})
_FLIPPED = frozenset({0, 128, -128})  # zero points that need no correction, most of them after flipping the top bit
_BOUNDS = frozenset({-(2**31), -(2**15), -128, 0, 127, 255, 2**15 - 1, 2**31 - 1})
_SATURATION = {"zero_point": _ZERO, "low": _BOUNDS, "high": _BOUNDS}

# For each field the numbers that stay in the code.
_FIELDS: Mapping[type, Mapping[str, frozenset[int]]] = {
    k.Requantization: _SATURATION,
    k.ResidualAdd: {"operand_zero_point": _ZERO, "shift": _NOTHING, **_SATURATION},
    k.Requantize: {"input_zero_point": _ZERO, **_SATURATION},
    k.Add: {"shift": _NOTHING, "zero_point_a": _ZERO, "zero_point_b": _ZERO, **_SATURATION},
    k.Multiply: {"zero_point_a": _ZERO, "zero_point_b": _ZERO},
    k.Clamp: {"low": _BOUNDS, "high": _BOUNDS},
    k.Fill: {"value": _ZERO},
    k.Normalize: {"zero_point": _ZERO, "epsilon": _NOTHING},
    k.RowAffine: {"pre_shift": _ZERO, "shift": _NOTHING, "input_zero_point": _ZERO, **_SATURATION},
    k.ProductKernel: {"zero_point_a": _ZERO, "zero_point_b": _ZERO},
    k.ReductionKernel: {"zero_point": _ZERO},
    k.HaloKernel: {"value": _NOTHING},
    k.HadamardKernel: {"zero_point": _ZERO},
}
_PARTS = ("epilogue", "operation", "scores", "result", "addition", "affine", "narrowing", "rounding", "layer", "transform")


def share(kernel: Kernel) -> tuple[Kernel, tuple[int, ...]]:
    """The kernel with an Argument for every number that its code does not depend on, and these numbers in their order.

    Kernels of one function a row keep theirs: constants of a function's form choose how it is divided and shifted.
    """
    if isinstance(kernel, k.RowKernel):
        return kernel, ()
    numbers: list[int] = []

    def open_number(number: int) -> Argument:
        numbers.append(number)
        return Argument(len(numbers) - 1)

    return _opened(kernel, open_number), tuple(numbers)


def count(kernel: object) -> int:
    """How many numbers a kernel reads."""
    if isinstance(kernel, tuple):
        return sum(map(count, kernel))
    if isinstance(kernel, Argument):
        return 1
    return sum(count(getattr(kernel, field.name)) for field in dataclasses.fields(kernel)) if dataclasses.is_dataclass(kernel) else 0


def resolved(kernel: Any, read: Callable[[int], Any]) -> Any:
    """The kernel with ``read(index)`` in the place of each Argument, for the templates to compute with."""
    if isinstance(kernel, Argument):
        return read(kernel.index)
    if isinstance(kernel, tuple):
        return tuple(resolved(item, read) for item in kernel)
    if not count(kernel):
        return kernel
    return dataclasses.replace(kernel, **{field.name: resolved(getattr(kernel, field.name), read) for field in dataclasses.fields(kernel)})


def _opened(part: Any, open_number: Callable[[int], Argument]) -> Any:
    changes: dict[str, Any] = {}
    if isinstance(part, k.RowAffine):
        part = _without_packed_numbers(part)
    if isinstance(part, k.AttentionKernel):
        changes["zero_points"] = _opened_zero_points(part.zero_points, open_number)
    if isinstance(part, k.MatrixProductKernel):
        names = ("zero_point_a", "zero_point_b")
        changes |= zip(names, _opened_zero_points((part.zero_point_a, part.zero_point_b), open_number), strict=True)
    for name, kept in _FIELDS.get(type(part), {}).items():
        number: Any = getattr(part, name)
        if number is not None and number not in kept:
            changes[name] = open_number(number)
    for name in _PARTS:
        value = getattr(part, name, None)
        if dataclasses.is_dataclass(value):
            changes[name] = _opened(value, open_number)
    return dataclasses.replace(part, **changes)


def _opened_zero_points(zero_points: Sequence[Any], open_number: Callable[[int], Argument]) -> tuple[Any, ...]:
    """Of a product. By chance one of them is 128 now and then; that is worth a kernel only where no correction at all is left."""
    kept = _FLIPPED if all(zero in _FLIPPED for zero in zero_points) else _ZERO
    return tuple(zero if zero in kept else open_number(zero) for zero in zero_points)


def _without_packed_numbers(affine: k.RowAffine) -> k.RowAffine:
    """What ``packing_rows`` puts into the offsets is of no concern to the code."""
    zero_point = 0 if affine.offset_has_zero_point else affine.zero_point
    return dataclasses.replace(affine, zero_point=zero_point, constant_zero_point=0)
