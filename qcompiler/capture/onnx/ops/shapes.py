"""Ops that move elements, and that read and write shapes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.capture.onnx import sizes
from qcompiler.capture.onnx.call import Call, Size
from qcompiler.capture.onnx.registry import converter

# What exporters write for "to the end" is some large number; no open size comes near.
_TO_THE_END = 10**6
# Of a tensor in one ``cat``.
_MOST_COPIES = 1024

_slice: Callable[..., Tensor] = torch.ops.aten.slice.Tensor


@converter("Shape")
def shape(call: Call) -> Any:
    found = list(call.tensor(0).shape)
    return sizes.of_shape(found[call.integer("start") : call.attribute("end", len(found))])


@converter("Size")
def size(call: Call) -> Any:
    count: Size = 1
    for length in call.tensor(0).shape:
        count = count * length
    return sizes.of_count(count)


@converter("Reshape")
def reshape(call: Call) -> Tensor:
    """0 keeps the size that stands there, unless ``allowzero`` says that it is a size."""
    x, wanted = call.tensor(0), call.sizes(1)
    if not call.flag("allowzero"):
        wanted = [x.shape[dim] if isinstance(size, int) and size == 0 and dim < x.ndim else size for dim, size in enumerate(wanted)]
    return x.reshape(wanted)


@converter("Flatten")
def flatten(call: Call) -> Tensor:
    """[product of the sizes before axis, product of the others]."""
    x, axis = call.tensor(0), call.integer("axis", 1)
    axis += x.ndim if axis < 0 else 0
    if axis == 0:
        return x.reshape(1, -1)
    if axis >= x.ndim:
        return x.reshape(-1, 1)
    x = x.flatten(axis) if x.ndim > axis + 1 else x
    return x.flatten(0, axis - 1) if axis > 1 else x


@converter("Transpose")
def transpose(call: Call) -> Tensor:
    x = call.tensor(0)
    return x.permute(call.integers("perm") or list(reversed(range(x.ndim))))


def _axes(call: Call) -> list[int] | None:
    """The axes as an attribute (before opset 13) or as an input."""
    axes = call.integers("axes")
    if axes is not None or not call.has(1):
        return axes
    return [int(axis) for axis in call.numbers(1)]


@converter("Squeeze")
def squeeze(call: Call) -> Tensor:
    x, axes = call.tensor(0), _axes(call)
    axes = [dim for dim, size in enumerate(x.shape) if isinstance(size, int) and size == 1] if axes is None else axes
    if any(not isinstance(x.shape[dim], int) or x.shape[dim] != 1 for dim in axes):
        raise call.fail(f"squeezes axes {axes} of the shape {list(x.shape)}: their sizes must be 1")
    return x.squeeze(axes)


@converter("Unsqueeze")
def unsqueeze(call: Call) -> Tensor:
    x, axes = call.tensor(0), _axes(call) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@converter("Concat")
def concat(call: Call) -> Tensor:
    return torch.cat([call.tensor(position) for position in range(len(call))], call.integer("axis"))


@converter("Split")
def split(call: Call) -> tuple[Tensor, ...]:
    """Into the sizes given, else into equal parts of which the last may be smaller."""
    x, axis, count = call.tensor(0), call.integer("axis"), len(call.node.outputs)
    parts = call.integers("split")
    parts = [int(part) for part in call.numbers(1)] if parts is None and call.has(1) else parts
    if parts is None:
        each = -(-x.shape[axis] // count)
        parts = [each] * (count - 1) + [x.shape[axis] - each * (count - 1)]
    if len(set(parts)) == 1 and parts[0] > 0:
        return tuple(torch.split(x, parts[0], axis))
    return tuple(torch.split(x, parts, axis))


@converter("Slice", since=1)
def slice_by_attributes(call: Call) -> Tensor:
    starts, ends = call.integers("starts") or [], call.integers("ends") or []
    axes = call.integers("axes") or list(range(len(starts)))
    return _sliced(call, starts, ends, axes, [1] * len(starts))


@converter("Slice", since=10)
def slice_by_inputs(call: Call) -> Tensor:
    starts, ends = call.sizes(1), call.sizes(2)
    axes = [int(axis) for axis in call.sizes(3)] if call.has(3) else list(range(len(starts)))
    steps = [int(step) for step in call.sizes(4)] if call.has(4) else [1] * len(starts)
    return _sliced(call, starts, ends, axes, steps)


def _sliced(call: Call, starts: Sequence[Size], ends: Sequence[Size], axes: Sequence[int], steps: Sequence[int]) -> Tensor:
    x = call.tensor(0)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not -x.ndim <= axis < x.ndim or step == 0:
            raise call.fail(f"slices axis {axis} of {x.ndim} with step {step}")
        axis %= x.ndim
        if step < 0:
            x = _backwards(call, x, axis, start, end, step)
        elif not (isinstance(start, int) and start == 0 and step == 1 and _is_whole(end, x.shape[axis])):
            x = _slice(x, axis, start, end, step)
    return x


def _is_whole(end: Size, length: Size) -> bool:
    return isinstance(end, int) and end >= (length if isinstance(length, int) else _TO_THE_END)


def _backwards(call: Call, x: Tensor, axis: int, start: Size, end: Size, step: int) -> Tensor:
    """The flipped tensor, sliced forwards."""
    length = x.shape[axis]
    if not all(isinstance(size, int) for size in (length, start, end)):
        raise call.fail("runs backwards over an open size: fix it with dynamic_shapes")
    stop = None if end < -length else int(end)
    positions = range(length)[slice(int(start), stop, step)]
    flipped = torch.flip(x, [axis])
    if len(positions) == length:
        return flipped
    if not positions:
        return _slice(x, axis, 0, 0, 1)
    return _slice(flipped, axis, length - 1 - positions[0], length - positions[-1], -step)


@converter("Expand")
def expand(call: Call) -> Tensor:
    """Broadcasts both ways: a size 1 in the shape keeps the tensor's."""
    x, wanted = call.tensor(0), call.sizes(1)
    wanted = [*[1] * (x.ndim - len(wanted)), *wanted]
    own: list[Size] = [*[1] * (len(wanted) - x.ndim), *x.shape]
    shape = [length if isinstance(size, int) and size == 1 else size for size, length in zip(wanted, own, strict=True)]
    _check_count(call, shape)
    return x if len(wanted) == x.ndim and all(a is b or a == b for a, b in zip(shape, own, strict=True)) else x.expand(shape)


