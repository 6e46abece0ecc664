"""How fast convolutions, linear layers, products and attention are, one thread: python benchmarks/kernels.py [TARGET ...] [--only NAME]

For each kernel the least of many runs, in microseconds and 10^9 operations a second (a multiplication and an addition are two), and
its share of the peak: what a loop of nothing but the target's dot products reaches on this machine, measured right before and after.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.arithmetic import exponential_table
from qcompiler.backends.tvm import codegen, packing
from qcompiler.backends.tvm.kernels import (
    Activation,
    AttentionKernel,
    ConvolutionKernel,
    MatrixProductKernel,
    Operand,
    Requantization,
    ResidualAdd,
    maxima,
)
from qcompiler.backends.tvm.sharing import share
from qcompiler.backends.tvm.target import TARGETS, available
from qcompiler.backends.tvm.worker import emit

NARROW = Requantization("narrow", True, 0, 0, 255)
SIGNED = Requantization("narrow", True, 0, -128, 127)
PER_TENSOR = Requantization("narrow", False, 0, -128, 127)

# The peak of each target: sixteen (AMX: four) independent sums, no memory. %0 is a sum, %1 an operand.
PEAK = {
    "x86-64-v3": ("__m256i", 16, "vpmaddwd %1,%1,%%ymm15\\n vpaddd %%ymm15,%0,%0", "xmm15", 12),
    "x86-64-vnni": ("__m512i", 64, "vpdpbusd %1,%1,%0", "xmm31", 16),
}
PEAK_SOURCE = """
#include <immintrin.h>
void run(long steps)
{{
    {type} sums[{count}] = {{0}}, x = {{0}};
    for (long i = 0; i < steps; i++)
    #pragma GCC unroll 64
        for (int j = 0; j < 4 * {count}; j++)
            __asm__ volatile("{code}" : "+v"(sums[j % {count}]) : "v"(x) : "{clobber}");
}}
"""
AMX_PEAK_SOURCE = """
#include <immintrin.h>
void run(long steps)
{
    unsigned char configuration[64] __attribute__((aligned(64))) = {1};
    for (int i = 0; i < 8; i++) { configuration[16 + 2 * i] = 64; configuration[48 + i] = 16; }
    _tile_loadconfig(configuration);
    for (long i = 0; i < steps; i++) { _tile_dpbusd(0, 4, 5); _tile_dpbusd(1, 4, 5); _tile_dpbusd(2, 4, 5); _tile_dpbusd(3, 4, 5); }
    _tile_release();
}
"""
# One thread is a plain loop.
LAUNCHER = """
#include <stddef.h>
static int launch(int (*task)(int, void *, void *), void *data, int count)
{
    struct { void *sync; int tasks; } group = {NULL, 1};
    (void)count;
    return task(0, &group, data);
}
int (*__TVMBackendParallelLaunch)(int (*)(int, void *, void *), void *, int) = launch;
"""


def convolution(
    size: int, channels: tuple[int, int], kernel: int, stride: int = 1, groups: int = 1, epilogue: Any = NARROW
) -> ConvolutionKernel:
    """A square kernel over a square map, padded by half the kernel."""
    padding = kernel // 2
    extent = (size + 2 * padding - kernel) // stride + 1
    return ConvolutionKernel(
        Activation(size, size, channels[0], "uint8", (padding,) * 4),
        Activation(extent, extent, channels[1], "uint8" if epilogue else "int32"),
        (kernel, kernel),
        (stride, stride),
        (padding, padding),
        (1, 1),
        groups,
        epilogue,
    )


def depthwise(size: int, channels: int, kernel: int, stride: int = 1) -> ConvolutionKernel:
    """One input and one output channel a group."""
    return convolution(size, (channels, channels), kernel, stride, channels)


def residual(size: int, channels: int) -> ResidualAdd:
    """The sum of a block and its input."""
    return ResidualAdd(Activation(size, size, channels, "uint8"), True, 3, 18, 0, 0, 255)


def linear(rows: int, inputs: int, outputs: int, table: bool = False) -> ConvolutionKernel:
    """A linear layer of a transformer, int8 to int8."""
    maps = Activation(1, rows, inputs, "int8"), Activation(1, rows, outputs, "int8")
    return ConvolutionKernel(*maps, (1, 1), (1, 1), (0, 0), (1, 1), 1, SIGNED, table)


def residual_linear(rows: int, inputs: int, outputs: int) -> ConvolutionKernel:
    """One whose sums are added to the residual stream of 16 bits."""
    stream = Activation(1, rows, outputs, "int16")
    epilogue = ResidualAdd(stream, True, 0, 15, 0, -(2**15), 2**15 - 1)
    return ConvolutionKernel(Activation(1, rows, inputs, "int8"), stream, (1, 1), (1, 1), (0, 0), (1, 1), 1, epilogue)


def attention(tokens: int, heads: int, depth: int, masked: bool = False) -> AttentionKernel:
    """Self-attention on the output of one linear layer."""
    part = Operand("int8", (depth, 3 * heads * depth, 1))
    output, mask = Operand("int8", (depth, heads * depth, 1)), Operand("bool", (0, 0, 1)) if masked else None
    sizes = ((heads,), tokens, tokens, depth, depth)
    return AttentionKernel(*sizes, part, part, part, output, (0, 0, 0), PER_TENSOR, "int8", 8, PER_TENSOR, mask)


def matrix_product(batch: int, rows: int, length: int, columns: int, transposed: bool = False) -> MatrixProductKernel:
    """int8 by int8; the right operand contiguous along the length where ``transposed``."""
    right = (length * columns, 1, length) if transposed else (length * columns, columns, 1)
    operands = Operand("int8", (rows * length, length, 1)), Operand("int8", right), Operand("int8", (rows * columns, columns, 1))
    return MatrixProductKernel((batch,), rows, columns, length, *operands, 0, 0, PER_TENSOR)


KERNELS: dict[str, ConvolutionKernel | AttentionKernel | MatrixProductKernel] = {
    "ResNet stem 7x7/2 224 3>64": convolution(224, (3, 64), 7, 2),
    "ResNet 3x3 56 64": convolution(56, (64, 64), 3),
    "  the same, residual add": convolution(56, (64, 64), 3, epilogue=residual(56, 64)),
    "ResNet 3x3 28 128": convolution(28, (128, 128), 3),
    "ResNet 3x3 14 256": convolution(14, (256, 256), 3),
    "ResNet 3x3 7 512": convolution(7, (512, 512), 3),
    "ResNet 3x3/2 56 64>128": convolution(56, (64, 128), 3, 2),
    "ResNet 1x1/2 56 64>128": convolution(56, (64, 128), 1, 2),
    "ResNet 1x1 56 64>256": convolution(56, (64, 256), 1),
    "  the same 1x1, high": convolution(56, (64, 256), 1, epilogue=Requantization("high", True, 0, 0, 255)),
    "  the same 1x1, exact64": convolution(56, (64, 256), 1, epilogue=Requantization("exact64", True, 0, 0, 255)),
    "  the same 1x1, residual add": convolution(56, (64, 256), 1, epilogue=residual(56, 256)),
    "ResNet 1x1 56 256>64": convolution(56, (256, 64), 1),
    "ResNet 1x1 14 1024>256": convolution(14, (1024, 256), 1),
    "ResNet 1x1 7 512>2048": convolution(7, (512, 2048), 1),
    "ResNet linear 512>1000": convolution(1, (512, 1000), 1, epilogue=None),
    "EfficientNet 1x1 112 32>16": convolution(112, (32, 16), 1),
    "EfficientNet 1x1 28 40>240": convolution(28, (40, 240), 1),
    "EfficientNet 1x1 14 672>112": convolution(14, (672, 112), 1),
    "EfficientNet depthwise 3x3 112 32": depthwise(112, 32, 3),
    "EfficientNet depthwise 3x3/2 112 96": depthwise(112, 96, 3, 2),
    "EfficientNet depthwise 3x3 56 144": depthwise(56, 144, 3),
    "EfficientNet depthwise 5x5/2 56 144": depthwise(56, 144, 5, 2),
    "EfficientNet depthwise 5x5 28 240": depthwise(28, 240, 5),
    "EfficientNet depthwise 3x3 14 480": depthwise(14, 480, 3),
    "EfficientNet depthwise 5x5 14 672": depthwise(14, 672, 5),
    "EfficientNet depthwise 5x5 7 1152": depthwise(7, 1152, 5),
    "DeiT-Tiny linear 197x192>576": linear(197, 192, 576),
    "DeiT-Tiny linear 197x192>192, residual": residual_linear(197, 192, 192),
    "DeiT-Tiny linear 197x192>768, table": linear(197, 192, 768, table=True),
    "DeiT-Tiny linear 197x768>192, residual": residual_linear(197, 768, 192),
    "DeiT-Tiny attention 197x3x64": attention(197, 3, 64),
    "DeiT-Small attention 197x6x64": attention(197, 6, 64),
    "MiniLM attention 128x12x32, mask": attention(128, 12, 32, masked=True),
    "ViT-CIFAR attention 65x3x64": attention(65, 3, 64),
    "product 3 x 197x64x197": matrix_product(3, 197, 64, 197, transposed=True),
    "product 3 x 197x197x64": matrix_product(3, 197, 197, 64),
}


def operations(kernel: ConvolutionKernel | AttentionKernel | MatrixProductKernel) -> int:
    """Multiplications and additions; of attention those of the two products."""
    if isinstance(kernel, AttentionKernel):
        return 2 * math.prod(maxima((*kernel.batch, kernel.queries, kernel.keys))) * (kernel.depth + kernel.value_depth)
    if isinstance(kernel, MatrixProductKernel):
        return 2 * math.prod(maxima((*kernel.batch, kernel.rows, kernel.columns, kernel.length)))
    pixels = kernel.output.height * kernel.output.width
    return 2 * pixels * kernel.output.channels * (kernel.input.channels // kernel.groups) * kernel.kernel[0] * kernel.kernel[1]


def least_seconds(run: Callable[[], object], seconds: float) -> float:
    """The least time of as many runs as fit into the given time."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def shared_library(folder: Path, name: str, sources: dict[str, bytes], *options: str) -> ctypes.CDLL:
    """Compile and link files with the C compiler."""
    paths = []
    for file, content in sources.items():
        (folder / file).write_bytes(content)
        paths.append(folder / file)
    subprocess.run(["cc", "-O2", "-fPIC", "-shared", *options, *paths, "-o", folder / f"{name}.so"], check=True)
    return ctypes.CDLL(str(folder / f"{name}.so"))


