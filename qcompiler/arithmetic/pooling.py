"""Maxima and sums over windows of the last two dimensions, and sums over whole dimensions.

Windows are products of a row and a column interval, so both reductions run over one dimension after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Callable[[Tensor, Tensor], Tensor]


def max_pool2d(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Maximum over windows; ``padding`` [top, bottom, left, right] adds the dtype's minimum. Any integer dtype, kept."""
    top, bottom, left, right = padding
    y = F.pad(x, (left, right, top, bottom), value=torch.iinfo(x.dtype).min)
    for dim in (-2, -1):
        y = _slide(y, dim, kernel[dim], stride[dim], dilation[dim], torch.maximum)
    return y


def sum_pool2d(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], zero_point: int) -> Tensor:
    """int32 sum of ``x - zero_point`` over windows; ``padding`` [top, bottom, left, right] counts 0."""
    top, bottom, left, right = padding
    y = F.pad(x, (left, right, top, bottom), value=zero_point).to(torch.int32)
    for dim in (-2, -1):
        y = _slide(y, dim, kernel[dim], stride[dim], 1, torch.add)
    return y - zero_point * kernel[0] * kernel[1]


def adaptive_max_pool2d(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """Maximum over torch's adaptive windows (``adaptive_windows``)."""
    for dim in (-2, -1):
        x = torch.stack(
            [x.narrow(dim, start, end - start).amax(dim) for start, end in adaptive_windows(x.shape[dim], output_size[dim])], dim
        )
    return x


def adaptive_sum_pool2d(x: Tensor, output_size: Sequence[int], zero_point: int) -> Tensor:
    """int32 sum of ``x - zero_point`` over torch's adaptive windows."""
    y = x
    for dim in (-2, -1):
        windows = adaptive_windows(y.shape[dim], output_size[dim])
        y = torch.stack([y.narrow(dim, start, end - start).sum(dim, dtype=torch.int32) for start, end in windows], dim)
    rows, columns = (_window_lengths(n, size) for n, size in zip(x.shape[-2:], output_size, strict=True))
    return y - zero_point * (rows[:, None] * columns)


def adaptive_windows(size: int, output_size: int) -> list[tuple[int, int]]:
    """Window i of torch's adaptive pooling: [floor(i * size / output_size), ceil((i + 1) * size / output_size))."""
    return [(i * size // output_size, -(-(i + 1) * size // output_size)) for i in range(output_size)]


def reduce_sum(x: Tensor, dim: Sequence[int], keepdim: bool, zero_point: int) -> Tensor:
    """int32 sum of ``x - zero_point`` over the dimensions ``dim`` (none given: over all)."""
    dims = tuple(dim) or tuple(range(x.dim()))
    count = 1
    for d in dims:
        count *= x.shape[d]
    return x.sum(dims, keepdim=keepdim, dtype=torch.int32) - zero_point * count


def _window_lengths(size: int, output_size: int) -> Tensor:
    return torch.tensor([end - start for start, end in adaptive_windows(size, output_size)], dtype=torch.int32)


def _slide(x: Tensor, dim: int, kernel: int, stride: int, dilation: int, reduction: Reduction) -> Tensor:
    """Reduce along ``dim`` the windows {o * stride + i * dilation : i < kernel}, one shifted slice after the other."""
    size = (x.shape[dim] - dilation * (kernel - 1) - 1) // stride + 1
    slices = [torch.narrow(x, dim, i * dilation, (size - 1) * stride + 1) for i in range(kernel)]
    strided = [s[..., ::stride, :] if dim == -2 else s[..., ::stride] for s in slices]
    result = strided[0]
    for other in strided[1:]:
        result = reduction(result, other)
    return result
