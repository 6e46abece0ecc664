"""GridSample reads an image at computed positions; Col2Im adds windows up into an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.capture.onnx.call import Call
from qcompiler.capture.onnx.registry import converter

# The names of opset 20 and those before.
_MODES: Mapping[str, str] = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic", "bicubic": "bicubic"}
_PADDINGS = ("zeros", "border", "reflection")
_TRANSPOSED: Mapping[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@converter("GridSample")
def grid_sample(call: Call) -> Tensor:
    """``torch.nn.functional.grid_sample`` over two or three dimensions, cubic over two."""
    x, grid, given, padding = call.tensor(0), call.tensor(1), call.text("mode", "linear"), call.text("padding_mode", "zeros")
    mode = _MODES.get(given)
    if mode is None or padding not in _PADDINGS:
        raise call.fail(f"has the mode '{given}' and the padding '{padding}': {', '.join(_MODES)} and {', '.join(_PADDINGS)} are supported")
    if x.ndim not in (4, 5) or (mode == "bicubic" and x.ndim == 5):
        raise call.fail(f"samples an input of {x.ndim} dimensions by mode '{given}': 4 are supported, and 5 unless it is cubic")
    return F.grid_sample(x, grid, mode, padding, call.flag("align_corners"))


@converter("Col2Im")
def add_windows(call: Call) -> Tensor:
    """[batch, channels * window, positions] to [batch, channels, image…]: elements that fall on the same place are added.

    y[n, c, stride * p + dilation * k - begin] += x[n, (c, k), p] is a transposed convolution of each channel with the window's one-hot
    vectors. ``torch.nn.functional.fold`` computes the same over two dimensions; the convolution has an integer form.
    """
    x, image, block = call.tensor(0), _numbers(call, 1), _numbers(call, 2)
    rank, window = len(image), math.prod(block)
    strides, dilations = call.integers("strides") or [1] * rank, call.integers("dilations") or [1] * rank
    pads = call.integers("pads") or [0] * (2 * rank)
    if rank not in _TRANSPOSED or {len(block), len(strides), len(dilations), len(pads) / 2} != {rank}:
        raise call.fail(f"adds windows {block} up to an image of {rank} dimensions: 1 to 3 are supported, and all sizes must fit")
    if min(*image, *block, *strides, *dilations) < 1 or min(pads) < 0:
        raise call.fail(
            f"has an image {image}, windows {block}, strides {strides}, dilations {dilations}, pads {pads}: sizes must be positive"
        )
    extents = [(length - 1) * dilation + 1 for length, dilation in zip(block, dilations, strict=True)]
    totals = [image[dim] + pads[dim] + pads[rank + dim] for dim in range(rank)]
    counts = [(total - extent) // stride + 1 for total, extent, stride in zip(totals, extents, strides, strict=True)]
    if x.ndim != 3 or x.shape[1] % window or x.shape[2] != math.prod(counts):
        raise call.fail(f"has an input of shape {list(x.shape)}: [batch, multiple of {window}, {math.prod(counts)}] fits image and windows")
    channels = x.shape[1] // window
    weight = torch.eye(window).reshape(window, 1, *block).repeat(channels, *([1] * (rank + 1)))
    whole = _TRANSPOSED[rank](x.unflatten(2, counts), weight, None, strides, 0, 0, channels, dilations)
    return _cut(whole, image, pads[:rank])


def _cut(whole: Tensor, image: Sequence[int], begins: Sequence[int]) -> Tensor:
    """The image without its padding; zeros where no window reaches its end."""
    missing = [max(0, begin + size - int(length)) for begin, size, length in zip(begins, image, whole.shape[2:], strict=True)]
    if any(missing):
        whole = F.pad(whole, [side for more in reversed(missing) for side in (0, more)])
    for dim, (begin, size) in enumerate(zip(begins, image, strict=True), 2):
        whole = whole if whole.shape[dim] == size else whole.narrow(dim, begin, size)
    return whole


def _numbers(call: Call, position: int) -> list[int]:
    return [int(number) for number in call.numbers(position)]
