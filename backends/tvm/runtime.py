"""Runs a compiled program: nothing of the compiler is imported, the library needs only the C library."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Sequence

import torch

from qcompiler.backends.tvm.parameters import parameter_reader
from qcompiler.backends.tvm.plan import Plan, Port
from qcompiler.backends.tvm.views import ALIGNMENT
from qcompiler.errors import ArtifactError, QCompilerError, TargetError
from qcompiler.ir.program import Program


class TvmExecutable:
    """A loaded library with its parameters and its arena. Calls from several threads take turns."""

    def __init__(self, program: Program, plan: Plan, library: bytes, threads: int | None) -> None:
        self._plan = plan
        self._library, descriptor = _load_library(library)
        weakref.finalize(self, _unload_library, self._library, descriptor)
        self._lock = threading.Lock()
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

    def set_threads(self, threads: int) -> None:
        """How many threads a parallel loop takes; 1 runs everything in the caller's."""
        if threads < 1:
            raise QCompilerError(f"threads must be at least 1, got {threads}")
        with self._lock:
            if self._library.qc_set_threads(threads):
                raise TargetError(f"the operating system did not start {threads} threads: ask for fewer")

    def _run(self, function: str, border: str, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        ports = self._plan.inputs
        if len(inputs) != len(ports):
            raise QCompilerError(f"the program takes {len(ports)} input(s) ({', '.join(port.name for port in ports)}), got {len(inputs)}")
        batch = self._batch(inputs)
        ready = [_prepare(x, port, border, self._shape(port, batch)) for x, port in zip(inputs, ports, strict=True)]
        outputs = [torch.empty(self._shape(port, batch), dtype=_dtype(port, border)) for port in self._plan.outputs]
        with self._lock:
            status = getattr(self._library, function)(
                self._arena.data_ptr(),
                self._parameters.data_ptr(),
                _addresses(ready),
                _addresses(outputs),
                batch if batch is not None else 1,
            )
        if status:
            raise TargetError("the compiled program stopped with an error")
        return tuple(outputs)

    def _batch(self, inputs: Sequence[torch.Tensor]) -> int | None:
        """The size of dimension 0 that all inputs share; None for a program without a symbolic batch."""
        if not self._plan.batched:
            return None
        sizes = {x.shape[0] if x.dim() else 0 for x in inputs}
        if len(sizes) != 1:
            raise QCompilerError(f"all inputs must have the same batch (dimension 0), got {sorted(sizes)}")
        return sizes.pop()

    def _shape(self, port: Port, batch: int | None) -> tuple[int, ...]:
        return port.sample_shape if batch is None else (batch, *port.sample_shape)


def _prepare(x: torch.Tensor, port: Port, border: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor as the library reads it: no copy of a contiguous tensor of the right dtype."""
    if tuple(x.shape) != shape:
        raise QCompilerError(f"input '{port.name}' must have shape {list(shape)}, got {list(x.shape)}")
    wanted = _dtype(port, border)
    if x.dtype != wanted and not (x.dtype.is_floating_point and wanted.is_floating_point):
        raise QCompilerError(f"input '{port.name}' must be {wanted}, got {x.dtype}")
    return x.detach().to(device="cpu", dtype=wanted).contiguous()


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
        function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64]
    return library, descriptor


def _unload_library(library: ctypes.CDLL, descriptor: int) -> None:
    library.qc_set_threads(1)  # ends the threads that run its code
    ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))
    os.close(descriptor)


def _available_cores() -> int:
    return len(os.sched_getaffinity(0))
