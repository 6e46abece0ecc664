"""Parameters of a fused normalization in the layout that its kernel reads. Runs at load time too: numpy only, no TVM."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.tvm.kernels import NormalizationKernel, RowAffine
from qcompiler.backends.tvm.templates.layout import Parameter

Array = NDArray[np.generic]
Integers = NDArray[np.int64]

_GRANULE = 64  # channels: no vector reads past the last entry
ADDITION_ROLES = ("sum_pre_shift_a", "sum_multiplier_a", "sum_pre_shift_b", "sum_multiplier_b")
_NARROWING_ROLES = ("narrow_pre_shift", "narrow_multiplier", "narrow_shift")


def parameters(kernel: NormalizationKernel) -> tuple[Parameter, ...]:
    """The arrays in the kernel's order: those of the addition, of the affine part, of the narrower copy; all int32."""
    padded = -(-kernel.length // _GRANULE) * _GRANULE
    names = {role: 1 for role in ADDITION_ROLES if kernel.addition is not None}
    if kernel.affine is not None:
        names |= dict.fromkeys(_affine_names(kernel.affine), padded)
    if isinstance(kernel.narrowing, RowAffine):
        names |= {f"narrow_{name}": padded for name in _affine_names(kernel.narrowing)}
    elif kernel.narrowing is not None:
        names |= dict.fromkeys(_NARROWING_ROLES, padded if kernel.narrowing_per_channel else 1)
    return tuple(Parameter(name, "int32", size) for name, size in names.items())


def _affine_names(affine: RowAffine) -> list[str]:
    return ["multiplier", "offset", *(name for name in ("pre_shift", "shift") if getattr(affine, name) is None)]


def pack(kernel: NormalizationKernel, constants: Mapping[str, Array]) -> tuple[Array, ...]:
    """The arrays of ``parameters``.

    ``constants`` are one element or one for each channel: ``multiplier``, ``pre_shift`` and ``shift`` (where the kernel has no number for
    it) of the affine part; where that is a ``qc::add`` also its constant operand as ``constant`` with ``constant_pre_shift`` and
    ``constant_multiplier``. Those of a narrower copy begin with ``narrow_``; the others have the names of the arrays.
    """
    values = {role: np.asarray(array, np.int64).reshape(-1) for role, array in constants.items()}
    if kernel.affine is not None:
        values["offset"] = _offset(kernel.affine, values)
    if isinstance(kernel.narrowing, RowAffine):
        own = {role.removeprefix("narrow_"): array for role, array in values.items() if role.startswith("narrow_")}
        values["narrow_offset"] = _offset(kernel.narrowing, own)
    return tuple(_spread(values[parameter.name], parameter.size, kernel.length) for parameter in parameters(kernel))


def _offset(affine: RowAffine, values: Mapping[str, Integers]) -> Integers:
    """All that is added to the high half of the normalized value's product."""
    shift = values["shift"] if affine.shift is None else np.full(1, affine.shift, np.int64)
    unit = np.left_shift(np.ones(1, np.int64), shift)
    zero_point = affine.zero_point if affine.offset_has_zero_point else 0
    return np.asarray(zero_point * unit + (unit >> 1) + _constant_half(affine, values), np.int64)


def _constant_half(affine: RowAffine, values: Mapping[str, Integers]) -> Integers | int:
    """The high half of the constant operand's product."""
    if "constant" not in values:
        return 0
    centred = values["constant"] - affine.constant_zero_point
    return ((centred << values["constant_pre_shift"]) * values["constant_multiplier"]) >> 32


def _spread(values: Integers, size: int, length: int) -> Array:
    if size == 1:
        return values[:1].astype(np.int32)
    return np.pad(np.broadcast_to(values, (length,)), (0, size - length)).astype(np.int32)
