"""Integers that the user gives: token ids and masks. Their ranges are declared, and they become reals of scale 1.

- Ids, which choose rows of a table, lie in [0, rows - 1].
- Integers that are cast to floats (a mask that multiplies values) lie in the narrowest of [0, 1], [0, 255] and int16 that holds what the
  calibration data have.
- Integers that are only compared may be any.

``Program`` checks the ranges of what it is given, and the overflow proof relies on them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import fx

from qcompiler.calibration.statistics import Observation, ObserverSpec, StatisticRequest
from qcompiler.errors import CalibrationError, UnsupportedOpError
from qcompiler.ir import edit
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import INT16, INT32, UINT8, IntegerRange, IntegerType, QuantizedType
from qcompiler.passes.quantize.rules import ROLES, Role, is_whole

_aten = torch.ops.aten

_ANSWERS = (IntegerRange(0, 1), IntegerRange(UINT8.low, UINT8.high), IntegerRange(INT16.low, INT16.high))


def statistics(program: Program) -> list[StatisticRequest]:
    """Questions about the integer inputs that are cast to floats."""
    return [StatisticRequest(node.name, ObserverSpec("min-max")) for node, _ in _integer_inputs(program) if _is_cast(node)]


def input_ranges(program: Program, statistics: Mapping[str, Observation]) -> tuple[ValueSpec, ...]:
    """The input specifications with ranges.

    Raises:
        CalibrationError: integers that are cast have no statistics, or are too large for 16 bits.
    """
    specs = {spec.name: spec for spec in program.inputs}
    for node, spec in _integer_inputs(program):
        observed = [_observed(node, statistics)] if _is_cast(node) else []
        specs[spec.name] = narrowed(spec, [*rows_of_tables(node), *observed])
    return tuple(specs.values())


def narrowed(spec: ValueSpec, ranges: Iterable[IntegerRange]) -> ValueSpec:
    """The specification with what its own range and the given ones have in common; without any it stays."""
    found = [*ranges, *([] if spec.range is None else [spec.range])]
    return replace(spec, range=functools.reduce(IntegerRange.intersection, found)) if found else spec


def types(program: Program) -> dict[fx.Node, QuantizedType]:
    """The type of every float value that holds whole numbers (``rules.is_whole``)."""
    ranges = {node: spec.range for node, spec in _integer_inputs(program)}
    found: dict[fx.Node, QuantizedType] = {}
    for node in program.graph.nodes:
        if is_whole(node):
            found[node] = _type_of(node, found, ranges)
    return found


def scaled(quantized: QuantizedType, factor: float) -> QuantizedType:
    """The same integers, which stand for ``factor`` times as much."""
    return replace(quantized, scale=tuple(float(torch.tensor(scale * factor, dtype=torch.float32)) for scale in quantized.scale))


def _type_of(node: fx.Node, found: Mapping[fx.Node, QuantizedType], ranges: Mapping[fx.Node, IntegerRange | None]) -> QuantizedType:
    source = node.args[0]
    assert isinstance(source, fx.Node)  # the op's tensor
    if node.target is _aten.to.dtype:
        return QuantizedType(_integer_type(node, _range_of(source, ranges)), (1.0,))
    return QuantizedType(INT32, (1.0,)) if node.target is _aten.sum.dim_IntList else found[source]


def _integer_type(node: fx.Node, known: IntegerRange | None) -> IntegerType:
    for kind in (UINT8, INT16):
        if known is not None and known.within(kind):
            return kind
    raise UnsupportedOpError(
        f"{describe(node)} makes floats of integers whose range is not known to fit 16 bits: give the model the values as floats"
    )


def _range_of(node: fx.Node, ranges: Mapping[fx.Node, IntegerRange | None]) -> IntegerRange | None:
    if node.meta["val"].dtype is torch.bool:
        return _ANSWERS[0]
    constant = edit.constant_value(node)
    if constant is not None:
        return IntegerRange(int(constant.min()), int(constant.max()))
    source = node.args[0] if ROLES.get(node.target) is Role.MOVE else None
    return _range_of(source, ranges) if isinstance(source, fx.Node) else ranges.get(node)


def _integer_inputs(program: Program) -> Iterator[tuple[fx.Node, ValueSpec]]:
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, program.inputs, strict=True):
        if not node.meta["val"].is_floating_point():
            yield node, spec


def readers(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Who reads the value, or what only moves its elements, each after what it reads."""
    for user in node.users:
        yield node, user
        if ROLES.get(user.target) is Role.MOVE and user.args[0] is node:
            yield from readers(user)


def _is_cast(node: fx.Node) -> bool:
    return any(is_whole(user) for _, user in readers(node) if user.target is _aten.to.dtype)


def rows_of_tables(node: fx.Node) -> list[IntegerRange]:
    """The ids of each table that integers choose rows of."""
    return [
        IntegerRange(0, int(user.args[0].meta["val"].shape[0]) - 1)  # type: ignore[union-attr]  # the table
        for value, user in readers(node)
        if edit.is_call(user, _aten.embedding.default) and user.args[1] is value
    ]


def _observed(node: fx.Node, statistics: Mapping[str, Observation]) -> IntegerRange:
    observation = statistics.get(node.name)
    if observation is None:
        raise CalibrationError(f"no statistics of input '{node.name}': give calibration data")
    seen = IntegerRange(int(min(observation.low)), int(max(observation.high)))
    for answer in _ANSWERS:
        if answer.low <= seen.low and seen.high <= answer.high:
            return answer
    raise CalibrationError(f"input '{node.name}' holds integers in {seen}, and 16 bits are the most that is computed with: scale them down")
