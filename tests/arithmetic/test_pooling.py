"""Pooling against window-by-window loops on Python integers, and against torch's own windows."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompiler.arithmetic import adaptive_max_pool2d, adaptive_sum_pool2d, max_pool2d, reduce_sum, sum_pool2d
from qcompiler.arithmetic.pooling import adaptive_windows

DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32)


def integers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    limits = torch.iinfo(dtype)
    low, high = max(limits.min, -(1 << 20)), min(limits.max, 1 << 20)
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def windows(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, ...], dilation: tuple[int, int], fill: int
) -> Tensor:
    """[..., output height, output width, taps] in int64."""
    top, bottom, left, right = padding
    padded = F.pad(x.long(), (left, right, top, bottom), value=fill)
    height = (padded.shape[-2] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    width = (padded.shape[-1] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    taps = [
        padded[..., i * dilation[0] :: stride[0], j * dilation[1] :: stride[1]][..., :height, :width]
        for i, j in itertools.product(range(kernel[0]), range(kernel[1]))
    ]
    return torch.stack(taps, -1)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
geometries = {
    "seed": st.integers(0, 1 << 30),
    "dtype": st.sampled_from(DTYPES),
    "shape": st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(5, 9), st.integers(5, 9)),
    "kernel": pairs,
    "stride": pairs,
    "padding": st.tuples(*[st.integers(0, 2)] * 4),
}


@settings(deadline=None)
@given(**geometries, dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)))
def test_max_pool2d(
    seed: int,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, ...],
    dilation: tuple[int, int],
) -> None:
    x = integers(shape, dtype, seed)
    y = max_pool2d(x, kernel, stride, padding, dilation)
    assert y.dtype == dtype
    assert torch.equal(y.long(), windows(x, kernel, stride, padding, dilation, torch.iinfo(dtype).min).amax(-1))


@settings(deadline=None)
@given(**geometries, zero_point=st.integers(0, 127))
def test_sum_pool2d(
    seed: int,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, ...],
    zero_point: int,
) -> None:
    x = integers(shape, dtype, seed)
    y = sum_pool2d(x, kernel, stride, padding, zero_point)
    assert y.dtype == torch.int32
    assert torch.equal(y.long(), (windows(x, kernel, stride, padding, (1, 1), zero_point) - zero_point).sum(-1))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 10])
@pytest.mark.parametrize("output_size", [1, 2, 3, 7, 12])
def test_adaptive_windows_are_torchs(size: int, output_size: int) -> None:
    """Powers of two tell which elements torch averaged: sums of distinct powers are unique."""
    x = (2.0 ** torch.arange(size, dtype=torch.float64)).reshape(1, 1, size)
    averages = F.adaptive_avg_pool1d(x, output_size).flatten().tolist()
    expected = [sum(2.0**i for i in range(start, end)) / (end - start) for start, end in adaptive_windows(size, output_size)]
    assert averages == expected


@settings(deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    output_size=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    zero_point=st.integers(0, 127),
)
def test_adaptive_pools(seed: int, dtype: torch.dtype, shape: tuple[int, ...], output_size: tuple[int, int], zero_point: int) -> None:
    x = integers(shape, dtype, seed)
    sums, maxima = adaptive_sum_pool2d(x, output_size, zero_point), adaptive_max_pool2d(x, output_size)
    assert sums.dtype == torch.int32 and maxima.dtype == dtype
    for i, (top, bottom) in enumerate(adaptive_windows(shape[2], output_size[0])):
        for j, (left, right) in enumerate(adaptive_windows(shape[3], output_size[1])):
            window = x[..., top:bottom, left:right].long()
            assert torch.equal(sums[..., i, j].long(), (window - zero_point).sum((-2, -1)))
            assert torch.equal(maxima[..., i, j].long(), window.amax((-2, -1)))


@pytest.mark.parametrize("dim", [[], [1], [-1], [2, 3], [0, -1]])
@pytest.mark.parametrize("keepdim", [False, True])
def test_reduce_sum(dim: list[int], keepdim: bool) -> None:
    x = integers((2, 3, 4, 5), torch.uint8, 0)
    y = reduce_sum(x, dim, keepdim, 131)
    assert y.dtype == torch.int32
    assert torch.equal(y.long(), (x.long() - 131).sum(dim or [0, 1, 2, 3], keepdim=keepdim))
