"""Pooling over windows and over all positions.

ONNX divides an average by the elements of its window that lie inside (``count_include_pad=0``); torch can do so where both sides are
padded alike. Elsewhere the padded average is divided by the average of ones, a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.capture.onnx.call import Call
from qcompiler.capture.onnx.registry import converter
from qcompiler.capture.onnx.windows import Windows, pad_sides, windows_of

_MAXIMA: Mapping[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGES: Mapping[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _windows(call: Call) -> Windows:
    found = windows_of(call, call.tensor(0))
    if found.rank > 3:
        raise call.fail(f"pools over {found.rank} dimensions: 1 to 3 are supported")
    return found


@converter("MaxPool")
def max_pool(call: Call) -> Tensor:
    if len(call.node.outputs) > 1 and call.node.outputs[1]:
        raise call.fail("gives the positions of its maxima: only the maxima are supported")
    x, found, ceil = call.tensor(0), _windows(call), call.flag("ceil_mode")
    padding = found.symmetric
    if padding is None or any(2 * pad > length for pad, length in zip(padding, found.kernel, strict=True)):
        low = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        x, padding = F.pad(x, pad_sides(found), value=low), [0] * found.rank
    if x.dtype.itemsize > 2 and not x.is_floating_point():
        raise call.fail(f"takes maxima of {x.dtype}: convert them to floats before")
    # Whole numbers of 8 and 16 bits are exact in float32; torch pools floats only.
    maxima = _MAXIMA[found.rank](x.float(), found.kernel, found.strides, padding, found.dilations, ceil_mode=ceil)
    return maxima if x.is_floating_point() else maxima.to(x.dtype)


@converter("AveragePool")
def average_pool(call: Call) -> Tensor:
    return _averages(call, call.tensor(0), _windows(call), call.flag("count_include_pad"), call.flag("ceil_mode"))


@converter("LpPool")
def lp_pool(call: Call) -> Tensor:
    """(sum of |x|^p)^(1/p): the average with padding counted, times the size of the window."""
    found, p = _windows(call), call.real("p", 2)
    powers = torch.abs(call.tensor(0)) if p == 1 else torch.pow(torch.abs(call.tensor(0)), p)
    means = _averages(call, powers, found, True, call.flag("ceil_mode"), whole_windows=True)
    sums = means * float(math.prod(found.kernel))
    return sums if p == 1 else torch.pow(sums, 1 / p)


def _averages(call: Call, x: Tensor, found: Windows, counts_padding: bool, ceil: bool, whole_windows: bool = False) -> Tensor:
    padding = found.symmetric
    plain = padding is not None and all(2 * pad <= length for pad, length in zip(padding, found.kernel, strict=True))
    if plain and set(found.dilations) == {1} and not (whole_windows and ceil):
        return _AVERAGES[found.rank](x, found.kernel, found.strides, padding, ceil, counts_padding)
    sides = _with_ceil(call, x, found) if ceil else pad_sides(found)
    means = _dilated(F.pad(x, sides) if any(sides) else x, found)
    if whole_windows or (not any(sides)) or (counts_padding and sides == pad_sides(found)):
        return means
    counted = torch.ones([1, *_fixed(call, x)])
    counted = F.pad(counted, pad_sides(found), value=1.0 if counts_padding else 0.0)
    extra = [after - before for before, after in zip(pad_sides(found), sides, strict=True)]
    ones = _dilated(F.pad(counted, extra)[None], found)
    return means / ones[0]


def _fixed(call: Call, x: Tensor) -> list[int]:
    sizes = [size for size in x.shape[2:] if isinstance(size, int)]
    if len(sizes) != x.ndim - 2:
        raise call.fail("pads windows of an open size: fix that size with dynamic_shapes")
    return sizes


def _with_ceil(call: Call, x: Tensor, found: Windows) -> list[int]:
    """The padding that makes the last, incomplete window whole; a window that would start in the padding is none."""
    sides = []
    sizes = _fixed(call, x)
    for position in reversed(range(found.rank)):
        extent = (found.kernel[position] - 1) * found.dilations[position] + 1
        begin, end, stride = found.begins[position], found.ends[position], found.strides[position]
        count = -(-(sizes[position] + begin + end - extent) // stride) + 1
        count -= (count - 1) * stride >= sizes[position] + begin
        sides += [begin, max(end, (count - 1) * stride + extent - sizes[position] - begin)]
    return sides


def _dilated(x: Tensor, found: Windows) -> Tensor:
    """Averages of unpadded windows; with dilation as a convolution of each channel."""
    if set(found.dilations) == {1}:
        return _AVERAGES[found.rank](x, found.kernel, found.strides)
    weight = torch.full([x.shape[1], 1, *found.kernel], 1.0 / math.prod(found.kernel))
    return _CONVOLUTIONS[found.rank](x, weight, None, found.strides, 0, found.dilations, x.shape[1])


def _positions(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


@converter("GlobalAveragePool")
def global_average_pool(call: Call) -> Tensor:
    return call.tensor(0).mean(_positions(call.tensor(0)), keepdim=True)


@converter("GlobalMaxPool")
def global_max_pool(call: Call) -> Tensor:
    """Over one dimension it is pooling with one window, which has an integer form."""
    x = call.tensor(0)
    if x.ndim == 3 and isinstance(x.shape[2], int):
        return F.max_pool1d(x, x.shape[2])
    return torch.amax(x, _positions(x), keepdim=True)


@converter("GlobalLpPool")
def global_lp_pool(call: Call) -> Tensor:
    x, p = call.tensor(0), call.real("p", 2)
    return torch.pow(torch.pow(torch.abs(x), p).sum(_positions(x), keepdim=True), 1 / p)
