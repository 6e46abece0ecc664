from __future__ import annotations

from typing import Any

import pytest
import torch

from qcompiler.backends.reference import backend
from qcompiler.errors import ArtifactError, QCompilerError, UnknownNameError
from qcompiler.pipeline.backend import CompiledProgram


@pytest.fixture(scope="module")
def program(integer_program: Any) -> Any:
    p = integer_program()
    clamped = p.call("qc.clamp", p.input(None, 3, 4, 4), 10, 200)
    return p.finish(p.call("aten.flip", clamped, [2]))


def test_runs_the_program_with_kept_values(program: Any, random_inputs: Any) -> None:
    executable = backend.load(program, backend.compile(program, "reference", keep=["clamp"]), threads=1)
    (x,) = random_inputs(program, 3)
    flipped, kept = executable.run_integer(x)
    assert torch.equal(flipped, program.run_integer(x)[0]) and torch.equal(kept, x.clamp(10, 200))
    floats = torch.randn(2, 3, 4, 4)
    assert torch.equal(executable.run(floats)[0], program.run(floats)[0])


def test_threads_hold_for_its_runs_only(program: Any, random_inputs: Any) -> None:
    before = torch.get_num_threads()
    executable = backend.load(program, backend.compile(program, "reference"), threads=before + 1)
    executable.run_integer(*random_inputs(program, 1))
    assert torch.get_num_threads() == before
    with pytest.raises(QCompilerError, match="at least 1"):
        executable.set_threads(0)


def test_errors(program: Any) -> None:
    with pytest.raises(UnknownNameError, match="unknown target 'x86'"):
        backend.compile(program, "x86")
    with pytest.raises(UnknownNameError, match="unknown node 'clam': did you mean 'clamp'"):
        backend.compile(program, "reference", keep=["clam"])
    with pytest.raises(ArtifactError, match="lacks kept.json"):
        backend.load(program, CompiledProgram("reference", {}))
