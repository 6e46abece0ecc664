from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qcompiler import native
from qcompiler.backends.tvm import templates
from qcompiler.backends.tvm.kernels import Activation, ConvolutionKernel, Requantization, ResidualAdd
from qcompiler.backends.tvm.templates.winograd_layout import uses_winograd
from qcompiler.errors import TargetError

TARGETS = ("x86-64-v3", "x86-64-vnni", "x86-64-amx")
Check = Callable[..., None]
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


@pytest.mark.parametrize("target", TARGETS[:2])  # AMX has no part in these
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise_shapes(name: str, target: str, check: Check) -> None:
    check(DEPTHWISE[name], target)


def with_pitch(kernel: ConvolutionKernel) -> ConvolutionKernel:
    """The kernel between maps that are some of the channels of wider ones."""
    epilogue = kernel.epilogue
    if isinstance(epilogue, ResidualAdd):
        epilogue = replace(epilogue, operand=replace(epilogue.operand, pitch=epilogue.operand.channels + 7))
    x, y = (replace(each, pitch=each.channels + more) for each, more in ((kernel.input, 13), (kernel.output, 5)))
    return replace(kernel, input=x, output=y, epilogue=epilogue)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "name",
    ["3x3 stride 2, tail of one channel", "linear, rows", "wide halos", "narrow groups"],
)
def test_some_channels_of_wider_maps(name: str, target: str, check: Check) -> None:
    check(with_pitch(SHAPES[name]), target)


@pytest.mark.parametrize("target", TARGETS[:2])
@pytest.mark.parametrize("name", ["3x3, mixed chunks", "5x5 stride 2"])
def test_some_channels_of_wider_maps_depthwise(name: str, target: str, check: Check) -> None:
    check(with_pitch(DEPTHWISE[name]), target)


WINOGRAD = {
    "whole tiles": convolution((8, 12), (32, 128), (3, 3), padding=(1, 1)),
    "tiles past the end, no halo to read there": convolution((18, 11), (64, 64), (3, 3), padding=(0, 1), extra_halo=(1, 0, 2, 0)),
    "output halo": convolution((8, 8), (64, 64), (3, 3), padding=(1, 1), output_halo=(1, 1, 2, 1)),
    "two parts": convolution((8, 8), (256, 64), (3, 3), padding=(1, 1)),
    "signed": convolution(
        (8, 8), (64, 64), (3, 3), padding=(1, 1), dtypes=("int8", "int8"), epilogue=Requantization("high", True, 1, -128, 127)
    ),
    "residual add": convolution(
        (8, 8), (64, 64), (3, 3), padding=(1, 1), epilogue=ResidualAdd(Activation(8, 8, 64, "uint8"), True, 3, 18, 100, 0, 255)
    ),
}


@pytest.mark.parametrize("name", WINOGRAD)
def test_winograd(name: str, check: Check) -> None:
    assert uses_winograd(WINOGRAD[name], "x86-64-vnni")
    check(WINOGRAD[name], "x86-64-vnni")


def test_winograd_between_some_channels_of_wider_maps(check: Check) -> None:
    check(with_pitch(WINOGRAD["residual add"]), "x86-64-vnni")


@pytest.mark.parametrize("channels", [224, 256])
@pytest.mark.parametrize("extreme", [0, 255])
def test_winograd_at_the_ends_of_its_range(channels: int, extreme: int, check: Check) -> None:
    """The largest sums that there can be, of both signs: inputs of one value and weights of -128, or 127, or alternating."""
    kernel = convolution((8, 8), (channels, 64), (3, 3), padding=(1, 1), epilogue=None)

    def change(case: Any) -> None:
        case.input[:] = extreme
        weight = case.constants["weight"]
        weight[:24], weight[24:48] = -128, 127
        weight[48:, :, ::2], weight[48:, :, 1::2] = -128, 127

    check(kernel, "x86-64-vnni", change)


def test_winograd_only_where_it_is_faster() -> None:
    assert not uses_winograd(convolution((8, 8), (512, 64), (3, 3), padding=(1, 1)), "x86-64-vnni")
    assert not uses_winograd(convolution((5, 5), (64, 64), (3, 3), padding=(1, 1)), "x86-64-vnni")
    assert not uses_winograd(WINOGRAD["whole tiles"], "x86-64-amx")


