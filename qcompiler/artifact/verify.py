"""Prove an artifact again: integers only, no overflow, and on this machine the very integers that were stored with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcompiler.errors import VerificationError
from qcompiler.ir.program import Program
from qcompiler.ir.verifier import integer_report, prove_integer_only
from qcompiler.pipeline.backend import Executable


@dataclass(frozen=True)
class TestVector:
    """Integers for every input of a program, and the integers that it gives for them."""

    __test__: ClassVar[bool] = False  # pytest would collect the class by its name

    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Verification:
    """What was proven: the number of integer ops (there are no others but in islands that the user allowed, which ``proof`` names), and how
    many test vectors came out exactly."""

    integer_ops: int
    vectors: int
    proof: str

    def __str__(self) -> str:
        return f"{self.proof}; {self.vectors} test vectors: equal integers"


def verify(program: Program, vectors: Sequence[TestVector], executable: Executable | None = None) -> Verification:
    """Prove the program integer-only and free of overflow, and replay the vectors by the reference and by ``executable``.

    Raises:
        VerificationError: a proof fails, or an integer differs; the message says which, and from where.
    """
    proof = prove_integer_only(program)
    for position, vector in enumerate(vectors):
        _compare(program, position, vector, program.run_integer(*vector.inputs), "the reference")
        if executable is not None:
            _compare(program, position, vector, executable.run_integer(*vector.inputs), "the compiled code")
    return Verification(integer_report(program).integer_ops, len(vectors), proof)


def _compare(program: Program, position: int, vector: TestVector, outputs: Sequence[torch.Tensor], who: str) -> None:
    for spec, expected, found in zip(program.outputs, vector.outputs, outputs, strict=True):
        place = f"test vector {position}, output '{spec.name}': {who}"
        if expected.dtype != found.dtype or expected.shape != found.shape:
            found_type, expected_type = (f"{tensor.dtype} {list(tensor.shape)}" for tensor in (found, expected))
            raise VerificationError(f"{place} gives {found_type}, stored is {expected_type}; compile the model again")
        if not torch.equal(expected, found):
            differing = (expected != found).nonzero()
            first = tuple(differing[0].tolist())
            raise VerificationError(
                f"{place} gives {int(found[first])} at {list(first)}, stored is {int(expected[first])}"
                f" ({len(differing)} of {expected.numel()} differ); compile the model again on this machine"
            )
