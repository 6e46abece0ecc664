"""How fast the kernels are that are no products, one thread: python benchmarks/rows.py [TARGET ...] [--only NAME]

For each kernel the least of many runs: microseconds, nanoseconds an element, bytes read and written a second, and what bounds it. The last
line of each target is a copy of as many bytes as the largest LayerNorm moves: the memory speed that a kernel of no arithmetic reaches.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from kernels import LAUNCHER, aligned, least_seconds, shared_library
from qcompiler import arithmetic
from qcompiler.arithmetic.normalize import drops_bits
from qcompiler.backends.tvm import packing_rows, worker
from qcompiler.backends.tvm.kernels import (
    Add,
    Copy,
    ElementwiseKernel,
    HadamardKernel,
    Lookup,
    Nonlinear,
    NormalizationKernel,
    Normalize,
    Operand,
    Operation,
    Requantize,
    RowAffine,
    RowKernel,
    RowOperation,
    Softmax,
)
from qcompiler.backends.tvm.sharing import share
from qcompiler.backends.tvm.target import TARGETS, available

Kernel = ElementwiseKernel | HadamardKernel | NormalizationKernel | RowKernel
ONE = Operand("int32", (0,))
SCALING = (ONE,) * 4
BYTES, WORDS = (-128, 127), (-(2**15), 2**15 - 1)


def layer_norm(rows: int, length: int, output: str = "int8", narrow: bool = False, residual: bool = False) -> NormalizationKernel:
    """int16 rows to ``output``, with a second output of 8 bits, after a sum of two operands that is stored as well."""

    def lie(dtype: str) -> Operand:
        return Operand(dtype, (length, 1))

    return NormalizationKernel(
        operation=Normalize(0, 1 << 20, True, drops=drops_bits(length, 2**16 - 1, 1 << 20, True)),
        shape=(rows,),
        length=length,
        operand=lie("int16"),
        addend=lie("int16") if residual else None,
        addition=Add(14, 0, 0, 0, *WORDS) if residual else None,
        affine=RowAffine(1, 14 if output == "int8" else 8, 3, *(BYTES if output == "int8" else WORDS), True),
        narrowing=Requantize("high", 0, 3, *BYTES) if narrow else None,
        total=lie("int16") if residual else None,
        output=lie(output),
        narrow_output=lie("int8") if narrow else None,
    )


def elementwise(
    operation: Operation, elements: int, dtypes: Sequence[str], output: str, others: Sequence[Operand] = ()
) -> ElementwiseKernel:
    """Over one run of elements; ``others`` are constant operands."""
    return ElementwiseKernel(operation, (elements,), (*(Operand(dtype, (1,)) for dtype in dtypes), *others), Operand(output, (1,)))


def rows(operation: RowOperation, count: int, length: int, dtype: str = "int8", output: str = "uint8", mask: bool = False) -> RowKernel:
    """Dense rows, with a mask that all rows share."""
    second = Operand("bool", (0, 1)) if mask else None
    return RowKernel(operation, (count,), length, Operand(dtype, (length, 1)), Operand(output, (length, 1)), second)


def softmax(form: str, mask: bool = False) -> RowKernel:
    """Three heads of 197 rows."""
    return rows(Softmax(form, tuple(arithmetic.softmax_parameters(form, 0.05)[1]), 8), 591, 197, mask=mask)


def nonlinear(function: str, form: str) -> RowKernel:
    """The hidden values of DeiT-Tiny's perceptron."""
    constants = arithmetic.nonlinear_parameters(function, form, 0.05, 128)[0]
    return rows(Nonlinear(0, function, form, tuple(constants)), 197, 768, output="int32")


def hadamard(count: int, length: int, dtype: str = "uint8") -> HadamardKernel:
    """A transform of whole rows, rounded to 4 bits in bytes."""
    rounding = Requantize("narrow", 0, 7, 0, 15)
    return HadamardKernel(length, 3, (count,), length, Operand(dtype, (length, 1)), Operand("uint8", (length, 1)), rounding)


