"""The tables themselves: no row can let a float into INTEGER, and every row has what the rest of the compiler needs for it."""

from __future__ import annotations

import pytest
import torch

from qcompiler.ir import ranges
from qcompiler.ir.ops import SCHEMAS
from qcompiler.ir.stages import STAGES, is_tensor_parameter, target_names, target_text
from qcompiler.ir.types import Stage


def test_no_float_anywhere_at_integer() -> None:
    stage = STAGES[Stage.INTEGER]
    dtypes = {dtype for row in stage.ops.values() for kinds in (row.results, *row.operands.values()) for dtype in kinds} | stage.dtypes
    assert dtypes == {torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool}
    assert float not in stage.attributes and not any(issubclass(float, kind) for kind in stage.attributes)


def test_every_tensor_operand_of_an_integer_op_has_its_dtypes() -> None:
    for target, row in STAGES[Stage.INTEGER].ops.items():
        schema = target._schema  # type: ignore[attr-defined]
        tensors = {parameter.name for parameter in schema.arguments if is_tensor_parameter(parameter)}
        assert row.operands.keys() == tensors, target
        assert row.choices.keys() <= {parameter.name for parameter in schema.arguments}, target


def test_every_integer_op_has_a_range_rule() -> None:
    assert STAGES[Stage.INTEGER].ops.keys() == ranges._RULES.keys()


def test_every_op_of_ours_belongs_to_a_stage() -> None:
    ours = {f"qc.{name}.default" for name in SCHEMAS}
    assert ours <= target_names(Stage.INTEGER).keys() | target_names(Stage.QDQ).keys()


@pytest.mark.parametrize("stage", list(Stage))
def test_names_and_targets_correspond(stage: Stage) -> None:
    names = target_names(stage)
    assert len(names) == len(STAGES[stage].ops)
    assert all(target_text(target) == name for name, target in names.items())


@pytest.mark.parametrize("stage", list(Stage))
def test_no_op_mutates_its_operands(stage: Stage) -> None:
    for target in STAGES[stage].ops:
        schema = getattr(target, "_schema", None)
        assert schema is None or not schema.is_mutable, target