def _check_count(call: Call, shape: Sequence[Size]) -> None:
    """Constants are computed at once: none may fill the memory."""
    count = 1
    for size in shape:
        count *= size if isinstance(size, int) else 1
    if call.folding and not 0 <= count <= 1 << 28:
        raise call.fail(f"gives a constant of shape {list(shape)}: too large to be one")


@converter("Tile")
def tile(call: Call) -> Tensor:
    """A dimension is repeated by joining; of size 1, by ``expand``."""
    x, repeats = call.tensor(0), call.sizes(1)
    _check_count(call, [size * count for size, count in zip(x.shape, repeats, strict=True)])
    wanted = [count if length == 1 and isinstance(length, int) else length for length, count in zip(x.shape, repeats, strict=True)]
    joined = [(dim, int(count)) for dim, (length, count) in enumerate(zip(x.shape, repeats, strict=True)) if not _is_one(length)]
    if any(count > _MOST_COPIES for _, count in joined):
        raise call.fail(f"repeats a dimension {max(count for _, count in joined)} times: at most {_MOST_COPIES} copies are joined")
    if any(not (isinstance(a, int) and isinstance(b, int) and a == b) for a, b in zip(wanted, x.shape, strict=True)):
        x = x.expand(wanted)
    for dim, count in joined:
        x = torch.cat([x] * count, dim) if count != 1 else x
    return x


