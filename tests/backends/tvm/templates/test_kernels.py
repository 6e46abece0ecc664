from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qcompiler.backends.tvm.kernels import Activation, ConvolutionKernel, Requantization, ResidualAdd

TARGETS = ("x86-64-v3", "x86-64-vnni")
Check = Callable[[ConvolutionKernel, str], None]
HIGH = Requantization("high", True, 3, 0, 255)


def convolution(
    size: tuple[int, int],
    channels: tuple[int, int],
    kernel: tuple[int, int] = (1, 1),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    epilogue: Requantization | ResidualAdd | None = HIGH,
    dtypes: tuple[Any, Any] = ("uint8", "uint8"),
    extra_halo: tuple[int, int, int, int] = (0, 0, 0, 0),
    output_halo: tuple[int, int, int, int] = (0, 0, 0, 0),
    table: bool = False,
) -> ConvolutionKernel:
    """A kernel over a map of the given size with symmetric padding, and a halo that is ``extra_halo`` wider than it must be."""
    halo = tuple(padding[i // 2] + extra for i, extra in enumerate(extra_halo))
    extent = tuple((size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
    return ConvolutionKernel(
        Activation(*size, channels[0], dtypes[0], (halo[0], halo[1], halo[2], halo[3])),
        Activation(*extent, channels[1], dtypes[1] if epilogue else "int32", output_halo),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        epilogue,
        table,
    )


SHAPES = {
    "3x3": convolution((9, 15), (20, 70), (3, 3), padding=(1, 1)),
    "3x3 stride 2, tail of one channel": convolution((13, 11), (16, 33), (3, 3), (2, 2), (1, 1)),
    "stem": convolution((30, 37), (3, 24), (7, 7), (2, 2), (3, 3)),
    "odd channels": convolution((5, 6), (7, 5), (3, 2), padding=(1, 0)),
    "dilated": convolution((12, 13), (12, 16), (3, 3), padding=(2, 4), dilation=(2, 4)),
    "strides differ": convolution((12, 13), (8, 16), (2, 3), stride=(1, 3)),
    "pointwise": convolution((7, 9), (40, 100)),
    "pointwise, stride 2": convolution((8, 9), (40, 100), stride=(2, 2)),
    "pointwise between halos": convolution((7, 9), (24, 16), extra_halo=(1, 0, 2, 1), output_halo=(1, 2, 3, 1)),
    "linear, one row": convolution((1, 1), (130, 1000)),
    "linear, rows": convolution((1, 37), (64, 48)),
    "no more channels than one": convolution((4, 4), (1, 1), (3, 3), padding=(1, 1)),
    "wide halos": convolution((6, 7), (16, 32), (3, 3), padding=(1, 1), extra_halo=(2, 0, 1, 3), output_halo=(0, 1, 2, 0)),
    "groups": convolution((6, 7), (48, 96), (3, 3), padding=(1, 1), groups=3),
    "narrow groups": convolution((6, 7), (24, 36), (3, 3), padding=(1, 1), groups=12),
    "depthwise with two outputs a channel": convolution((6, 7), (10, 20), (3, 3), padding=(1, 1), groups=10),
}
DEPTHWISE = {
    "3x3": convolution((9, 11), (64, 64), (3, 3), padding=(1, 1), groups=64),
    "3x3, mixed chunks": convolution((8, 7), (244, 244), (3, 3), padding=(1, 1), groups=244, output_halo=(1, 1, 1, 1)),
    "3x3 stride 2": convolution((12, 15), (96, 96), (3, 3), (2, 2), (1, 1), groups=96),
    "5x5": convolution((9, 8), (48, 48), (5, 5), padding=(2, 2), groups=48),
    "5x5 stride 2": convolution((9, 14), (37, 37), (5, 5), (2, 2), (2, 2), groups=37),
    "7x1": convolution((9, 8), (20, 20), (7, 1), padding=(3, 0), groups=20),
    "dilated": convolution((9, 9), (16, 16), (3, 3), padding=(2, 2), dilation=(2, 2), groups=16),
    "one row": convolution((1, 9), (5, 5), (1, 3), padding=(0, 1), groups=5),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str, target: str, check: Check) -> None:
    check(SHAPES[name], target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise_shapes(name: str, target: str, check: Check) -> None:
    check(DEPTHWISE[name], target)
