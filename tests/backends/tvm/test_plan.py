from __future__ import annotations

import json
from typing import Any

import pytest

from qcompiler.backends.tvm import plan as plans
from qcompiler.backends.tvm.planner import make_plan
from qcompiler.backends.tvm.target import TARGETS
from qcompiler.errors import ArtifactError


@pytest.fixture(scope="module")
def plan(integer_program: Any) -> plans.Plan:
    program = integer_program()
    x = program.input(None, 8, 6, 6)
    accumulator, bound = program.convolution(x, 8, (3, 3), padding=(1, 1, 1, 1))
    return make_plan(program.finish(program.requantize(accumulator, bound, (8, 1, 1))), TARGETS["x86-64-v3"])


def test_round_trip(plan: plans.Plan) -> None:
    data = plans.dumps(plan)
    assert plans.loads(data) == plan
    assert plans.dumps(plans.loads(data)) == data


def _changed(data: bytes, change: Any) -> bytes:
    document = json.loads(data)
    change(document["plan"])
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan.update(kind="Program"), "unknown kind 'Program'"),
        (lambda plan: plan.pop("kind"), "unknown kind 'None'"),
        (lambda plan: plan.pop("arena_size"), "other fields than this version knows: arena_size"),
        (lambda plan: plan.update(extra=1), "other fields than this version knows: extra"),
        (lambda plan: plan.update(arena_size="12"), "wrong type in arena_size"),
        (lambda plan: plan.update(arena_size=True), "wrong type in arena_size"),
        (lambda plan: plan["body"][0]["pointers"][0].update(space="stack"), "wrong type in space"),
        (lambda plan: plan["inputs"][0]["sample_shape"].append(None), "wrong type in sample_shape"),
    ],
)
def test_strict(plan: plans.Plan, change: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        plans.loads(_changed(plans.dumps(plan), change))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format": 3}', b'{"format": 1}', b'{"format": 1, "plan": 3}', b"\xff"])
def test_not_a_plan(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        plans.loads(data)