def _is_one(size: Size) -> bool:
    return isinstance(size, int) and size == 1


@converter("Pad", since=2)
def pad_by_attributes(call: Call) -> Tensor:
    return _padded(call, call.integers("pads") or [], list(range(call.tensor(0).ndim)), call.real("value"))


@converter("Pad", since=11)
def pad(call: Call) -> Tensor:
    x = call.tensor(0)
    axes = [int(axis) % x.ndim for axis in call.numbers(3)] if call.has(3) else list(range(x.ndim))
    return _padded(call, [int(side) for side in call.numbers(1)], axes, call.number(2) if call.has(2) else 0)


def _padded(call: Call, pads: Sequence[int], axes: Sequence[int], value: float | int | bool) -> Tensor:
    """Constant padding is an op of stage FLOAT; the other modes join slices of the tensor to its ends."""
    x, mode = call.tensor(0), call.text("mode", "constant")
    if len(pads) != 2 * len(axes):
        raise call.fail(f"has {len(pads)} pads for {len(axes)} axes: two for each are needed")
    sides = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    _check_count(call, [length + sum(sides.get(dim, (0, 0))) for dim, length in enumerate(x.shape)])
    if mode == "constant":
        flat = itertools.chain.from_iterable(sides.get(dim, (0, 0)) for dim in reversed(range(min(axes, default=0), x.ndim)))
        return F.pad(x, list(flat), value=value) if any(pads) else x
    for dim, (begin, end) in sides.items():
        if begin or end:
            x = _extended(call, x, dim, begin, end, mode)
    return x


def _extended(call: Call, x: Tensor, dim: int, begin: int, end: int, mode: str) -> Tensor:
    length = x.shape[dim]
    if not isinstance(length, int) or min(length, _MOST_COPIES) * 64 < begin + end:
        raise call.fail(f"extends dimension {dim} of size {length} by {begin} and {end} ({mode}): fix its size")
    x = x.narrow(dim, -begin, length + begin) if begin < 0 else x
    x = x.narrow(dim, 0, x.shape[dim] + end) if end < 0 else x
    length = x.shape[dim]
    positions = [_source(position, length, mode) for position in range(-max(begin, 0), length + max(end, 0))]
    return torch.cat([_run(x, dim, run) for run in _runs(positions)], dim)


def _source(position: int, length: int, mode: str) -> int:
    """Where the element at ``position``, outside of [0, length), comes from."""
    if mode == "edge":
        return min(max(position, 0), length - 1)
    if mode == "wrap":
        return position % length
    period = max(1, 2 * (length - 1))
    folded = position % period
    return folded if folded < length else period - folded


def _runs(positions: Sequence[int]) -> list[list[int]]:
    """The longest parts that count up or down by one, or are single."""
    runs: list[list[int]] = []
    for position in positions:
        last = runs[-1] if runs else []
        step = position - last[-1] if last else 0
        if last and abs(step) == 1 and (len(last) == 1 or last[-1] - last[-2] == step):
            last.append(position)
        else:
            runs.append([position])
    return runs


def _run(x: Tensor, dim: int, run: Sequence[int]) -> Tensor:
    low, high = min(run), max(run)
    part = _slice(x, dim, low, high + 1, 1)
    return torch.flip(part, [dim]) if len(run) > 1 and run[0] > run[-1] else part


@converter("DepthToSpace")
def depth_to_space(call: Call) -> Tensor:
    """CRD is torch's pixel_shuffle; DCR has the block's positions before the channels."""
    x, block = call.tensor(0), call.integer("blocksize")
    if call.text("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    batch, channels, height, width = x.shape
    x = x.reshape(batch, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(batch, channels // block**2, height * block, width * block)


@converter("SpaceToDepth")
def space_to_depth(call: Call) -> Tensor:
    x, block = call.tensor(0), call.integer("blocksize")
    batch, channels, height, width = x.shape
    if call.text("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, block)
    x = x.reshape(batch, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(batch, channels * block**2, height // block, width // block)