TINY = 197 * 192
KERNELS: dict[str, tuple[Kernel, str]] = {
    "LayerNorm 197x192 to 8 bits": (layer_norm(197, 192), "instructions: 3 multiplications of 32 bits an element"),
    "LayerNorm 197x384 to 8 bits": (layer_norm(197, 384), "instructions"),
    "LayerNorm 128x384 to 8 bits": (layer_norm(128, 384), "instructions"),
    "LayerNorm 128x384 to 16 and 8 bits": (layer_norm(128, 384, "int16", narrow=True), "instructions: 2 multiplications more"),
    "sum and LayerNorm 128x384, 16 and 8": (layer_norm(128, 384, "int16", True, True), "instructions: 6 multiplications more"),
    "softmax 591x197 table": (softmax("table"), "latency of a row's reciprocal, tail of the row"),
    "softmax 591x197 table, mask": (softmax("table", True), "latency of a row's reciprocal"),
    "softmax 591x197 shift": (softmax("shift"), "instructions"),
    "softmax 591x197 poly": (softmax("poly"), "instructions"),
    "softmax 591x197 shiftmax": (softmax("shiftmax"), "instructions"),
    "softmax 591x197 i-softmax": (softmax("i-softmax"), "instructions: products of 64 bits"),
    "GELU 197x768 by table, 8 bits": (
        elementwise(Lookup(-128), 4 * TINY, ["int8"], "int8", [Operand("int8", (0,))]),
        "cache (AVX2: two loads an element)",
    ),
    "GELU 197x768 by table, 16 bits": (elementwise(Lookup(-128), 4 * TINY, ["int8"], "int16", [Operand("int16", (0,))]), "cache"),
    "GELU 197x768 shift": (nonlinear("gelu", "shift"), "instructions"),
    "GELU 197x768 poly": (nonlinear("gelu", "poly"), "instructions"),
    "GELU 197x768 i-gelu": (nonlinear("gelu", "i-gelu"), "instructions"),
    "Hadamard 197x768 of 8 bits": (hadamard(197, 768), "instructions: the matrix of order 12"),
    "Hadamard 197x1024 of 8 bits": (hadamard(197, 1024), "instructions"),
    "Hadamard 128x1536 of 16 bits": (hadamard(128, 1536, "int16"), "instructions: the matrix of order 12"),
    "Hadamard 1x4096 of 16 bits": (hadamard(1, 4096, "int16"), "instructions"),
    "sum 197x192, 16 bits": (elementwise(Add(14, 0, 0, 0, *WORDS), TINY, ["int16", "int16"], "int16", SCALING), "instructions"),
    "requantize 197x192, 16 to 8, high": (
        elementwise(Requantize("high", 0, 3, *BYTES), TINY, ["int16"], "int8", SCALING[:3]),
        "instructions",
    ),
    "requantize 197x192, 16 to 8, narrow": (
        elementwise(Requantize("narrow", 0, 3, *BYTES), TINY, ["int16"], "int8", SCALING[:3]),
        "instructions",
    ),
    "heads to the front, 197x3x64": (
        ElementwiseKernel(Copy(), (3, 197, 64), (Operand("int8", (64, 192, 1)),), Operand("int8", (64 * 197, 64, 1))),
        "cache",
    ),
    "transpose 197x192": (
        ElementwiseKernel(Copy(), (197, 192), (Operand("int8", (1, 197)),), Operand("int8", (192, 1))),
        "loads of one byte",
    ),
    "copy of 197x384 words": (elementwise(Copy(), 2 * TINY, ["int16"], "int16"), "cache"),
}


def extent(kernel: Kernel) -> tuple[int, ...]:
    """The indices that the kernel walks; its sizes are numbers."""
    sizes = kernel.shape if isinstance(kernel, ElementwiseKernel) else (*kernel.shape, kernel.length)
    return tuple(size for size in sizes if isinstance(size, int))


def arrays(kernel: Kernel, generator: np.random.Generator) -> list[np.ndarray[Any, Any]]:
    """All arguments; the numbers in them do not change the time."""

    def memory(operand: Operand) -> np.ndarray[Any, Any]:
        reach = 256 + sum((size - 1) * stride for size, stride in zip(extent(kernel), operand.strides, strict=True))
        dtype = "uint8" if operand.dtype == "bool" else operand.dtype
        low, high = (1, 9) if dtype == "int32" else (0, 1) if operand.dtype == "bool" else (-100, 100)
        return generator.integers(low, high + 1, reach).astype(dtype)

    if isinstance(kernel, ElementwiseKernel):
        return [*map(memory, kernel.operands), memory(kernel.output)]
    if isinstance(kernel, HadamardKernel):
        scaling = [np.array([number], np.int32) for number in (8, 20000, 5)]
        return [memory(kernel.operand), *scaling, memory(kernel.output)]
    if isinstance(kernel, RowKernel):
        table = [np.arange(256, 0, -1, dtype=np.int32) * 100] if getattr(kernel.operation, "form", "") == "table" else []
        return [memory(kernel.operand), *([memory(kernel.second)] if kernel.second else []), *table, memory(kernel.output)]
    parameters = [generator.integers(1 << 20, 1 << 30, each.size).astype(each.dtype) for each in packing_rows.parameters(kernel)]
    inputs = [each for each in (kernel.operand, kernel.addend) if each is not None]
    outputs = [each for each in (kernel.total, kernel.output, kernel.narrow_output) if each is not None]
    return [*map(memory, inputs), *parameters, *map(memory, outputs)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; default: those that this machine runs")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    arguments = parser.parse_args()
    print(f"{'kernel':38}{'target':14}{'us':>9}{'ns/element':>12}{'GB/s':>7}  bound by")
    for target in arguments.targets or [name for name in TARGETS if available(name) is None]:
        with tempfile.TemporaryDirectory() as name:
            for number, (title, (kernel, bound)) in enumerate(KERNELS.items()):
                if arguments.only not in title:
                    continue
                shared, numbers = share(kernel)
                code = worker.compile_kernel(shared, TARGETS[target], "kernel")
                sources = {f"kernel{number}.o": code, "launcher.c": LAUNCHER.encode()}
                library = shared_library(Path(name), f"kernel{number}", sources, "-lm")
                kept = [aligned(array) for array in arrays(kernel, np.random.default_rng(0))]
                given = [*kept, *([aligned(np.array(numbers, np.int64))] if numbers else [])]
                pointers = [ctypes.c_void_p(array.ctypes.data) for array in given]
                best = least_seconds(functools.partial(library.kernel, *pointers), 0.1)
                moved, elements = sum(array.nbytes for array in kept), prod(extent(kernel))
                print(f"{title:38}{target:14}{best * 1e6:9.1f}{best * 1e9 / elements:12.3f}{moved / best / 1e9:7.0f}  {bound}", flush=True)


if __name__ == "__main__":
    main()
