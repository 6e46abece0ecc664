"""Constants, and tensors that follow from sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qcompiler.capture.onnx.call import Call
from qcompiler.capture.onnx.registry import converter
from qcompiler.capture.onnx.types import dtype_of, traced_dtype

_LARGEST = 1 << 28


@converter("Constant")
def constant(call: Call) -> Tensor:
    attributes = call.node.attributes
    if "value" in attributes:
        found: Tensor = attributes["value"]
        return found
    for name, dtype in (
        ("value_float", torch.float32),
        ("value_floats", torch.float32),
        ("value_int", torch.int64),
        ("value_ints", torch.int64),
    ):
        if name in attributes:
            return torch.tensor(attributes[name], dtype=dtype)
    raise call.fail(f"holds {', '.join(attributes) or 'nothing'}: only dense tensors and numbers are supported")


@converter("ConstantOfShape")
def constant_of_shape(call: Call) -> Tensor:
    shape, value = call.sizes(0), call.attribute("value")
    count = 1
    for size in shape:
        count *= size if isinstance(size, int) else 1
    if not 0 <= count <= _LARGEST:
        raise call.fail(f"gives a constant of shape {shape}: too large to be one")
    number = 0.0 if value is None else value.reshape(-1)[0].item()
    dtype = torch.float32 if value is None else value.dtype
    return torch.full(shape, number, dtype=dtype if call.folding else traced_dtype(dtype))


@converter("Range")
def count(call: Call) -> Tensor:
    """Ends may be open sizes, steps not."""
    if call.folding:
        start, limit, step = (call.number(position) for position in range(3))
        dtype = call.constant(0).dtype
        if step == 0 or abs((limit - start) / step) > _LARGEST:
            raise call.fail(f"counts from {start} to {limit} by {step}")
        length = max(0, -int(-((limit - start) / step) // 1))
        return (torch.arange(length, dtype=torch.float64 if dtype.is_floating_point else torch.int64) * step + start).to(dtype)
    first, last, each = (call.size(position) for position in range(3))
    if isinstance(first, int) and first == 0 and isinstance(each, int) and each == 1:
        return torch.arange(last)  # type: ignore[arg-type]  # torch takes symbols
    return torch.arange(first, last, each)  # type: ignore[arg-type]  # as above


@converter("EyeLike")
def eye_like(call: Call) -> Tensor:
    x, given = call.tensor(0), call.attribute("dtype")
    rows, columns = (int(size) for size in x.shape)
    dtype = x.dtype if given is None else traced_dtype(dtype_of(int(given), f"the result of node {call.node.label}"))
    offset = torch.arange(columns)[None, :] - torch.arange(rows)[:, None]
    return (offset == call.integer("k")).to(dtype)


@converter("Trilu")
def triangle(call: Call) -> Tensor:
    """Elements on and above (or below) a diagonal; the others become 0."""
    x, upper = call.tensor(0), call.flag("upper", True)
    diagonal = int(call.number(1)) if call.has(1) else 0
    if call.folding:
        return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)
    offset = torch.arange(x.shape[-1])[None, :] - torch.arange(x.shape[-2])[:, None]
    inside = offset >= diagonal if upper else offset <= diagonal
    return torch.where(inside, x, 0)


@converter("OneHot")
def one_hot(call: Call) -> Tensor:
    """``on`` where the position along the new axis is the index, which may count from the end; else ``off``."""
    indices, depth, axis = call.tensor(0), int(call.number(1)), call.integer("axis", -1)
    if not 0 < depth <= _LARGEST:
        raise call.fail(f"has the depth {depth}: it must be positive")
    axis += indices.ndim + 1 if axis < 0 else 0
    indices = torch.where(indices < 0, indices + depth, indices).unsqueeze(axis)
    positions = torch.arange(depth).reshape([-1, *[1] * (indices.ndim - 1 - axis)])
    hot = indices == positions
    values = call.tensor(2)
    return torch.where(hot, values[1], values[0])


@converter("NonZero")
def non_zero(call: Call) -> Any:
    """Its shape depends on values: of constants only."""
    call.constant(0)
    return torch.nonzero(call.tensor(0)).t()
