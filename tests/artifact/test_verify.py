from __future__ import annotations

import pytest
import torch

from qcompiler.artifact import TestVector, verify
from qcompiler.errors import VerificationError
from qcompiler.ir import edit
from qcompiler.ir.program import Program


class Replay:
    """An executable that runs the reference and may change what it gives."""

    def __init__(self, program: Program, change: int = 0) -> None:
        self.program, self.change, self.runs = program, change, 0

    def run_integer(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.runs += 1
        (y,) = self.program.run_integer(*inputs)
        y[0, 1, 2, 3] += self.change
        return (y,)

    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.program.run(*inputs)

    def set_threads(self, threads: int) -> None:
        self.threads = threads


def test_proof_and_replay(program: Program, vectors: tuple[TestVector, ...]) -> None:
    executable = Replay(program)
    verification = verify(program, vectors, executable)
    assert executable.runs == 2
    assert str(verification) == "integer-only: proven (2 integer ops, 0 float ops); 2 test vectors: equal integers"
    assert verify(program, vectors) == verification


def test_one_different_integer_is_named(program: Program, vectors: tuple[TestVector, ...]) -> None:
    expected = int(vectors[0].outputs[0][0, 1, 2, 3])
    message = rf"the compiled code gives {(expected + 1) % 256} at \[0, 1, 2, 3\], stored is {expected} \(1 of 48 differ\)"
    with pytest.raises(VerificationError, match=f"test vector 0, output 'y': {message}"):
        verify(program, vectors, Replay(program, change=1))


def test_vectors_of_another_program_are_caught_by_the_reference(program: Program, vectors: tuple[TestVector, ...]) -> None:
    wrong = TestVector(vectors[0].inputs, (vectors[0].outputs[0] ^ 1,))
    with pytest.raises(VerificationError, match=r"test vector 0, output 'y': the reference gives .* \(48 of 48 differ\)"):
        verify(program, [wrong])


def test_another_shape_is_named(program: Program, vectors: tuple[TestVector, ...]) -> None:
    wrong = TestVector(vectors[1].inputs, vectors[0].outputs)
    with pytest.raises(VerificationError, match=r"gives torch.uint8 \[2, 3, 4, 4\], stored is torch.uint8 \[1, 3, 4, 4\]"):
        verify(program, [wrong])


def test_a_program_that_can_overflow_is_caught(program: Program, vectors: tuple[TestVector, ...]) -> None:
    broken = edit.copy(program)
    broken.graph_module.l = torch.tensor(20, dtype=torch.int32)
    with pytest.raises(VerificationError, match=r"a << pre_shift \(up to 20\) lies in"):
        verify(broken, vectors)
