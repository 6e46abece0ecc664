"""Exact integer linear algebra on floating-point units.

A float32 sum of integer products is exact, in whatever order and with or without fused multiply-add, as long as
``sum |w| * max |x| < 2^24``: every partial sum is then an integer that float32 holds. The bound is taken from the actual weights;
where it does not hold, the reduction is split into pieces for which it does, and the pieces are added in int32. Operands are at
most 8 bits wide (wider ones are split into bytes), so that bfloat16 holds them too: no reduced-precision setting of torch or oneDNN
can change a result. Winograd and Fourier algorithms do change it: convolutions call oneDNN's direct algorithm by name, else float64.

Sums are taken modulo 2^32, hence exact for every accumulator that fits int32, as the verifier proves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_FLOAT32_EXACT = 1 << 24
_BYTE = 8


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x @ weight^T + bias`` in int32: x [..., K] of any integer dtype, weight [N, K] int8, bias [N] int32 -> [..., N]."""
    weight_float = weight.float()

    def product(part: Tensor) -> Tensor:
        pieces = _exact_pieces(_reduction_bounds(weight, _magnitude(part, 0)))
        part_float = part.float()
        return _total([F.linear(part_float[..., piece], weight_float[:, piece]).to(torch.int32) for piece in pieces])

    return _over_bytes(x, product).add_(bias)


def matmul(a: Tensor, b: Tensor, zero_point_a: int, zero_point_b: int) -> Tensor:
    """``(a - zero_point_a) @ (b - zero_point_b)`` in int32: a [..., M, K], b [..., K, N] of 8 bits -> [..., M, N]."""
    length = a.shape[-1]
    exact_in_float32 = length * _magnitude(a, zero_point_a) * _magnitude(b, zero_point_b) < _FLOAT32_EXACT
    wide = torch.float32 if exact_in_float32 else torch.float64
    return torch.matmul(a.to(wide).sub_(zero_point_a), b.to(wide).sub_(zero_point_b)).to(torch.int32)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pad_value: int,
) -> Tensor:
    """int32 cross-correlation plus bias: x [N, C, H, W], weight [O, C / groups, kh, kw] int8, bias [O] int32.

    ``padding`` is [top, bottom, left, right], filled with ``pad_value``. Evaluated as
    ``conv(x - pad_value, zero padding) + pad_value * sum(weight) + bias``, which is the same sum.
    """
    if _is_wide(x):
        x, padding, pad_value = F.pad(x, _torch_padding(padding), value=pad_value), (0, 0, 0, 0), 0

    def correlation(part: Tensor) -> Tensor:
        return _correlation(part, weight, stride, padding, dilation, groups, pad_value)

    offset = bias + pad_value * weight.sum((1, 2, 3), dtype=torch.int32)
    return _over_bytes(x, correlation).add_(offset[:, None, None])


def _correlation(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, pad_value: int
) -> Tensor:
    """``conv(x - pad_value, weight)`` in int32 with zero padding, x of 8 bits."""
    centred = x.float() if pad_value == 0 else x.float().sub_(pad_value)
    if padding[0] != padding[1] or padding[2] != padding[3]:
        centred, padding = F.pad(centred, _torch_padding(padding)), (0, 0, 0, 0)

    def direct(part: Tensor, weight_part: Tensor) -> Tensor:
        return _direct_convolution(part, weight_part, stride, padding, dilation, groups).to(torch.int32)

    bounds = _reduction_bounds(weight, _magnitude(x, pad_value))
    if int(bounds.max()) >= _FLOAT32_EXACT or not torch.backends.mkldnn.is_available():
        return direct(centred.double(), weight.double())
    weight_float = weight.float()
    return _total([direct(_channels(centred, piece, groups), weight_float[:, piece]) for piece in _exact_pieces(bounds)])


def _direct_convolution(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """float32 by oneDNN's direct algorithm, whatever the user's settings; float64 by torch's im2col, which no fast algorithm replaces."""
    symmetric = (padding[0], padding[2])
    result: Tensor
    if x.dtype == torch.float32:
        result = torch.mkldnn_convolution(x, weight, None, symmetric, tuple(stride), tuple(dilation), groups)
    else:
        result = F.conv2d(x, weight, None, tuple(stride), symmetric, tuple(dilation), groups)
    return result


def _is_wide(x: Tensor) -> bool:
    return torch.iinfo(x.dtype).bits > _BYTE


def _over_bytes(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``f(x) = f(byte_0) + 2^8 f(byte_1) + ...`` for a linear f of 8-bit integers; all bytes but the highest are unsigned."""
    if not _is_wide(x):
        return function(x)
    highest = torch.iinfo(x.dtype).bits - _BYTE
    total = function((x >> highest).to(torch.int8)) << highest
    for position in range(0, highest, _BYTE):
        total += function(((x >> position) & 0xFF).to(torch.uint8)) << position
    return total


def _magnitude(x: Tensor, centre: int) -> int:
    """Largest ``|x - centre|`` of the dtype."""
    limits = torch.iinfo(x.dtype)
    return max(limits.max - centre, centre - limits.min)


def _reduction_bounds(weight: Tensor, magnitude: int) -> Tensor:
    """Largest magnitude that each input channel can add to each output: ``max |x| * sum over taps |w|``, shape [N, K]."""
    return weight.to(torch.int32).abs_().reshape(*weight.shape[:2], -1).sum(2) * magnitude


def _exact_pieces(bounds: Tensor) -> list[slice]:
    """Equal pieces of the reduction (dimension 1), as few as keep every piece's bound under 2^24. Every single bound must be."""
    size = bounds.shape[1]
    running = F.pad(bounds.cumsum(1), (1, 0))
    count = int(running[:, -1].max()) // _FLOAT32_EXACT + 1
    while True:
        length = -(-size // count)
        edges = [*range(0, size, length), size]
        if int(running[:, edges].diff(dim=1).max()) < _FLOAT32_EXACT:
            return [slice(start, end) for start, end in itertools.pairwise(edges)]
        count += 1


def _channels(x: Tensor, piece: slice, groups: int) -> Tensor:
    """The same slice of the input channels of every group."""
    if piece == slice(0, x.shape[1] // groups):
        return x
    samples, channels, height, width = x.shape
    return x.reshape(samples, groups, channels // groups, height, width)[:, :, piece].reshape(samples, -1, height, width)


def _torch_padding(padding: Sequence[int]) -> tuple[int, int, int, int]:
    top, bottom, left, right = padding
    return left, right, top, bottom


def _total(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total.add_(part)
    return total
