"""How fast layers with weights of 4 and 2 bits are beside those of 8, one thread: python benchmarks/low_bit.py [TARGET ...] [--only NAME]

Weights are read from memory, as when a network runs whose weights no cache holds: each kernel has as many copies of them as four times the
third-level cache takes, and uses one after the other. All variants of a layer run by turns, and a plain loop that reads memory with them;
times are those that the thread had a core. A line gives the median over the rounds of the time, of the ratio to W8A8 in the same round, of
the bytes of weights a second, of their share of what the plain loop reads in the same round, and of that. Where a variant is the same
kernel as W8A8, because its weights are expanded when the program is loaded, it says so and is timed nevertheless.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernels import LAUNCHER, aligned, constants, convolution, linear, residual, shared_library
from qcompiler.arithmetic import largest_factor
from qcompiler.backends.tvm import codegen, packing
from qcompiler.backends.tvm.kernels import ConvolutionKernel, ResidualAdd
from qcompiler.backends.tvm.sharing import share
from qcompiler.backends.tvm.target import TARGETS, available
from qcompiler.backends.tvm.templates.choice import weight_storage
from qcompiler.backends.tvm.worker import emit

STREAM = """
#include <immintrin.h>
int stream(const char *data, long size)
{
    __m256i sums[8] = {0};
    for (long i = 0; i < size; i += 256)
        for (int j = 0; j < 8; j++)
            sums[j] = _mm256_add_epi32(sums[j], _mm256_loadu_si256((const void *)(data + i + 32 * j)));
    for (int j = 1; j < 8; j++)
        sums[0] = _mm256_add_epi32(sums[0], sums[j]);
    return _mm256_extract_epi32(sums[0], 0);
}
"""
CACHES = 4  # times the third-level cache, that all copies of a layer's weights take
LEAST_RUNS = 8  # of a kernel in a round


@dataclass(frozen=True)
class Variant:
    """Bits of weights and activations, and inputs that share a factor (0: none)."""

    name: str
    weight: int
    activation: int
    group: int = 0


VARIANTS = (
    Variant("W8A8", 8, 8),
    Variant("W4A8", 4, 8),
    Variant("W4A8, groups of 128", 4, 8, 128),
    Variant("W4A8, groups of 32", 4, 8, 32),
    Variant("W4A4", 4, 4),
    Variant("W2A8", 2, 8),
)

# Per sample of a batch of 8, which the driver runs one after the other.
LAYERS: dict[str, ConvolutionKernel] = {
    "decoder 1x4096>4096": linear(1, 4096, 4096),
    "decoder 1x4096>11008": linear(1, 4096, 11008),
    "ResNet-50 7x7/2 224 3>64": convolution(224, (3, 64), 7, 2),
    "ResNet-50 1x1 56 64>64": convolution(56, (64, 64), 1),
    "ResNet-50 3x3 56 64": convolution(56, (64, 64), 3),
    "ResNet-50 1x1 56 64>256, add": convolution(56, (64, 256), 1, epilogue=residual(56, 256)),
    "ResNet-50 1x1 56 256>64": convolution(56, (256, 64), 1),
    "ResNet-50 3x3/2 56 128": convolution(56, (128, 128), 3, 2),
    "ResNet-50 3x3 28 128": convolution(28, (128, 128), 3),
    "ResNet-50 1x1 28 128>512, add": convolution(28, (128, 512), 1, epilogue=residual(28, 512)),
    "ResNet-50 1x1 28 512>128": convolution(28, (512, 128), 1),
    "ResNet-50 1x1/2 56 256>512": convolution(56, (256, 512), 1, 2),
    "ResNet-50 3x3/2 28 256": convolution(28, (256, 256), 3, 2),
    "ResNet-50 3x3 14 256": convolution(14, (256, 256), 3),
    "ResNet-50 1x1 14 256>1024, add": convolution(14, (256, 1024), 1, epilogue=residual(14, 1024)),
    "ResNet-50 1x1 14 1024>256": convolution(14, (1024, 256), 1),
    "ResNet-50 1x1/2 28 512>1024": convolution(28, (512, 1024), 1, 2),
    "ResNet-50 3x3/2 14 512": convolution(14, (512, 512), 3, 2),
    "ResNet-50 3x3 7 512": convolution(7, (512, 512), 3),
    "ResNet-50 1x1 7 512>2048, add": convolution(7, (512, 2048), 1, epilogue=residual(7, 2048)),
    "ResNet-50 1x1 7 2048>512": convolution(7, (2048, 512), 1),
    "ResNet-50 1x1/2 14 1024>2048": convolution(14, (1024, 2048), 1, 2),
    "ResNet-50 1x2048>1000": linear(1, 2048, 1000),
    "BERT-base 128x768>768": linear(128, 768, 768),
    "BERT-base 128x768>3072, table": linear(128, 768, 3072, table=True),
    "BERT-base 128x3072>768": linear(128, 3072, 768),
    "BERT-base pooler 1x768>768": linear(1, 768, 768),
}


@dataclass(frozen=True)
class Layer:
    """A compiled variant: one call for each copy of its weights."""

    calls: Sequence[Callable[[], object]]
    weight_bytes: int
    is_packed: bool

    def seconds(self) -> float:
        """Of one call, over all copies."""
        start = time.thread_time()
        for call in self.calls:
            call()
        return (time.thread_time() - start) / len(self.calls)


@dataclass(frozen=True)
class Line:
    """What was measured of a variant: medians over the rounds."""

    seconds: float
    ratio: float
    bytes_a_second: float
    share: float
    memory: float

    def __str__(self) -> str:
        read, memory = self.bytes_a_second / 1e9, self.memory / 1e9
        return f"{self.seconds * 1e6:.0f} | {self.ratio:.2f} | {read:.1f} | {100 * self.share:.0f} % | {memory:.1f}"


class Memory:
    """What a plain loop reads from memory."""

    def __init__(self, folder: Path) -> None:
        self._library = shared_library(folder, "stream", {"stream.c": STREAM.encode()}, "-march=x86-64-v3")
        self._data = np.ones(2 * third_level_cache(), np.uint8)

    def bytes_a_second(self) -> float:
        """Once over more than the cache holds."""
        start = time.thread_time()
        self._library.stream(ctypes.c_void_p(self._data.ctypes.data), ctypes.c_long(self._data.size))
        return self._data.size / (time.thread_time() - start)


def third_level_cache() -> int:
    """Bytes, 32 MiB where the system does not say."""
    found = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    return int(found.read_text().strip().removesuffix("K")) << 10 if found.exists() else 32 << 20


def constants_of(kernel: ConvolutionKernel, variant: Variant, group: int, generator: np.random.Generator) -> dict[str, Any]:
    """Random weights of the variant's bits; of a kernel that does not multiply factors itself, their products with them."""
    named = constants(kernel, generator)
    if variant.weight < 8:
        high = 1 << (variant.weight - 1)
        named["weight"] = generator.integers(1 - high, high, named["weight"].shape).astype(np.int8)
    if group:
        groups = -(-kernel.input.channels // group)
        named["factors"] = generator.integers(1, largest_factor(variant.weight) + 1, (kernel.output.channels, groups)).astype(np.int8)
    return named


def prepare(kernel: ConvolutionKernel, variant: Variant, target: str, folder: Path, libraries: dict[Any, Any]) -> Layer:
    """The variant with copies of its weights."""
    stored = weight_storage(kernel, target, variant.weight, variant.group)
    named = constants_of(kernel, variant, stored.weight_group, np.random.default_rng(0))
    return copies_of(stored, named, 1 << min(variant.activation, 7), target, folder, libraries)


def copies_of(
    stored: ConvolutionKernel, named: Mapping[str, Any], inputs: int, target: str, folder: Path, libraries: dict[Any, Any]
) -> Layer:
    """A kernel with copies of its weights; its inputs are below ``inputs``."""
    shared, numbers = share(stored)
    if shared not in libraries:
        code = codegen.build_object(emit(shared, TARGETS[target], "kernel"), TARGETS[target], "kernel")
        name = f"kernel{len(libraries)}"
        libraries[shared] = shared_library(folder, name, {f"{name}.o": code, "launcher.c": LAUNCHER.encode()})
    generator = np.random.default_rng(0)
    maps = [stored.input, *([stored.epilogue.operand] if isinstance(stored.epilogue, ResidualAdd) else [])]
    activations = [aligned(generator.integers(0, inputs, each.elements).astype(each.dtype)) for each in maps]
    packed = packing.pack(stored, target, named)
    after = [aligned(np.zeros(stored.output.elements, stored.output.dtype)), *([aligned(np.array(numbers, np.int64))] if numbers else [])]
    weight_bytes = packed[0].nbytes + (packed[1].nbytes if stored.weight_group else 0)
    copies = max(LEAST_RUNS, CACHES * third_level_cache() // weight_bytes) if weight_bytes >= 1 << 19 else LEAST_RUNS
    calls = []
    for _ in range(copies):
        arrays = [*activations, *map(aligned, packed), *after]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        calls.append(_call(libraries[shared].kernel, pointers, arrays))
    return Layer(calls, weight_bytes, stored.weight_bits < 8)


def _call(function: Any, pointers: Sequence[ctypes.c_void_p], kept: Sequence[Any]) -> Callable[[], object]:
    return lambda: (function(*pointers), kept)


def measure(layers: Mapping[str, Layer], memory: Memory, rounds: int) -> dict[str, Line]:
    """All variants by turns."""
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    speeds = []
    for _ in range(rounds):
        for name, layer in layers.items():
            seconds[name].append(layer.seconds())
        speeds.append(memory.bytes_a_second())
    base, speed = np.array(seconds["W8A8"]), np.array(speeds)
    lines = {}
    for name, layer in layers.items():
        times = np.array(seconds[name])
        read = layer.weight_bytes / times
        lines[name] = Line(*(float(np.median(each)) for each in (times, base / times, read, read / speed, speed)))
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; default: native")
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    print(
        "| layer | target | variant | µs | W8A8 / it | GB/s of weights | of memory's | GB/s of memory |\n|---|---|---|---|---|---|---|---|"
    )
    for target in arguments.targets or [next(name for name in TARGETS if available(name) is None)]:
        with tempfile.TemporaryDirectory() as name:
            folder, libraries = Path(name), dict[Any, Any]()
            memory = Memory(folder)
            for title, kernel in LAYERS.items():
                if arguments.only in title:
                    layers = {variant.name: prepare(kernel, variant, target, folder, libraries) for variant in VARIANTS}
                    for variant, line in measure(layers, memory, arguments.rounds).items():
                        how = "" if layers[variant].is_packed or variant == "W8A8" else ", expanded"
                        print(f"| {title} | {target} | {variant}{how} | {line} |", flush=True)


if __name__ == "__main__":
    main()