def requantization(form: Any, output: str, per_channel: bool) -> Requantization:
    """Bounds inside the type, so that the clamp shows, and a zero point that is not the middle."""
    low, high, zero_point = {"uint8": (5, 240, 17), "int8": (-100, 127, -11), "int16": (-30000, 32767, 21), "int32": (-(2**20), 2**20, 5)}[
        output
    ]
    return Requantization(form, per_channel, zero_point, low, high)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", ["high", "narrow", "exact64"])
@pytest.mark.parametrize("output", ["uint8", "int8", "int16", "int32"])
def test_forms(form: str, output: str, target: str, check: Check) -> None:
    """All forms in chunks of 4, 2 and 1 vectors; per channel for 8 bits, per tensor else."""
    epilogue = requantization(form, output, per_channel=output in ("uint8", "int8"))
    check(convolution((1, 3), (20, 117), epilogue=epilogue, dtypes=("uint8", output)), target)


@pytest.mark.parametrize("target", TARGETS[:2])
@pytest.mark.parametrize(
    ("form", "output"),
    [("high", "int8"), ("narrow", "uint8"), ("exact64", "int8"), ("high", "int16"), ("narrow", "int16"), (None, "int32")],
)
def test_forms_of_depthwise(form: str | None, output: str, target: str, check: Check) -> None:
    epilogue = requantization(form, output, per_channel=True) if form else None
    check(convolution((3, 4), (100, 100), (3, 3), padding=(1, 1), groups=100, epilogue=epilogue, dtypes=("uint8", output)), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("groups", [1, 24])
def test_signed_inputs(groups: int, target: str, check: Check) -> None:
    kernel = convolution(
        (5, 6),
        (24, 24),
        (3, 3),
        padding=(1, 1),
        groups=groups,
        dtypes=("int8", "int8"),
        epilogue=Requantization("high", True, -3, -128, 127),
    )
    check(kernel, target)


@pytest.mark.parametrize("target", TARGETS)
def test_accumulators(target: str, check: Check) -> None:
    check(convolution((2, 5), (16, 70), epilogue=None), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("operand", "output"), [("uint8", "uint8"), ("int8", "int8"), ("int16", "int16"), ("int32", "uint8")])
def test_residual_add(operand: Any, output: str, target: str, check: Check) -> None:
    """The operand has a halo of its own; operand and output have different zero points."""
    low, high, zero_point = {"uint8": (3, 250, 100), "int8": (-120, 120, 7), "int16": (-20000, 20000, -9)}[output]
    addend = Activation(4, 5, 50, operand, (1, 0, 2, 1))
    shift = 18 if output != "int16" else 8
    epilogue = ResidualAdd(addend, output != "int8", 3, shift, zero_point, low, high)
    kernel = convolution((4, 5), (12, 50), (3, 3), padding=(1, 1), epilogue=epilogue, dtypes=("uint8", output))
    check(with_pitch(kernel) if operand == "int8" else kernel, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("output", "channels"), [("uint8", 117), ("int8", 33)])
def test_table(output: str, channels: int, target: str, check: Check) -> None:
    epilogue = requantization("narrow", output, per_channel=True)
    kernel = convolution((2, 3), (20, channels), epilogue=epilogue, dtypes=("uint8", output), table=True)
    check(with_pitch(kernel) if output == "int8" else kernel, target)


def test_table_after_depthwise(check: Check) -> None:
    epilogue = requantization("high", "uint8", per_channel=True)
    check(convolution((3, 3), (52, 52), (3, 3), padding=(1, 1), groups=52, epilogue=epilogue, table=True), "x86-64-vnni")


def test_amx_kernels_use_amx(check: Check, emulated_amx: Callable[[], int]) -> None:
    before = emulated_amx()
    check(SHAPES["linear, rows"], "x86-64-amx")
    if not native.request_amx():
        assert emulated_amx() > before


def test_unknown_target() -> None:
    with pytest.raises(TargetError, match="no kernel templates for target 'z80'; there are: x86-64-v3, x86-64-vnni, x86-64-amx"):
        templates.emit(SHAPES["3x3"], "z80", "kernel")