class Peak:
    """Operations a second of the target's dot product."""

    def __init__(self, target: str, folder: Path) -> None:
        if target == "x86-64-amx":
            source, self._operations = AMX_PEAK_SOURCE, 4 * 2 * 16 * 16 * 64
        else:
            kind, products, code, clobber, count = PEAK[target]
            source, self._operations = PEAK_SOURCE.format(type=kind, code=code, clobber=clobber, count=count), 4 * 2 * products * count
        library = shared_library(folder, "peak", {"peak.c": source.encode()}, "-march=native")
        self._run = library.run
        self._run.argtypes = [ctypes.c_long]

    def measure(self) -> float:
        """In 10^9 a second."""
        steps = 1000
        return self._operations * steps / least_seconds(lambda: self._run(steps), 0.02) / 1e9


def aligned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A copy at a 64-byte boundary with the slack around it that kernels may read."""
    raw = array.reshape(-1).view(np.uint8)
    memory = np.zeros(raw.size + 1024, np.uint8)
    start = 256 + (-memory.ctypes.data) % 64
    memory[start : start + raw.size] = raw
    return memory[start : start + raw.size].view(array.dtype)


def constants(kernel: ConvolutionKernel, generator: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
    """Random weights; the parameters of the epilogue do not change the time."""
    outputs = kernel.output.channels
    one = np.ones(outputs, np.int32)
    weight = generator.integers(-127, 128, (outputs, kernel.input.channels // kernel.groups, *kernel.kernel)).astype(np.int8)
    named = {"pre_shift": 4 * one, "multiplier": 20000 * one, "shift": 5 * one, "pre_shift_a": one, "multiplier_a": one << 30}
    named |= {"table": generator.integers(-128, 128, 256).astype(np.int8)}
    return {"weight": weight, "bias": one, **named, "pre_shift_b": one[:1], "multiplier_b": one[:1] << 30}


def arrays_of(kernel: ConvolutionKernel, target: str, generator: np.random.Generator) -> list[np.ndarray[Any, Any]]:
    """A convolution's arguments."""
    maps = [kernel.input, *([kernel.epilogue.operand] if isinstance(kernel.epilogue, ResidualAdd) else [])]
    arrays = [generator.integers(0, 128, each.elements).astype(each.dtype) for each in maps]
    return [*arrays, *packing.pack(kernel, target, constants(kernel, generator)), np.zeros(kernel.output.elements, kernel.output.dtype)]


