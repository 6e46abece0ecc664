"""Compiles a convolution kernel, runs its machine code on random data, and computes what it must give with ``qcompiler.arithmetic``."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qcompiler.arithmetic import requantize
from qcompiler.backends.tvm.kernels import Activation, ConvolutionKernel, Kernel, Requantization, ResidualAdd
from qcompiler.backends.tvm.sharing import share
from qcompiler.backends.tvm.target import available

Array = NDArray[Any]
SLACK = 256  # bytes before and after a buffer that may be read
GUARD = 0x5A
NAMES = {"uint8": torch.uint8, "int8": torch.int8, "int16": torch.int16, "int32": torch.int32}

# What a library of kernels expects of the program around it: a launcher of parallel loops, here one that uses several threads.
LAUNCHER = """
#include <pthread.h>
#include <stddef.h>
typedef struct { void *sync; int tasks; } group_t;
typedef int (*task_t)(int, group_t *, void *);
typedef struct { task_t task; int id; void *data; } job_t;
enum { THREADS = %d };
static void *run(void *p) { job_t *j = p; group_t g = {NULL, THREADS}; return (void *)(size_t)j->task(j->id, &g, j->data); }
static int launch(task_t task, void *data, int count)
{
    pthread_t threads[THREADS]; job_t jobs[THREADS]; size_t failed = 0; (void)count;
    for (int i = 0; i < THREADS; i++) { jobs[i] = (job_t){task, i, data}; pthread_create(&threads[i], NULL, run, &jobs[i]); }
    for (int i = 0; i < THREADS; i++) { void *rc; pthread_join(threads[i], &rc); failed |= (size_t)rc; }
    return failed ? -1 : 0;
}
int (*__TVMBackendParallelLaunch)(task_t, void *, int) = launch;
"""


@dataclass(frozen=True)
class Case:
    """A kernel with the constants and the maps that it is run on."""

    kernel: ConvolutionKernel
    constants: dict[str, Array]
    input: Array  # whole buffers, halo included
    operand: Array | None


def make_case(kernel: ConvolutionKernel, seed: int = 0) -> Case:
    """Random weights and maps; multipliers in the ranges that ``qcompiler.arithmetic`` documents, chosen so that outputs vary."""
    generator = np.random.default_rng(seed)
    outputs, inputs = kernel.output.channels, kernel.input.channels // kernel.groups
    constants: dict[str, Array] = {
        "weight": random_weight(kernel, (outputs, inputs, *kernel.kernel), generator),
        "bias": generator.integers(-3000, 3000, outputs).astype(np.int32),
        "table": generator.integers(0, 256, 256).astype(np.uint8).view(np.uint8 if kernel.output.dtype == "uint8" else np.int8),
    }
    if kernel.weight_group:
        constants["factors"] = generator.integers(1, 19, (outputs, -(-inputs // kernel.weight_group))).astype(np.int8)
    depth = inputs * int(np.prod(kernel.kernel))
    largest = int(np.abs(constants["weight"]).max()) if kernel.bit_planes else 128
    magnitude = np.ceil(np.log2(largest * (_largest_input(kernel) + 1) * depth + 3000)).astype(int)
    constants |= _epilogue_constants(kernel, int(magnitude), generator)
    operand = kernel.epilogue.operand if isinstance(kernel.epilogue, ResidualAdd) else None
    return Case(kernel, constants, random_input(kernel, generator), None if operand is None else random_map(operand, generator))


def random_weight(kernel: ConvolutionKernel, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """int8 in the whole range of the kernel's weights (of 8 bits: without -128, as ``quantize`` leaves it unused)."""
    if kernel.bit_planes is not None:
        planes = kernel.bit_planes
        return (planes.weight_low + planes.weight_step * generator.integers(0, 1 << planes.weights, shape)).astype(np.int8)
    bits = kernel.weight_bits
    high = 1 << (bits - 1)
    return generator.integers(1 - high if bits == 8 else -high, high, shape).astype(np.int8)


