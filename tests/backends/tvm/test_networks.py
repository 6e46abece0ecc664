"""Whole networks: the compiled program equals the reference in every value that exists in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler import native
from qcompiler.backends.reference import backend as reference
from qcompiler.backends.tvm.planner import make_plan
from qcompiler.backends.tvm.target import TARGETS

EMULATED = 13  # images where AMX is emulated, which takes a signal for each instruction
HAS_AMX = native.request_amx()


@pytest.fixture(scope="module")
def resnet(resnet20: nn.Module, cifar10_calibration: torch.Tensor) -> Any:
    program = qc.capture(resnet20, cifar10_calibration[:2], dynamic_batch=True)
    return qc.quantize(program, cifar10_calibration[:100].split(20), recipe="int8")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_resnet20(target: str, resnet: Any, cifar10_test: Any, compile_for: Any, request: pytest.FixtureRequest) -> None:
    """The values of the last layer and all that lie between, which keeping does not change: fusion stays as it is."""
    images = cifar10_test[0]
    if target == "x86-64-amx":
        request.getfixturevalue("amx_machine")
        images = images if HAS_AMX else images[:EMULATED]
    kept = list(dict.fromkeys(step.nodes[-1] for step in make_plan(resnet, TARGETS[target]).body if step.nodes[-1] not in _inputs(resnet)))
    executable = compile_for(resnet, target, keep=kept)
    expected = reference.load(resnet, reference.compile(resnet, "reference", keep=kept)).run(images)
    assert sum(value[0].numel() for value in expected) > 100_000
    for threads in (1, 2):
        executable.set_threads(threads)
        names = [*(spec.name for spec in resnet.outputs), *kept]
        pairs = zip(names, expected, executable.run(images), strict=True)
        assert [name for name, want, got in pairs if not torch.equal(want, got)] == []


def _inputs(program: Any) -> set[str]:
    return {node.name for node in program.graph.nodes if node.op == "placeholder"}
