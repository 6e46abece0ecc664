"""Convolution and linear layers on floating-point units equal the integer sums, whatever their size and torch's settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompiler.arithmetic import convolution, linear

seeds = st.integers(0, 1 << 30)


def integers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    limits = torch.iinfo(dtype)
    return torch.randint(limits.min, limits.max + 1, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def wrapped(x: Tensor) -> Tensor:
    """int64 modulo 2^32, as int32."""
    return x.to(torch.int32)


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    pad_value: int,
) -> Tensor:
    """One int64 product for each tap: no floats, no library routine."""
    top, bottom, left, right = padding
    padded = F.pad(x.long(), (left, right, top, bottom), value=pad_value)
    samples, channels = x.shape[:2]
    outputs, _, kernel_height, kernel_width = weight.shape
    height = (padded.shape[2] - dilation[0] * (kernel_height - 1) - 1) // stride[0] + 1
    width = (padded.shape[3] - dilation[1] * (kernel_width - 1) - 1) // stride[1] + 1
    grouped = padded.reshape(samples, groups, 1, channels // groups, *padded.shape[2:])
    taps = weight.long().reshape(1, groups, outputs // groups, channels // groups, kernel_height, kernel_width)
    total = torch.zeros(samples, groups, outputs // groups, height, width, dtype=torch.int64)
    for i, j in itertools.product(range(kernel_height), range(kernel_width)):
        rows = slice(i * dilation[0], i * dilation[0] + (height - 1) * stride[0] + 1, stride[0])
        columns = slice(j * dilation[1], j * dilation[1] + (width - 1) * stride[1] + 1, stride[1])
        total += (grouped[..., rows, columns] * taps[..., i, j, None, None]).sum(3)
    return wrapped(total.reshape(samples, outputs, height, width) + bias.long()[:, None, None])


@settings(deadline=None, max_examples=60)
@given(
    seed=seeds,
    dtype=st.sampled_from((torch.uint8, torch.int8)),
    samples=st.integers(1, 3),
    groups=st.sampled_from((1, 2, 3)),
    channels=st.integers(1, 5),
    outputs=st.integers(1, 4),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_convolution_is_the_integer_sum(
    seed: int,
    dtype: torch.dtype,
    samples: int,
    groups: int,
    channels: int,
    outputs: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
) -> None:
    x = integers((samples, groups * channels, *size), dtype, seed)
    weight = integers((groups * outputs, channels, *kernel), torch.int8, seed + 1)
    bias = integers((groups * outputs,), torch.int16, seed + 2).int() * 1000
    pad_value = int(integers((1,), dtype, seed + 3))
    geometry = (stride, padding, dilation, groups, pad_value)
    y = convolution(x, weight, bias, *geometry)
    assert y.dtype == torch.int32
    assert torch.equal(y, reference(x, weight, bias, *geometry))


@settings(deadline=None, max_examples=40)
@given(
    seed=seeds,
    dtype=st.sampled_from((torch.uint8, torch.int8, torch.int16, torch.int32)),
    leading=st.lists(st.integers(1, 4), max_size=3),
    features=st.integers(1, 70),
    outputs=st.integers(1, 9),
)
def test_linear_is_the_integer_sum(seed: int, dtype: torch.dtype, leading: list[int], features: int, outputs: int) -> None:
    x = integers((*leading, features), dtype, seed)
    weight = integers((outputs, features), torch.int8, seed + 1)
    bias = integers((outputs,), torch.int32, seed + 2)
    y = linear(x, weight, bias)
    assert y.dtype == torch.int32
    assert torch.equal(y, wrapped((x.long().unsqueeze(-2) * weight.long()).sum(-1) + bias))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("features", [513, 514, 515, 4096, 16385, 66000])
def test_sums_past_the_24_bits_of_float32_are_exact(features: int, dtype: torch.dtype, sign: int) -> None:
    """Odd sums of the largest magnitude: float32 alone would round them."""
    limits = torch.iinfo(dtype)
    x = torch.full((2, features), limits.max if dtype == torch.uint8 else limits.min, dtype=dtype)
    x[0, 0] = 1
    weight = torch.full((3, features), 127 * sign, dtype=torch.int8)
    weight[1] = -128
    weight[2, ::2] = 1
    bias = torch.tensor([1, -1, 0], dtype=torch.int32)
    assert torch.equal(linear(x, weight, bias), wrapped((x.long()[:, None] * weight.long()).sum(-1) + bias))


@pytest.mark.parametrize("groups", [1, 2])
def test_deep_convolutions_are_split_over_the_channels_of_every_group(groups: int) -> None:
    channels = 700
    x = torch.full((1, groups * channels, 4, 3), 255, dtype=torch.uint8)
    x[0, ::7, 1, 1] = 3
    weight = torch.full((groups * 2, channels, 3, 3), 127, dtype=torch.int8)
    weight[1, ::3] = -128
    bias = torch.zeros(groups * 2, dtype=torch.int32)
    geometry = ((1, 1), (1, 1, 1, 0), (1, 1), groups, 7)
    assert torch.equal(convolution(x, weight, bias, *geometry), reference(x, weight, bias, *geometry))


def test_a_kernel_too_large_for_float32_is_exact() -> None:
    x = torch.full((1, 1, 30, 30), 255, dtype=torch.uint8)
    x[0, 0, 3, 4] = 254
    weight = torch.full((1, 1, 25, 25), 127, dtype=torch.int8)
    bias = torch.zeros(1, dtype=torch.int32)
    geometry = ((1, 1), (0, 0, 0, 0), (1, 1), 1, 0)
    assert torch.equal(convolution(x, weight, bias, *geometry), reference(x, weight, bias, *geometry))


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(multiplier: int) -> None:
    x = integers((2, 16, 9, 8), torch.uint8, 0)
    weight = integers((16 * multiplier, 1, 3, 3), torch.int8, 1)
    bias = integers((16 * multiplier,), torch.int16, 2).int()
    geometry = ((2, 1), (1, 1, 0, 2), (1, 1), 16, 131)
    assert torch.equal(convolution(x, weight, bias, *geometry), reference(x, weight, bias, *geometry))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_wide_inputs_go_by_bytes(dtype: torch.dtype) -> None:
    x = integers((2, 6, 7, 7), dtype, 3)
    weight = integers((4, 3, 3, 3), torch.int8, 4)
    bias = integers((4,), torch.int32, 5)
    geometry = ((1, 2), (1, 0, 2, 1), (1, 1), 2, -77)
    assert torch.equal(convolution(x, weight, bias, *geometry), reference(x, weight, bias, *geometry))


def test_inputs_need_not_be_contiguous() -> None:
    x = integers((2, 7, 6, 5), torch.uint8, 6).permute(0, 3, 1, 2)
    weight, bias = integers((4, 5, 3, 3), torch.int8, 7), torch.zeros(4, dtype=torch.int32)
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 1, 9)
    assert torch.equal(convolution(x, weight, bias, *geometry), reference(x, weight, bias, *geometry))
    assert torch.equal(
        convolution(x.contiguous(memory_format=torch.channels_last), weight, bias, *geometry), reference(x, weight, bias, *geometry)
    )


@contextmanager
def medium_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def bfloat16_convolutions() -> Iterator[None]:
    before = torch.backends.mkldnn.conv.fp32_precision
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.backends.mkldnn.conv.fp32_precision = before


@contextmanager
def without_onednn() -> Iterator[None]:
    """torch then prefers NNPACK, whose 3x3 convolutions are Winograd's."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