def random_input(kernel: ConvolutionKernel, generator: np.random.Generator) -> Array:
    """A whole buffer of inputs, of bit planes those that these can be."""
    if kernel.bit_planes is None:
        return random_map(kernel.input, generator)
    low, high = kernel.bit_planes.input_low, _largest_input(kernel)
    return generator.integers(low, high + 1, kernel.input.elements).astype(kernel.input.dtype)


def _largest_input(kernel: ConvolutionKernel) -> int:
    return kernel.bit_planes.input_low + (1 << kernel.bit_planes.inputs) - 1 if kernel.bit_planes else 254


def _epilogue_constants(kernel: ConvolutionKernel, magnitude: int, generator: np.random.Generator) -> dict[str, Array]:
    epilogue = kernel.epilogue
    if epilogue is None:
        return {}
    size = kernel.output.channels if epilogue.per_channel else 1
    bits = 14 if kernel.output.dtype == "int16" else 6 if kernel.output.dtype != "int32" else 20

    def draw(low: int, high: int, count: int = size) -> Array:
        return generator.integers(low, high, count).astype(np.int32)

    if isinstance(epilogue, ResidualAdd):
        operand_bits = {"int8": 8, "uint8": 9, "int16": 17, "int32": 31}[epilogue.operand.dtype]
        return {
            "pre_shift_a": draw(0, 31 - magnitude + 1),
            "multiplier_a": 2 * draw(2**28, 2**30),
            "pre_shift_b": draw(0, max(1, 31 - operand_bits), 1),
            "multiplier_b": 2 * draw(2**28, 2**30, 1),
        }
    if epilogue.form == "high":
        pre_shift = draw(0, 31 - magnitude + 1)
        return {
            "pre_shift": pre_shift,
            "multiplier": 2 * draw(2**29, 2**30),
            "shift": np.clip(magnitude + pre_shift - 3 - bits + draw(0, 3), 1, 30),
        }
    if epilogue.form == "exact64":
        return {"pre_shift": draw(0, 1), "multiplier": draw(2**20, 2**31 - 1), "shift": magnitude + 28 - bits + draw(0, 4)}
    pre_shift = np.maximum(0, magnitude - 17 + draw(0, 3))
    shift = draw(0, 2) if bits > 8 else draw(0, 18)
    return {"pre_shift": pre_shift.astype(np.int32), "multiplier": draw(2**14, 2**15), "shift": shift}


def random_map(activation: Activation, generator: np.random.Generator) -> Array:
    """A whole buffer of random numbers."""
    limits = np.iinfo(activation.dtype)
    low, high = max(limits.min, -(2**20)), min(limits.max, 2**20)
    return generator.integers(low, high + 1, activation.elements).astype(activation.dtype)


def interior(activation: Activation, buffer: Array) -> Array:
    """The map without its halo, [height, width, channels]."""
    top, _, left, _ = activation.halo
    return pixels(activation, buffer)[top : top + activation.height, left : left + activation.width]


