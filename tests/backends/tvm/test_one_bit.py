"""Networks whose weights are -1 and +1, with activations of few bits: compiled code equals the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qcompiler.artifact.packing import packings
from qcompiler.ir.program import Program


@pytest.mark.parametrize(
    ("target", "options"),
    [("x86-64-v3", "w=1,a=2"), ("x86-64-vnni", "w=1,a=1"), ("x86-64-amx", "w=1,a=8,edge_bits=8")],
)
def test_equals_the_reference(
    target: str, options: str, one_bit: Callable[[str], tuple[Program, torch.Tensor]], compile_for: Any, request: pytest.FixtureRequest
) -> None:
    if target == "x86-64-amx":
        request.getfixturevalue("amx_machine")
    program, x = one_bit(options)
    binary = [packing for packing in packings(program).values() if packing.bits == 1]
    assert len(binary) == (3 if "edge_bits" in options else 5)
    executable = compile_for(program, target)
    for inputs in (x[:1], x[:3]):
        (want,), (found,) = program.run(inputs), executable.run(inputs)
        assert torch.equal(found, want) and want.dtype == found.dtype
