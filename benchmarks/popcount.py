"""Products of bit planes beside products of bytes, one thread: python benchmarks/popcount.py [TARGET ...] [--only NAME]

For a layer the kernel of 8 bits, that with weights of 2 bits unpacked in registers, and those that count bits, by numbers of planes of
weights and of inputs; binary weights are -1 and +1, those of two planes -1, 0 and +1. Weights that no cache keeps are read from memory, as
in ``low_bit``. All run by turns; a line gives the median over the rounds of the time and of the ratio to 8 bits in the same round, the
ratio that the cost model predicts, and whether a layer of such weights and inputs gets this kernel.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kernels import constants, convolution, linear
from low_bit import Layer, copies_of
from qcompiler.backends.tvm.kernels import Activation, BitPlanes, ConvolutionKernel
from qcompiler.backends.tvm.target import TARGETS, available
from qcompiler.backends.tvm.templates.choice import predicted_cycles, weight_storage
from qcompiler.backends.tvm.templates.winograd_layout import uses_winograd

LAYERS = {
    "linear 1x4096>4096": linear(1, 4096, 4096),
    "linear 64x1024>1024": linear(64, 1024, 1024),
    "3x3 14 256>256": convolution(14, (256, 256), 3),
    "3x3 28 128>128": convolution(28, (128, 128), 3),
    "3x3 56 64>64": convolution(56, (64, 64), 3),
    "1x1 14 1024>256": convolution(14, (1024, 256), 1),
    "1x1 56 64>256": convolution(56, (64, 256), 1),
}
PLANES = {
    "1 x 1 bit": BitPlanes(1, -1, 2, 1, 0),
    "1 x 2 bits": BitPlanes(1, -1, 2, 2, 0),
    "2 x 1 bits": BitPlanes(2, -1, 1, 1, 0),
    "2 x 2 bits": BitPlanes(2, -1, 1, 2, 0),
    "1 x 4 bits": BitPlanes(1, -1, 2, 4, 0),
    "1 x 8 bits": BitPlanes(1, -1, 2, 8, 0),
}
BYTES, PACKED = "8 bits", "weights of 2 bits, unpacked"


def variants(kernel: ConvolutionKernel, target: str) -> dict[str, ConvolutionKernel]:
    """The kernels of a layer by name; Winograd's takes the place of all that multiply bytes."""
    unsigned = replace(kernel, input=Activation(kernel.input.height, kernel.input.width, kernel.input.channels, "uint8", kernel.input.halo))
    counted = {name: replace(unsigned, bit_planes=planes) for name, planes in PLANES.items()}
    packed = {} if uses_winograd(unsigned, target) else {PACKED: replace(unsigned, weight_bits=2)}
    return {BYTES: unsigned, **packed, **counted}


def prepared(kernel: ConvolutionKernel, target: str, folder: Path, libraries: dict[Any, Any]) -> Layer:
    """The kernel with weights and inputs that it takes."""
    generator = np.random.default_rng(0)
    named, planes = constants(kernel, generator), kernel.bit_planes
    if planes is not None:
        bits = generator.integers(0, 2 if planes.weights == 1 else 3, named["weight"].shape)
        named["weight"] = (planes.weight_low + planes.weight_step * bits).astype(np.int8)
    elif kernel.weight_bits < 8:
        named["weight"] = generator.integers(-1, 2, named["weight"].shape).astype(np.int8)
    return copies_of(kernel, named, 1 << planes.inputs if planes is not None else 128, target, folder, libraries)


def measure(layers: Mapping[str, Layer], rounds: int) -> dict[str, np.ndarray[Any, Any]]:
    """Seconds of each round, all layers by turns."""
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(rounds):
        for name, layer in layers.items():
            seconds[name].append(min(layer.seconds() for _ in range(3)))
    return {name: np.array(times) for name, times in seconds.items()}


def is_chosen(kernel: ConvolutionKernel, target: str) -> bool:
    """Whether a layer of these weights and inputs gets this kernel."""
    plain = replace(kernel, bit_planes=None, weight_bits=8)
    bits = 8 if plain == kernel else 2
    return weight_storage(plain, target, bits, 0, kernel.bit_planes) == kernel


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; default: native")
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    print("| layer | target | kernel | µs | 8 bits / it | predicted | chosen |\n|---|---|---|---|---|---|---|")
    for target in arguments.targets or [next(name for name in TARGETS if available(name) is None)]:
        with tempfile.TemporaryDirectory() as name:
            libraries = dict[Any, Any]()
            for title, layer in LAYERS.items():
                if arguments.only not in title:
                    continue
                kernels = variants(layer, target)
                times = measure({key: prepared(kernel, target, Path(name), libraries) for key, kernel in kernels.items()}, arguments.rounds)
                for key, kernel in kernels.items():
                    ratio = float(np.median(times[BYTES] / times[key]))
                    predicted = predicted_cycles(kernels[BYTES], target) / predicted_cycles(kernel, target)
                    chosen = "yes" if is_chosen(kernel, target) else ""
                    line = f"{float(np.median(times[key])) * 1e6:.1f} | {ratio:.2f} | {predicted:.2f} | {chosen}"
                    print(f"| {title} | {target} | {key} | {line} |", flush=True)


if __name__ == "__main__":
    main()
