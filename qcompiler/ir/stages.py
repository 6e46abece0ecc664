"""What each stage may hold, as tables: ops, dtypes of their operands and results, types of their attributes.

The verifier reads these tables after every pass, and the reader of artifacts resolves op names through them and nothing else.
A new op at a stage is a new row here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.arithmetic import NORMALIZE_FORMS, ROUNDINGS, SOFTMAX_FORMS
from qcompiler.ir.float_ops import COMPARISON_OPS, FLOAT_OPS
from qcompiler.ir.types import Stage

Target = Callable[..., Any]
Dtypes = frozenset[torch.dtype]

_aten, _qc = torch.ops.aten, torch.ops.qc

_FLOAT: Dtypes = frozenset({torch.float32})
_BYTE: Dtypes = frozenset({torch.int8, torch.uint8})
_INT8: Dtypes = frozenset({torch.int8})
_INT32: Dtypes = frozenset({torch.int32})
_INT16: Dtypes = frozenset({torch.uint8, torch.int8, torch.int16})
_INTEGER: Dtypes = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32})
_BOOL: Dtypes = frozenset({torch.bool})
_INT64: Dtypes = frozenset({torch.int64})
_INDEX: Dtypes = _INTEGER | _INT64  # token ids as users have them
_WHOLE: Dtypes = _INDEX | _BOOL
_ANY: Dtypes = _FLOAT | _WHOLE


@dataclass(frozen=True)
class OpSpecification:
    """One row: the dtypes of tensor operands by their names in the schema, of every result, and enumerated attribute values."""

    operands: Mapping[str, Dtypes]
    results: Dtypes
    choices: Mapping[str, frozenset[object]] = field(default_factory=dict)


@dataclass(frozen=True)
class StageSpecification:
    """All rows of a stage, the dtypes of its inputs and constants, and the types that an attribute may have."""

    stage: Stage
    ops: Mapping[Target, OpSpecification]
    dtypes: Dtypes
    attributes: tuple[type, ...]


def is_tensor_parameter(parameter: torch.Argument) -> bool:
    """Whether a parameter of an op's schema takes a tensor, an optional tensor or a list of tensors."""
    return "Tensor" in str(parameter.type)


def _uniform(targets: Iterable[Target], dtypes: Dtypes) -> dict[Target, OpSpecification]:
    """One row for each target: all its tensors may have all of ``dtypes``."""
    return {target: OpSpecification(dict.fromkeys(_tensor_names(target), dtypes), dtypes) for target in targets}


def _tensor_names(target: Target) -> tuple[str, ...]:
    schema = getattr(target, "_schema", None)  # operator.getitem has none
    return tuple(parameter.name for parameter in schema.arguments if is_tensor_parameter(parameter)) if schema else ()


INTEGER_MOVEMENT_OPS: frozenset[Target] = frozenset(
    {
        _aten.view.default,
        _aten.reshape.default,
        _aten.flatten.using_ints,
        _aten.permute.default,
        _aten.transpose.int,
        _aten.slice.Tensor,
        _aten.select.int,
        _aten.cat.default,
        _aten.constant_pad_nd.default,
        _aten.expand.default,
        _aten.squeeze.dims,
        _aten.unsqueeze.default,
        _aten.clone.default,
        _aten.flip.default,
        _aten.unflatten.int,
    }
)

# A number with a tensor, and masks with masks: they give bool. ``to.dtype`` changes between integer types; its range is proven.
INTEGER_COMPARISON_OPS = COMPARISON_OPS
INTEGER_MASK_OPS: frozenset[Target] = frozenset(
    {_aten.logical_not.default, _aten.logical_and.default, _aten.bitwise_and.Tensor, _aten.bitwise_or.Tensor}
)

_FACTOR = {"multiplier": _INT32, "pre_shift": _INT32, "shift": _INT32}
_FORMS: frozenset[object] = frozenset({"high", "narrow", "exact64"})

_GROUPS = OpSpecification({"codes": _INT8, "factors": _INT8}, _INT8)

