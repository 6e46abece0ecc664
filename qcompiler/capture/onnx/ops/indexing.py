"""Ops that pick elements by position, or put them there.

Known positions become views: one is ``select``, a run is a slice. Positions that are computed count from the front, except where ONNX's
negative ones cost nothing (``aten.index``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.capture.onnx.call import Call
from qcompiler.capture.onnx.registry import converter
from qcompiler.capture.onnx.simplify import OWN_DOMAIN

_slice: Callable[..., Tensor] = torch.ops.aten.slice.Tensor


@converter("Gather")
def gather(call: Call) -> Tensor:
    x, axis = call.tensor(0), call.integer("axis")
    if x.ndim == 0 or not -x.ndim <= axis < x.ndim:
        raise call.fail(f"gathers along axis {axis} of {x.ndim}")
    axis %= x.ndim
    if call.folding or not call.is_constant(1):
        return _looked_up(call, x, axis)
    indices = call.constant(1)
    length = x.shape[axis]
    flat = [int(index) for index in call.numbers(1)]
    if isinstance(length, int):
        if any(not -length <= index < length for index in flat):
            raise call.fail(f"reads the positions {flat[:4]} of {length}")
        flat = [index % length for index in flat]
    elif min(flat, default=0) < 0:
        raise call.fail("counts from the end of an open size: use Slice")
    if indices.ndim == 0:
        return x.select(axis, flat[0])
    picked = _picked(x, axis, flat)
    return picked if indices.ndim == 1 else picked.unflatten(axis, list(indices.shape))


def _picked(x: Tensor, axis: int, positions: list[int]) -> Tensor:
    if positions and positions == list(range(positions[0], positions[0] + len(positions))):
        return _slice(x, axis, positions[0], positions[-1] + 1, 1)
    return torch.index_select(x, axis, torch.tensor(positions, dtype=torch.int64))


def _looked_up(call: Call, x: Tensor, axis: int) -> Tensor:
    indices = call.tensor(1).long()
    if axis == 0 and x.ndim == 2 and call.is_constant(0) and x.is_floating_point() and not call.folding:
        return F.embedding(indices, x)
    found: Tensor = x[(slice(None),) * axis + (indices,)]
    return found


@converter("GatherElements")
def gather_elements(call: Call) -> Tensor:
    x, axis = call.tensor(0), call.integer("axis")
    return torch.gather(x, axis, _from_front(call, 1, x.shape[axis]))


def _from_front(call: Call, position: int, length: Any) -> Tensor:
    """Positions that are not negative."""
    indices = call.tensor(position).long()
    if call.is_constant(position) and min(call.numbers(position), default=0) >= 0:
        return indices
    return torch.where(indices < 0, indices + length, indices)


@converter("GatherND")
def gather_nd(call: Call) -> Tensor:
    """The last dimension of the indices is a position; the first ``batch_dims`` dimensions are shared."""
    x, indices, shared = call.tensor(0), call.tensor(1).long(), call.integer("batch_dims")
    parts = list(indices.unbind(-1))
    counts = [torch.arange(x.shape[dim]).reshape([-1 if d == dim else 1 for d in range(indices.ndim - 1)]) for dim in range(shared)]
    return x[(*counts, *parts)]


@converter("Index", domain=OWN_DOMAIN)
def index(call: Call) -> Tensor:
    """``x[a, b, …]``; see ``qcompiler/capture/onnx/simplify.py``."""
    found: Tensor = call.tensor(0)[tuple(call.tensor(position) for position in range(1, len(call)))]
    return found


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@converter("ScatterElements", "Scatter")
def scatter_elements(call: Call) -> Tensor:
    x, axis, updates = call.tensor(0), call.integer("axis"), call.tensor(2)
    indices, how = _from_front(call, 1, x.shape[axis]), call.text("reduction", "none")
    if how == "none":
        return torch.scatter(x, axis, indices, updates)
    return torch.scatter_reduce(x, axis, indices, updates, _REDUCTIONS[how], include_self=True)


@converter("ScatterND")
def scatter_nd(call: Call) -> Tensor:
    """The last dimension of the indices is a position, at which a slice of the updates goes."""
    x, indices, updates, how = call.tensor(0), call.tensor(1).long(), call.tensor(2), call.text("reduction", "none")
    depth = indices.shape[-1]
    if how in ("none", "add"):
        return torch.index_put(x, list(indices.unbind(-1)), updates, accumulate=how == "add")
    strides = [1] * depth
    for dim in reversed(range(depth - 1)):
        strides[dim] = strides[dim + 1] * int(x.shape[dim + 1])
    rows = (indices * torch.tensor(strides)).sum(-1).reshape(-1, 1)
    flat = x.reshape(-1, x.shape[depth:].numel())
    new = updates.reshape(-1, flat.shape[1])
    return torch.scatter_reduce(flat, 0, rows.expand(new.shape), new, _REDUCTIONS[how], include_self=True).reshape(x.shape)


@converter("Compress")
def compress(call: Call) -> Tensor:
    """Keeps the positions at which a known condition holds."""
    x, axis = call.tensor(0), call.attribute("axis")
    kept = [position for position, holds in enumerate(call.numbers(1)) if holds]
    x = x.flatten() if axis is None else x
    return _picked(x, 0 if axis is None else int(axis) % x.ndim, kept)


@converter("ReverseSequence")
def reverse_sequence(call: Call) -> Tensor:
    """Known lengths: each row is its flipped beginning and its rest."""
    x, time = call.tensor(0), call.integer("time_axis")
    batch = call.integer("batch_axis", 1)
    rows = []
    for row, length in enumerate(int(size) for size in call.numbers(1)):
        part = x.narrow(batch, row, 1)
        rows.append(torch.cat([torch.flip(part.narrow(time, 0, length), [time]), part.narrow(time, length, x.shape[time] - length)], time))
    return torch.cat(rows, batch)


@converter("ArrayFeatureExtractor", domain="ai.onnx.ml")
def extract_features(call: Call) -> Tensor:
    x = call.tensor(0)
    return torch.index_select(x, x.ndim - 1, call.tensor(1).reshape(-1))
