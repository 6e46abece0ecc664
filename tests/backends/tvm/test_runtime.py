from __future__ import annotations

import gc
import os
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from qcompiler.backends.tvm import LIBRARY, PLAN, backend
from qcompiler.errors import ArtifactError, QCompilerError
from qcompiler.ir.types import UINT8, IntegerRange, QuantizedType
from qcompiler.pipeline.backend import CompiledProgram

PER_CHANNEL = QuantizedType(UINT8, (0.5, 0.25, 3.0), (0, 7, 255), 1)
SPECIAL = [float("nan"), float("inf"), -float("inf"), 0.025, 0.075, -0.0, 1e30, 0.125]


@pytest.fixture(scope="module")
def program(integer_program: Any) -> Any:
    """Large enough that its loops run in parallel."""
    p = integer_program()
    x = p.input(None, 3, 64, 256)
    built = p.finish(p.call("qc.clamp", x, 3, 250), p.call("qc.sum_pool2d", x, [2, 2], [2, 2], [0, 0, 0, 0], 7))
    outputs = (replace(built.outputs[0], quantized=PER_CHANNEL), built.outputs[1])
    return built.replace(inputs=(replace(built.inputs[0], quantized=PER_CHANNEL),), outputs=outputs)


@pytest.fixture(scope="module")
def compiled(program: Any) -> CompiledProgram:
    return backend.compile(program, "x86-64-v3")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_floats_at_the_border_equal_the_reference(program: Any, compiled: CompiledProgram, threads: int) -> None:
    x = torch.randn(3, 3, 64, 256, generator=torch.Generator().manual_seed(0)) * 40
    x[0, :, 0, : len(SPECIAL)] = torch.tensor(SPECIAL)
    x[1] = (x[1] * 8).round() / 16  # ties
    results = backend.load(program, compiled, threads).run(x)
    assert all(torch.equal(want, got) for want, got in zip(program.run(x), results, strict=True))


def test_inputs_need_not_be_contiguous_nor_float32(program: Any, compiled: CompiledProgram) -> None:
    x = torch.randn(2, 256, 64, 3).double().permute(0, 3, 2, 1)
    assert torch.equal(backend.load(program, compiled, 1).run(x)[0], program.run(x.float())[0])


def test_threads_can_be_changed(program: Any, compiled: CompiledProgram, random_inputs: Any) -> None:
    executable, inputs = backend.load(program, compiled), random_inputs(program, 2)
    expected = program.run_integer(*inputs)
    for threads in (4, 1, 2, 2, 1, 3):
        executable.set_threads(threads)
        assert all(torch.equal(want, got) for want, got in zip(expected, executable.run_integer(*inputs), strict=True))
    with pytest.raises(QCompilerError, match="threads must be at least 1, got 0"):
        executable.set_threads(0)


def test_several_callers_and_several_libraries_at_once(program: Any, compiled: CompiledProgram, random_inputs: Any) -> None:
    executables = [backend.load(program, compiled, 2) for _ in range(2)]
    inputs = [random_inputs(program, 2, seed) for seed in range(4)]
    expected = [program.run_integer(*x) for x in inputs]
    wrong: list[int] = []

    def call(index: int) -> None:
        for _ in range(5):
            results = executables[index % 2].run_integer(*inputs[index])
            if not all(torch.equal(want, got) for want, got in zip(expected[index], results, strict=True)):
                wrong.append(index)

    callers = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_a_forked_child_runs_without_the_threads_of_its_parent(program: Any, compiled: CompiledProgram, random_inputs: Any) -> None:
    """The child compares bytes: torch's own threads do not survive a fork."""
    executable, inputs = backend.load(program, compiled, 2), random_inputs(program, 1)
    expected = [result.numpy().tobytes() for result in executable.run_integer(*inputs)]
    child = os.fork()
    if child == 0:
        os._exit(0 if [result.numpy().tobytes() for result in executable.run_integer(*inputs)] == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_unloading_ends_threads_and_closes_the_library(program: Any, compiled: CompiledProgram) -> None:
    def state() -> tuple[int, int, int]:
        with open("/proc/self/maps") as maps:
            mapped = sum("memfd:qcompiler" in line for line in maps)
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), mapped

    gc.collect()
    before = state()
    executable = backend.load(program, compiled, 3)
    assert state()[0] == before[0] + 2
    del executable
    gc.collect()
    assert state() == before


def test_wrong_inputs(program: Any, compiled: CompiledProgram) -> None:
    executable = backend.load(program, compiled, 1)
    with pytest.raises(QCompilerError, match=r"takes 1 input\(s\) \(x0\), got 0"):
        executable.run()
    with pytest.raises(QCompilerError, match=r"input 'x0' must have shape \[2, 3, 64, 256\], got \[2, 3, 64, 255\]"):
        executable.run(torch.zeros(2, 3, 64, 255))
    with pytest.raises(QCompilerError, match="input 'x0' must be torch.uint8, got torch.int32"):
        executable.run_integer(torch.zeros(2, 3, 64, 256, dtype=torch.int32))


def test_empty_batch(program: Any, compiled: CompiledProgram) -> None:
    assert backend.load(program, compiled, 1).run(torch.empty(0, 3, 64, 256))[1].shape == (0, 3, 32, 128)


def test_damaged_members(program: Any, compiled: CompiledProgram) -> None:
    with pytest.raises(ArtifactError, match="lacks plan.json"):
        backend.load(program, CompiledProgram("x86-64-v3", {LIBRARY: compiled.members[LIBRARY]}))
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        backend.load(program, CompiledProgram("x86-64-v3", {**compiled.members, LIBRARY: b"no library"}))
    with pytest.raises(ArtifactError, match="not JSON"):
        backend.load(program, CompiledProgram("x86-64-v3", {**compiled.members, PLAN: b"no plan"}))


def test_arena_is_independent_of_the_batch(program: Any, compiled: CompiledProgram) -> None:
    executable = backend.load(program, compiled, 1)
    assert executable.arena_size < 600_000


def test_a_profile_names_each_step_of_the_float_run_in_order(program: Any, compiled: CompiledProgram) -> None:
    executable, x = backend.load(program, compiled, 1), torch.randn(2, 3, 64, 256)
    before = executable.run(x)
    steps = executable.profile(x, runs=3)
    assert [step.kind for step in steps] == ["quantize", "clamp", "reduction", "dequantize", "copy"]
    assert steps[1].nodes == ("clamp",) and steps[1].kernel.startswith("clamp_")
    assert all(0 < step.seconds < 1 for step in steps)
    assert all(torch.equal(want, got) for want, got in zip(before, executable.run(x), strict=True))


def test_integers_outside_their_range_are_declined_before_a_kernel_reads_them(integer_program: Any) -> None:
    p = integer_program()
    ids = p.input(None, 4)
    built = p.finish(p.call("qc.clamp", ids, 3, 250))
    bounded = built.replace(inputs=(replace(built.inputs[0], dtype=torch.uint8, quantized=None, range=IntegerRange(0, 9)),))
    executable = backend.load(bounded, backend.compile(bounded, "x86-64-v3"), 1)
    with pytest.raises(QCompilerError, match=r"input 'x0' holds 10, but its integers must lie in \[0, 9\]"):
        executable.run_integer(torch.full((2, 4), 10, dtype=torch.uint8))