_INTEGER_OPS: dict[Target, OpSpecification] = {
    _qc.convolution.default: OpSpecification({"x": _BYTE, "weight": _INT8, "bias": _INT32}, _INT32),
    _qc.linear.default: OpSpecification({"x": _INT16, "weight": _INT8, "bias": _INT32}, _INT32),
    _qc.scale_groups.default: _GROUPS,
    _qc.matmul.default: OpSpecification({"a": _INT16, "b": _INT16}, _INT32),
    _qc.requantize.default: OpSpecification({"x": _INTEGER, **_FACTOR}, _INTEGER, {"form": _FORMS}),
    _qc.add.default: OpSpecification(
        {
            "a": _INTEGER,
            "b": _INTEGER,
            "pre_shift_a": _INT32,
            "multiplier_a": _INT32,
            "pre_shift_b": _INT32,
            "multiplier_b": _INT32,
        },
        _INTEGER,
    ),
    _qc.multiply.default: OpSpecification({"a": _INTEGER, "b": _INTEGER}, _INT32),
    _qc.lookup.default: OpSpecification({"x": _BYTE, "table": _INTEGER}, _INTEGER),
    _qc.bucketize.default: OpSpecification({"x": _INTEGER, "boundaries": _INT32}, _INTEGER),
    _qc.embedding.default: OpSpecification({"weight": _INT16, "ids": _INDEX}, _INT16),
    _qc.nonlinear.default: OpSpecification({"x": _INTEGER}, _INT32),
    _qc.softmax.default: OpSpecification(
        {"x": _INTEGER, "table": _INT32, "mask": _BOOL},
        _INTEGER,
        {"form": frozenset[object](SOFTMAX_FORMS), "rounding": frozenset[object](ROUNDINGS)},
    ),
    _qc.normalize.default: OpSpecification({"x": _INTEGER}, _INT32, {"form": frozenset[object](NORMALIZE_FORMS)}),
    _qc.hadamard.default: OpSpecification({"x": _INT16}, _INT32),
    _qc.divide.default: OpSpecification({"x": _INTEGER, "divisor": _INTEGER}, _INT32),
    _qc.clamp.default: OpSpecification({"x": _INTEGER}, _INTEGER),
    _qc.max_pool2d.default: OpSpecification({"x": _INTEGER}, _INTEGER),
    _qc.adaptive_max_pool2d.default: OpSpecification({"x": _INTEGER}, _INTEGER),
    _qc.sum_pool2d.default: OpSpecification({"x": _INTEGER}, _INT32),
    _qc.adaptive_sum_pool2d.default: OpSpecification({"x": _INTEGER}, _INT32),
    _qc.sum.default: OpSpecification({"x": _INTEGER}, _INT32),
    _qc.dilate.default: OpSpecification({"x": _INTEGER}, _INTEGER),
    _aten.argmax.default: OpSpecification({"self": _INTEGER}, _INT64),
    _aten.to.dtype: OpSpecification({"self": _WHOLE}, _WHOLE),
    _aten.sym_size.int: OpSpecification({"self": _WHOLE}, frozenset()),
    **{target: OpSpecification({"self": _WHOLE}, _BOOL) for target in INTEGER_COMPARISON_OPS},
    **_uniform(INTEGER_MASK_OPS, _BOOL),
    **_uniform(INTEGER_MOVEMENT_OPS, _WHOLE),
}

_FLOAT_OPS = _uniform(FLOAT_OPS, _ANY)

# The border between reals and integers: programs of models that were quantized elsewhere have them from the start.
QUANTIZATION_OPS: frozenset[Target] = frozenset({_qc.quantize.default, _qc.dequantize.default})

_QDQ_OPS: dict[Target, OpSpecification] = {
    **_FLOAT_OPS,
    _qc.quantize.default: OpSpecification({"x": _FLOAT}, _INTEGER),
    _qc.dequantize.default: OpSpecification({"x": _INTEGER}, _FLOAT),
    _qc.encode.default: OpSpecification({"x": _FLOAT}, frozenset({torch.uint8})),
    _qc.decode.default: OpSpecification({"codes": frozenset({torch.uint8})}, _FLOAT),
    _qc.scale_groups.default: _GROUPS,
}

_FLOAT_ATTRIBUTES = (float, int, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
# A dtype is the target of ``to.dtype``, whose result has to be one of the row's; the others are its defaults.
_INTEGER_ATTRIBUTES = (int, bool, str, type(None), torch.dtype, torch.memory_format)

STAGES: dict[Stage, StageSpecification] = {
    Stage.FLOAT: StageSpecification(Stage.FLOAT, _FLOAT_OPS, _ANY, _FLOAT_ATTRIBUTES),
    Stage.QDQ: StageSpecification(Stage.QDQ, _QDQ_OPS, _ANY, _FLOAT_ATTRIBUTES),
    Stage.INTEGER: StageSpecification(Stage.INTEGER, _INTEGER_OPS, _WHOLE, _INTEGER_ATTRIBUTES),
}


def target_names(stage: Stage) -> dict[str, Target]:
    """The stage's targets by their full names (``qc.requantize.default``), the only way from a name to an op."""
    return {target_text(target): target for target in STAGES[stage].ops}


def island_target(name: str) -> Target | None:
    """The op of a float island by its full name: one of stage QDQ, or any aten op that only computes a tensor from tensors and numbers."""
    known = target_names(Stage.QDQ).get(name)
    parts = name.split(".")
    if known is not None or len(parts) != 3 or parts[0] != "aten" or not all(part.isidentifier() for part in parts):
        return known
    packet = getattr(_aten, parts[1], None)
    target = getattr(packet, parts[2], None)
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return None
    arguments, results = target._schema.arguments, target._schema.returns
    takes_text = any("str" in str(argument.type) for argument in arguments)
    gives_tensor = len(results) == 1 and str(results[0].type) == "Tensor"
    reads_tensor = bool(arguments) and str(arguments[0].type) == "Tensor"
    return target if gives_tensor and reads_tensor and not takes_text else None


def target_text(target: Target) -> str:
    """``aten.add.Tensor`` for an op, ``operator.getitem`` for the one Python function among the targets."""
    return str(target) if isinstance(target, torch._ops.OpOverload) else f"operator.{target.__name__}"