@pytest.mark.parametrize("setting", [medium_precision, bfloat16_convolutions, without_onednn])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_settings_of_torch_do_not_change_a_result(setting: object, dtype: torch.dtype) -> None:
    """Large enough for every fast path: batch 32, 64 channels, 3x3, values of all bits, a pad value that doubles the range."""
    x, weight = integers((32, 64, 14, 14), dtype, 8), integers((64, 64, 3, 3), torch.int8, 9)
    bias = torch.zeros(64, dtype=torch.int32)
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 1, 3)
    rows, table = integers((300, 1000), dtype, 10), integers((200, 1000), torch.int8, 11)
    with setting():  # type: ignore[operator]
        y = convolution(x, weight, bias, *geometry)
        z = linear(rows, table, torch.zeros(200, dtype=torch.int32))
    assert torch.equal(y[:2], reference(x[:2], weight, bias, *geometry))
    assert torch.equal(y[-1:], reference(x[-1:], weight, bias, *geometry))
    assert torch.equal(z, wrapped((rows[:, None].long() * table.long()).sum(-1)))


def test_one_thread_and_two_give_the_same_integers() -> None:
    x, weight = integers((4, 32, 16, 16), torch.uint8, 12), integers((32, 32, 3, 3), torch.int8, 13)
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 1, 0)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(convolution(x, weight, torch.zeros(32, dtype=torch.int32), *geometry))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
