"""A linear layer and the transform of its rows as one kernel and as two, one thread: python benchmarks/linear_hadamard.py [TARGET ...]

Layers of the first half of a perceptron, 8 bits to 8 bits with a table, then the transform to 4 bits. All kernels run by turns, in each
round in a new thread and on new memory: where pages and stacks lie changes times. A line gives the least over all rounds, as other work on
the machine only ever adds: microseconds of the layer, of the transform and of both, and of the one kernel for each length of a block of
rows, with its ratio to both. The length that the planner takes is marked; without a mark it keeps two kernels.

``--threads N``: whole programs of the two, with one kernel (also where rows are computed twice) and with two, by turns.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from kernels import LAUNCHER, aligned, constants, linear, shared_library
from qcompiler.backends.tvm import backend, packing
from qcompiler.backends.tvm.kernels import ConvolutionKernel, HadamardKernel, LinearHadamardKernel, Operand, Requantize
from qcompiler.backends.tvm.sharing import share
from qcompiler.backends.tvm.target import TARGETS, available
from qcompiler.backends.tvm.templates import linear_hadamard_layout
from qcompiler.backends.tvm.worker import compile_kernel
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.types import UINT8, QuantizedType, Stage

qc = torch.ops.qc
Array = np.ndarray[Any, Any]
Kernel = ConvolutionKernel | HadamardKernel | LinearHadamardKernel
SHAPES = ((65, 192, 384), (128, 384, 1536), (197, 192, 768), (197, 384, 1536), (128, 768, 3072), (197, 768, 3072), (512, 768, 3072))
BLOCKS = (16, 32)  # rows, besides an eighth of all and what the planner takes
SCALING = (8, 20000, 5)  # pre-shift, multiplier, shift of the transform's rounding; they do not change the time
RUNS = 5  # of each kernel in a round


class Library:
    """The code of a kernel, and the numbers that it reads."""

    def __init__(self, kernel: Kernel, target: str, folder: Path, name: str) -> None:
        shared, numbers = share(kernel)
        sources = {f"{name}.o": compile_kernel(shared, TARGETS[target], "kernel"), "launcher.c": LAUNCHER.encode()}
        self._function, self._numbers = shared_library(folder, name, sources).kernel, np.array(numbers, np.int64)

    def on(self, *arrays: Array) -> Callable[[], object]:
        """A call of it."""
        given = [*arrays, *([self._numbers] if self._numbers.size else [])]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in given]
        return lambda: (self._function(*pointers), given)


class Pair:
    """A layer and a transform, as two kernels and as one for each length of a block."""

    def __init__(self, rows: int, inputs: int, channels: int, target: str, folder: Path) -> None:
        lying = [Operand(dtype, (channels, 1)) for dtype in ("int8", "uint8")]
        self._target, self._layer = target, linear(rows, inputs, channels, table=True)
        self._transform = HadamardKernel(channels, 3, (rows,), channels, *lying, Requantize("narrow", 0, 7, 0, 15))
        self.chosen = linear_hadamard_layout.block_rows(self._layer, rows, target)
        even = -(-rows // linear_hadamard_layout.BLOCKS)
        lengths = sorted({*(length for length in (*BLOCKS, even) if length <= rows), *([self.chosen] if self.chosen else [])})
        self._fused = {length: LinearHadamardKernel(self._layer, self._transform, length) for length in lengths}
        self._two = [Library(kernel, target, folder, name) for kernel, name in ((self._layer, "layer"), (self._transform, "transform"))]
        self._one = {length: Library(kernel, target, folder, f"fused{length}") for length, kernel in self._fused.items()}

    def calls(self) -> dict[str, Callable[[], object]]:
        """All of them on new memory; each must give the same."""
        generator = np.random.default_rng(0)
        values = constants(self._layer, generator)
        x = aligned(generator.integers(-128, 128, self._layer.input.elements).astype(np.int8))
        scaling = [aligned(np.array([number], np.int32)) for number in SCALING]
        between = aligned(np.zeros(self._layer.output.elements, np.int8))

        def packed(kernel: ConvolutionKernel) -> list[Array]:
            return [aligned(array) for array in packing.pack(kernel, self._target, values)]

        results = [aligned(np.zeros(between.size, np.uint8)) for _ in range(1 + len(self._one))]
        calls = {
            "layer": self._two[0].on(x, *packed(self._layer), between),
            "transform": self._two[1].on(between, *scaling, results[0]),
            **{
                str(length): self._one[length].on(x, *packed(kernel.part), *scaling, result)
                for (length, kernel), result in zip(self._fused.items(), results[1:], strict=True)
            },
        }
        for call in calls.values():
            call()
        assert all(np.array_equal(result, results[0]) for result in results)
        return calls


def round_of(pair: Pair, least: dict[str, float]) -> None:
    """Measure every call and keep the least times."""
    calls = pair.calls()
    for _ in range(RUNS):
        for name, call in calls.items():
            start = time.thread_time()
            call()
            least[name] = min(least.get(name, float("inf")), time.thread_time() - start)


def measure(pair: Pair, rounds: int) -> dict[str, float]:
    """The least time of each call."""
    least: dict[str, float] = {}
    for _ in range(rounds):
        thread = threading.Thread(target=round_of, args=(pair, least))
        thread.start()
        thread.join()
    return least


def program(rows: int, inputs: int, channels: int) -> Program:
    """Layer, table and transform on integers."""
    builder, generator = GraphBuilder(), torch.Generator().manual_seed(0)

    def call(op: Any, *operands: object) -> fx.Node:
        return builder.call(op.default, *operands)

    def integers(low: int, high: int, *shape: int, dtype: torch.dtype = torch.int32) -> fx.Node:
        return builder.constant("constant", torch.randint(low, high, shape, generator=generator).to(dtype))

    def requantized(x: fx.Node, pre_shift: int, *shape: int) -> fx.Node:
        factors = (integers(pre_shift, pre_shift + 1, *shape), integers(1 << 14, 1 << 15, *shape), integers(6, 7, *shape))
        return call(qc.requantize, x, *factors, 0, 100, 0, 255, "narrow", 8, False)

    x = builder.input("x", (rows, inputs), torch.uint8)
    total = call(qc.linear, x, integers(-127, 128, channels, inputs, dtype=torch.int8), integers(-5000, 5000, channels))
    layer = call(qc.lookup, requantized(total, 10, channels), integers(0, 256, 256, dtype=torch.uint8), 8, False)
    output = requantized(call(qc.hadamard, layer, channels, 3), 4)
    inner = ValueSpec("x", torch.float32, (rows, inputs), QuantizedType(UINT8, (0.05,), (7,)))
    outer = ValueSpec(output.name, torch.uint8, (rows, channels))
    return Program(builder.finish(output), Stage.INTEGER, (inner,), (outer,))


def measure_programs(shape: tuple[int, int, int], target: str, threads: int, rounds: int) -> tuple[float, float]:
    """The least seconds of two kernels, and of one."""
    whole = program(*shape)
    with mock.patch.dict(linear_hadamard_layout.SHORTEST_BLOCK, clear=True):
        two = backend.compile(whole, target)
    with mock.patch.multiple(linear_hadamard_layout, REPEATED=1, REPEATED_CACHED=1):
        one = backend.compile(whole, target)
    executables = [backend.load(whole, compiled, threads) for compiled in (two, one)]
    x = torch.randint(0, 256, shape[:2], generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    least = [float("inf")] * len(executables)
    for _ in range(rounds):
        for index, executable in enumerate(executables):
            for _ in range(RUNS):
                start = time.perf_counter()
                executable.run_integer(x)
                least[index] = min(least[index], time.perf_counter() - start)
    return least[0], least[1]


def line(pair: Pair, times: dict[str, float]) -> str:
    """Cells of a table."""
    both = times["layer"] + times["transform"]
    cells = [f"{each * 1e6:.0f}" for each in (times["layer"], times["transform"], both)]
    for name in list(times)[2:]:
        chosen = "**" if name == str(pair.chosen) else ""
        cells.append(f"{chosen}{name}: {times[name] * 1e6:.0f}, {times[name] / both:.3f}{chosen}")
    return " | ".join(cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; default: those that this machine runs")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--threads", type=int, default=0, help="measure whole programs with so many threads instead")
    options = parser.parse_args(arguments)
    shapes = [shape for shape in SHAPES if options.only in _name(shape)]
    targets = options.targets or [name for name in TARGETS if available(name) is None]
    if options.threads:
        print("| layer | target | threads | two kernels µs | one kernel µs | ratio |")
        for target, shape in itertools.product(targets, shapes):
            two, one = measure_programs(shape, target, options.threads, options.rounds)
            times = f"{two * 1e6:.0f} | {one * 1e6:.0f} | {one / two:.3f}"
            print(f"| {_name(shape)} | {target} | {options.threads} | {times} |", flush=True)
        return
    print("| layer | target | layer µs | transform µs | both µs | one kernel: rows of a block, µs, ratio to both |")
    for target, shape in itertools.product(targets, shapes):
        with tempfile.TemporaryDirectory() as folder:
            pair = Pair(*shape, target, Path(folder))
            print(f"| {_name(shape)} | {target} | {line(pair, measure(pair, options.rounds))} |", flush=True)


def _name(shape: tuple[int, int, int]) -> str:
    return "{}×{}→{}".format(*shape)


if __name__ == "__main__":
    main()
