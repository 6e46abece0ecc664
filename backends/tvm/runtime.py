"""Runs a compiled program: nothing of the compiler is imported, the library needs only the C library."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qcompiler.backends.tvm.driver import kind_of, symbol_of
from qcompiler.backends.tvm.kernels import Extent, Size
from qcompiler.backends.tvm.parameters import parameter_reader
from qcompiler.backends.tvm.plan import Plan, Port, Symbol
from qcompiler.backends.tvm.views import ALIGNMENT
from qcompiler.errors import ArtifactError, QCompilerError, TargetError
from qcompiler.ir.program import Program
from qcompiler.pipeline.backend import StepTime

_REMEMBERED_CALLS = 64
Signature = tuple[tuple[torch.Size, torch.dtype], ...]  # of the inputs of a call


@dataclass(frozen=True)
class _Call:
    """What a signature decides: samples and the dynamic size, the types that the library reads, shapes and types that it writes."""

    samples: int
    symbol: int
    inputs: tuple[torch.dtype, ...]
    outputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]


class TvmExecutable:
    """A loaded library with its parameters and its arena. Calls from several threads take turns."""

    def __init__(self, program: Program, plan: Plan, library: bytes, threads: int | None) -> None:
        self._plan, self._inputs = plan, program.inputs
        self._call = functools.lru_cache(_REMEMBERED_CALLS)(functools.partial(_call, plan))
        self._library, descriptor = _load_library(library)
        weakref.finalize(self, _unload_library, self._library, descriptor)
        self._lock, self._profiling = threading.Lock(), threading.Lock()
        self._parameters = _parameter_block(program, plan)
        self._arena = _aligned_block(plan.arena_size)
        self.set_threads(threads if threads is not None else _available_cores())

    @property
    def arena_size(self) -> int:
        """Bytes that the values of one sample take, whatever the batch."""
        return self._plan.arena_size

    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Floats in, floats out; kept values come as integers."""
        return self._run("qc_run", "outer", inputs)

    def run_integer(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Integers in, integers out."""
        return self._run("qc_run_integer", "inner", inputs)

    def profile(self, *inputs: torch.Tensor, runs: int = 10) -> tuple[StepTime, ...]:
        """Time of each step of ``run`` on these inputs, the median of ``runs`` after one that warms up; in the order of execution.

        Times of one run are those of all samples of the batch. Taking them costs about 50 ns a step.
        """
        self.run(*inputs)
        steps = self._plan.steps
        nanoseconds = torch.zeros((runs, len(steps)), dtype=torch.int64)
        with self._profiling:
            try:
                for times in nanoseconds:
                    self._library.qc_set_profile(times.data_ptr())
                    self.run(*inputs)
            finally:
                self._library.qc_set_profile(None)
        medians = (nanoseconds.median(0).values / 1e9).tolist()
        # Those of the integer border do not run.
        timed = [(step, seconds) for step, seconds in zip(steps, medians, strict=True) if seconds]
        return tuple(StepTime(kind_of(step.kernel), symbol_of(step.kernel), step.nodes, seconds) for step, seconds in timed)

    def set_threads(self, threads: int) -> None:
        """How many threads a parallel loop takes; 1 runs everything in the caller's."""
        if threads < 1:
            raise QCompilerError(f"threads must be at least 1, got {threads}")
        with self._lock:
            if self._library.qc_set_threads(threads):
                raise TargetError(f"the operating system did not start {threads} threads: ask for fewer")

    def _run(self, function: str, border: str, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        call = self._call(border, tuple((x.shape, x.dtype) for x in inputs))
        for x, spec in zip(inputs, self._inputs, strict=True):
            spec.check_range(x)
        ready = [_prepare(x, dtype) for x, dtype in zip(inputs, call.inputs, strict=True)]
        outputs = [torch.empty(shape, dtype=dtype) for shape, dtype in call.outputs]
        with self._lock:
            status = getattr(self._library, function)(
                self._arena.data_ptr(), self._parameters.data_ptr(), _addresses(ready), _addresses(outputs), call.samples, call.symbol
            )
        if status:
            raise TargetError("the compiled program stopped with an error")
        return tuple(outputs)


def _call(plan: Plan, border: str, signature: Signature) -> _Call:
    """Raises QCompilerError where the plan takes no inputs of these shapes and types."""
    if len(signature) != len(plan.inputs):
        names = ", ".join(port.name for port in plan.inputs)
        raise QCompilerError(f"the program takes {len(plan.inputs)} input(s) ({names}), got {len(signature)}")
    shapes = [shape for shape, _ in signature]
    batch, symbol = _batch(plan, shapes), _symbol(plan, shapes)
    for (shape, dtype), port in zip(signature, plan.inputs, strict=True):
        _check_input(shape, dtype, port, border, _shape(port, batch, symbol))
    return _Call(
        batch if batch is not None else 1,
        symbol,
        tuple(_dtype(port, border) for port in plan.inputs),
        tuple((_shape(port, batch, symbol), _dtype(port, border)) for port in plan.outputs),
    )


def _batch(plan: Plan, shapes: Sequence[torch.Size]) -> int | None:
    """The size of dimension 0 that all inputs share; None for a program without a symbolic batch."""
    if not plan.batched:
        return None
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if len(sizes) != 1:
        raise QCompilerError(f"all inputs must have the same batch (dimension 0), got {sorted(sizes)}")
    return sizes.pop()


def _symbol(plan: Plan, shapes: Sequence[torch.Size]) -> int:
    """The value of the program's dynamic size, by the first input that has it (the others are compared with it); 0 without one."""
    symbol = plan.symbol
    if symbol is None:
        return 0
    for shape, port in zip(shapes, plan.inputs, strict=True):
        for size, found in zip(port.sample_shape, shape[1:] if plan.batched else shape, strict=False):
            if isinstance(size, Extent):
                _check_symbol(symbol, found - size.offset, port)
                return int(found - size.offset)
    return symbol.maximum  # no input has it: the shapes of all inputs are wrong, which is said next


def _check_symbol(symbol: Symbol, value: int, port: Port) -> None:
    if not symbol.minimum <= value <= symbol.maximum:
        raise QCompilerError(
            f"input '{port.name}' gives '{symbol.name}' the value {value}: the program takes {symbol.minimum} to {symbol.maximum}"
        )


def _shape(port: Port, batch: int | None, symbol: int) -> tuple[int, ...]:
    sample = tuple(_size(size, symbol) for size in port.sample_shape)
    return sample if batch is None else (batch, *sample)


def _size(size: Size, symbol: int) -> int:
    return symbol + size.offset if isinstance(size, Extent) else size


def _check_input(found: torch.Size, dtype: torch.dtype, port: Port, border: str, shape: tuple[int, ...]) -> None:
    if tuple(found) != shape:
        raise QCompilerError(f"input '{port.name}' must have shape {list(shape)}, got {list(found)}")
    wanted = _dtype(port, border)
    if dtype != wanted and not (dtype.is_floating_point and wanted.is_floating_point):
        raise QCompilerError(f"input '{port.name}' must be {wanted}, got {dtype}")


def _prepare(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor as the library reads it: no copy of a contiguous tensor of the right dtype."""
    return x if x.dtype is dtype and x.is_cpu and x.is_contiguous() else x.detach().to(device="cpu", dtype=dtype).contiguous()


def _dtype(port: Port, border: str) -> torch.dtype:
    dtype = getattr(torch, port.outer if border == "outer" else port.inner)
    assert isinstance(dtype, torch.dtype)  # the plan's types are those of kernels.ITEM_SIZE
    return dtype


def _addresses(tensors: Sequence[torch.Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * max(len(tensors), 1))(*(tensor.data_ptr() for tensor in tensors))


def _aligned_block(size: int) -> torch.Tensor:
    block = torch.zeros(size + ALIGNMENT, dtype=torch.uint8)
    start = -block.data_ptr() % ALIGNMENT
    return block[start : start + size]


def _parameter_block(program: Program, plan: Plan) -> torch.Tensor:
    block = _aligned_block(plan.parameters_size)
    read = parameter_reader(program, plan.target)
    for parameter in plan.parameters:
        data = read(parameter.source).contiguous().reshape(-1).view(torch.uint8)
        if data.numel() != parameter.size or parameter.offset + parameter.size > plan.parameters_size:
            raise ArtifactError("the compiled program does not fit the weights of this program: compile it again")
        block[parameter.offset : parameter.offset + parameter.size] = data
    return block


def _load_library(data: bytes) -> tuple[ctypes.CDLL, int]:
    """From memory, with the descriptor of that memory. It stays open as long as the library is loaded, so that no other library gets
    its name: for a name that it knows the dynamic linker gives the old library.
    """
    descriptor = os.memfd_create("qcompiler")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)
    try:
        library = ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    except OSError as error:
        os.close(descriptor)
        raise ArtifactError(f"the compiled library cannot be loaded ({error}): compile the program again on this machine") from error
    for function in (library.qc_run, library.qc_run_integer):
        function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 2
    library.qc_set_profile.argtypes, library.qc_set_profile.restype = [ctypes.c_void_p], None
    return library, descriptor


def _unload_library(library: ctypes.CDLL, descriptor: int) -> None:
    library.qc_set_threads(1)  # ends the threads that run its code
    ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))
    os.close(descriptor)


def _available_cores() -> int:
    return len(os.sched_getaffinity(0))
