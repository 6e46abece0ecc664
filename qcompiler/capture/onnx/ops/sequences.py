"""Sequences of tensors whose length is known: they never reach the program."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qcompiler.capture.onnx.call import Call
from qcompiler.capture.onnx.registry import converter


def _sequence(call: Call, position: int) -> list[Any]:
    value = call.value(position)
    if not isinstance(value, list):
        raise call.fail(f"input {position} is no sequence")
    return value


@converter("SequenceEmpty")
def empty(call: Call) -> list[Any]:
    return []


@converter("SequenceConstruct")
def construct(call: Call) -> list[Any]:
    return [call.tensor(position) for position in range(len(call))]


@converter("SequenceInsert")
def insert(call: Call) -> list[Any]:
    items = list(_sequence(call, 0))
    items.insert(int(call.number(2)) if call.has(2) else len(items), call.tensor(1))
    return items


@converter("SequenceErase")
def erase(call: Call) -> list[Any]:
    items = list(_sequence(call, 0))
    del items[int(call.number(1)) if call.has(1) else -1]
    return items


@converter("SequenceAt")
def at(call: Call) -> Tensor:
    found: Tensor = _sequence(call, 0)[int(call.number(1))]
    return found


@converter("SequenceLength")
def length(call: Call) -> Tensor:
    return torch.tensor(len(_sequence(call, 0)))


@converter("ConcatFromSequence")
def concat(call: Call) -> Tensor:
    items, axis = _sequence(call, 0), call.integer("axis")
    return torch.stack(items, axis) if call.flag("new_axis") else torch.cat(items, axis)


@converter("SplitToSequence")
def split(call: Call) -> list[Any]:
    x, axis = call.tensor(0), call.integer("axis")
    if not call.has(1):
        parts = list(x.split(1, axis))
        return parts if call.flag("keepdims", True) else [part.squeeze(axis) for part in parts]
    # One number is the size of each part.
    sizes = int(call.number(1)) if call.constant(1).ndim == 0 else call.numbers(1)
    return list(x.split(sizes, axis))
