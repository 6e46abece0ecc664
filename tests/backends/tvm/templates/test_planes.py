"""Products of bit planes: equal to the reference for every shape, number of planes and epilogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qcompiler.backends.tvm.kernels import Activation, BitPlanes, ConvolutionKernel, Requantization, ResidualAdd

TARGETS = ("x86-64-v3", "x86-64-vnni", "x86-64-amx")
Check = Callable[..., None]
NARROW = Requantization("narrow", True, -11, -100, 127)
HIGH = Requantization("high", True, 3, 0, 255)

BINARY = BitPlanes(1, -1, 2, 1, 0)


def linear(rows: int, inputs: int, outputs: int, planes: BitPlanes = BINARY, epilogue: Requantization | None = None) -> ConvolutionKernel:
    """int32 accumulators by default."""
    maps = (
        Activation(1, rows, inputs, "uint8" if planes.input_low >= 0 else "int8"),
        Activation(1, rows, outputs, "int8" if epilogue else "int32"),
    )
    return ConvolutionKernel(*maps, (1, 1), (1, 1), (0, 0), (1, 1), 1, epilogue, bit_planes=planes)


CASES = {
    "one row": linear(1, 64, 128),
    "one row, tails of inputs and channels": linear(1, 131, 1000, epilogue=NARROW),
    "fewer inputs than a word": linear(1, 3, 5),
    "rows": linear(37, 72, 33),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_shapes(name: str, target: str, check: Check) -> None:
    check(CASES[name], target)