def pixels(activation: Activation, buffer: Array) -> Array:
    """The map with its halo, without what lies between its pixels."""
    stride = activation.pixel_stride
    return buffer.reshape(-1, activation.row_stride // stride, stride)[..., : activation.channels]


def accumulators(case: Case) -> NDArray[np.int64]:
    """The convolution tap by tap, [height, width, channels], read from the buffer with its halo."""
    kernel = case.kernel
    top, _, left, _ = kernel.input.halo
    rows = pixels(kernel.input, case.input).astype(np.int64)
    height, width, outputs = kernel.output.height, kernel.output.width, kernel.output.channels
    weight = case.constants["weight"].astype(np.int64)
    if kernel.weight_group:
        repeated = case.constants["factors"].astype(np.int64).repeat(kernel.weight_group, 1)
        weight = weight * repeated[:, : weight.shape[1], None, None]
    weight = weight.reshape(kernel.groups, -1, *weight.shape[1:])
    total = np.zeros((height, width, outputs), np.int64) + case.constants["bias"]
    for y in range(kernel.kernel[0]):
        for x in range(kernel.kernel[1]):
            first_row = top - kernel.padding[0] + y * kernel.dilation[0]
            first_column = left - kernel.padding[1] + x * kernel.dilation[1]
            taken = rows[first_row :: kernel.stride[0], first_column :: kernel.stride[1]][:height, :width]
            grouped = taken.reshape(height, width, kernel.groups, -1)
            total += np.einsum("hwgi,goi->hwgo", grouped, weight[:, :, :, y, x]).reshape(height, width, outputs)
    return total


def expected(case: Case) -> Array:
    """The outputs by ``qcompiler.arithmetic``."""
    kernel, constants = case.kernel, {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in case.constants.items()}
    total = torch.from_numpy(accumulators(case))
    epilogue: Any = kernel.epilogue
    dtype = NAMES[kernel.output.dtype]
    if epilogue is None:
        return np.asarray(total.to(torch.int32))
    if isinstance(epilogue, Requantization):
        scaled = requantize.REQUANTIZE[epilogue.form](total, constants["pre_shift"], constants["multiplier"], constants["shift"])
    else:
        assert case.operand is not None
        other = torch.from_numpy(interior(epilogue.operand, case.operand).astype(np.int64)) - epilogue.operand_zero_point
        names = ("pre_shift_a", "multiplier_a", "pre_shift_b", "multiplier_b")
        scaled = requantize.residual_add(total, other, *(constants[name] for name in names), epilogue.shift)
    result = np.asarray(requantize.saturate(scaled, epilogue.zero_point, epilogue.low, epilogue.high, dtype))
    return case.constants["table"][result.astype(np.int64) - np.iinfo(kernel.output.dtype).min] if kernel.table else result


class CompiledKernel:
    """The machine code of a kernel, ready to be called."""

    def __init__(self, kernel: ConvolutionKernel, target: str, library: Path, numbers: Sequence[int]) -> None:
        self._kernel = kernel
        self._numbers = np.array(numbers, np.int64)
        self._target = target
        self._function = ctypes.CDLL(str(library)).kernel

    def __call__(self, case: Case) -> Array:
        """The output map. Fails where anything but the map was written."""
        from qcompiler.backends.tvm import packing

        output = self._kernel.output
        size = output.elements * np.dtype(output.dtype).itemsize
        memory, start = aligned_memory(size)
        maps = [case.input] if case.operand is None else [case.input, case.operand]
        arguments = [aligned(each) for each in (*maps, *packing.pack(self._kernel, self._target, case.constants))]
        pointers = [ctypes.c_void_p(each.ctypes.data) for each in (*arguments, memory[start:], self._numbers)]
        assert self._function(*pointers) == 0
        written = interior(output, memory[start : start + size].view(output.dtype))
        result = written.copy()
        written[...] = np.frombuffer(bytes([GUARD] * written.itemsize), written.dtype)[0]
        assert (memory == GUARD).all(), "written outside of the output map"
        return result


def aligned_memory(size: int) -> tuple[NDArray[np.uint8], int]:
    """Guard bytes, and where in them a 64-byte boundary with slack before and after ``size`` bytes lies."""
    memory = np.full(size + 2 * SLACK + 64, GUARD, np.uint8)
    return memory, SLACK + (-memory.ctypes.data - SLACK) % 64


def aligned(array: Array) -> Array:
    """A copy at a 64-byte boundary with slack around it."""
    raw = array.reshape(-1).view(np.uint8)
    memory, start = aligned_memory(raw.size)
    memory[start : start + raw.size] = raw
    return memory[start : start + raw.size].view(array.dtype)


def link(code: bytes, library: Path, launcher: Path) -> Path:
    """The library of an object. By the linker itself, which is done in a tenth of a compiler's time; what is missing Python has loaded."""
    library.with_suffix(".o").write_bytes(code)
    subprocess.run(["ld", "-shared", "-o", library, library.with_suffix(".o"), launcher], check=True)
    return library


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Object file of the launcher, with three threads."""
    folder = tmp_path_factory.mktemp("launcher")
    (folder / "launcher.c").write_text(LAUNCHER % 3)
    subprocess.run(["gcc", "-O1", "-fPIC", "-pthread", "-c", "launcher.c"], cwd=folder, check=True)
    return folder / "launcher.o"


@pytest.fixture(scope="session")
def compile_kernel(launcher: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[ConvolutionKernel, str], CompiledKernel]:
    """From a kernel and a target to its machine code."""
    from qcompiler.backends.tvm import codegen, templates
    from qcompiler.backends.tvm.target import TARGETS

    folder = tmp_path_factory.mktemp("kernels")
    libraries: dict[tuple[Kernel, str], Path] = {}

    def compile_one(kernel: ConvolutionKernel, target: str) -> CompiledKernel:
        shared, numbers = share(kernel)
        assert isinstance(shared, ConvolutionKernel)
        if (shared, target) not in libraries:
            code = codegen.build_object(templates.emit(shared, target, "kernel"), TARGETS[target], "kernel")
            libraries[shared, target] = link(code, folder / f"{len(libraries)}.so", launcher)
        return CompiledKernel(kernel, target, libraries[shared, target], numbers)

    return compile_one


@pytest.fixture(scope="session")
def run_function(launcher: Path, tmp_path_factory: pytest.TempPathFactory, emulated_amx: Callable[[], int]) -> Callable[..., Array]:
    """Emits a kernel for a target, calls it on arrays and a buffer of ``size`` elements full of GUARD, gives that buffer.

    The kernel is the one that all share that differ from it in numbers alone. ``after``: arrays that follow the output and the numbers.
    Fails where anything around the output was written. Of AMX only the tiles are emulated.
    """
    from qcompiler.backends.tvm import codegen
    from qcompiler.backends.tvm.target import TARGETS

    folder = tmp_path_factory.mktemp("functions")
    numbers = itertools.count()

    def run(
        emit: Callable[..., Any], kernel: Kernel, target: str, arrays: Sequence[Array], size: int, dtype: str, after: Sequence[Array] = ()
    ) -> Array:
        if reason := available("x86-64-vnni" if target == "x86-64-amx" else target):
            pytest.skip(reason)
        shared, open_numbers = share(kernel)
        path = link(codegen.build_object(emit(shared, target), TARGETS[target], "kernel"), folder / f"{next(numbers)}.so", launcher)
        size_in_bytes = size * np.dtype(dtype).itemsize
        memory, start = aligned_memory(size_in_bytes)
        read = [np.array(open_numbers, np.int64)] if open_numbers else []
        kept = [*map(aligned, arrays), memory[start:], *read, *map(aligned, after)]
        assert ctypes.CDLL(str(path)).kernel(*(ctypes.c_void_p(each.ctypes.data) for each in kept)) == 0
        result = memory[start : start + size_in_bytes].copy()
        memory[start : start + size_in_bytes] = GUARD
        assert (memory == GUARD).all(), "written outside of the output"
        return result.view(dtype)

    return run


@pytest.fixture
def check(compile_kernel: Callable[[ConvolutionKernel, str], CompiledKernel], emulated_amx: Callable[[], int]) -> Callable[..., None]:
    """Compile, run, and compare every output. ``change`` alters the random case. Of AMX only the tiles are emulated."""

    def check_one(kernel: ConvolutionKernel, target: str, change: Callable[[Case], None] = lambda case: None) -> None:
        if reason := available("x86-64-vnni" if target == "x86-64-amx" else target):
            pytest.skip(reason)
        case = make_case(kernel)
        change(case)
        actual = compile_kernel(kernel, target)(case)
        assert np.array_equal(actual, expected(case))

    return check_one