def arrays_of_products(kernel: AttentionKernel | MatrixProductKernel, generator: np.random.Generator) -> list[np.ndarray[Any, Any]]:
    """The arguments of products of activations: operands of one linear layer, parameters of the roundings, output."""
    rounding = [np.array([value], np.int32) for value in (4, 20000, 7)]
    if isinstance(kernel, MatrixProductKernel):
        batch, (rows, columns, length) = math.prod(maxima(kernel.batch)), maxima((kernel.rows, kernel.columns, kernel.length))
        operands = [generator.integers(-128, 128, batch * size).astype(np.int8) for size in (rows * length, length * columns)]
        return [*operands, *rounding, np.zeros(batch * rows * columns, np.int8)]
    width, (queries, keys) = math.prod(maxima(kernel.batch)) * kernel.depth, maxima((kernel.queries, kernel.keys))
    mask = [np.ones(keys, np.int8)] if kernel.mask is not None else []
    joined = generator.integers(-128, 128, keys * 3 * width).astype(np.int8)
    table = np.asarray(exponential_table(0.05), np.int32)
    return [*(joined[start * width :] for start in range(3)), *rounding, table, *mask, *rounding, np.zeros(queries * width, np.int8)]


def prepare(kernel: Any, target: str, folder: Path, number: int) -> Callable[[], object]:
    """The compiled kernel, as programs share it, with all its arguments."""
    shared, numbers = share(kernel)
    code = codegen.build_object(emit(shared, TARGETS[target], "kernel"), TARGETS[target], "kernel")
    library = shared_library(folder, f"kernel{number}", {f"kernel{number}.o": code, "launcher.c": LAUNCHER.encode()})
    generator = np.random.default_rng(0)
    is_convolution = isinstance(kernel, ConvolutionKernel)
    arrays = arrays_of(kernel, target, generator) if is_convolution else arrays_of_products(kernel, generator)
    kept = [*map(aligned, arrays), *([aligned(np.array(numbers, np.int64))] if numbers else [])]
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in kept]
    return lambda: (library.kernel(*pointers), kept)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; default: those that this machine runs")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    arguments = parser.parse_args()
    print(f"{'kernel':42}{'target':14}{'us':>9}{'GOPS':>8}{'of peak':>9}{'compile s':>11}")
    for target in arguments.targets or [name for name in TARGETS if available(name) is None]:
        with tempfile.TemporaryDirectory() as name:
            peak = Peak(target, Path(name))
            for number, (title, kernel) in enumerate(KERNELS.items()):
                if arguments.only in title:
                    start = time.perf_counter()
                    run = prepare(kernel, target, Path(name), number)
                    compile_seconds = time.perf_counter() - start
                    before, best = peak.measure(), least_seconds(run, 0.1)
                    rate, limit = operations(kernel) / best / 1e9, max(before, peak.measure())
                    print(f"{title:42}{target:14}{best * 1e6:9.1f}{rate:8.0f}{100 * rate / limit:8.0f}%{compile_seconds:11.2f}", flush=True)


if __name__ == "__main__":
    main()
