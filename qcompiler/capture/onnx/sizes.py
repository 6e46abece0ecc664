"""Arithmetic of shapes whose sizes are open: whole number tensors as numpy arrays of ``int`` and ``torch.SymInt``.

What exporters write for ``x.view(x.shape[0], -1)``: Shape, Gather, Unsqueeze, Concat, Reshape. None of it becomes a node of the program.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch.utils._python_dispatch import _disable_current_modes

from qcompiler.capture.onnx.call import Sizes, Value, is_constant
from qcompiler.capture.onnx.model import Node

Arrays = list[Sizes | None]

_WHOLE = frozenset({TensorProto.INT64, TensorProto.INT32})


def simplified(array: Sizes) -> torch.Tensor | Sizes:
    """A tensor of constants where no size is open any more."""
    flat = list(np.asarray(array, dtype=object).reshape(-1))
    if any(isinstance(size, torch.SymInt) for size in flat):
        return array
    with _disable_current_modes():  # a constant, even while the model is traced
        return torch.tensor([int(size) for size in flat], dtype=torch.int64).reshape(np.shape(array))


def of_shape(shape: Sequence[Any]) -> torch.Tensor | Sizes:
    """``Shape`` of a tensor."""
    array = np.empty(len(shape), dtype=object)
    array[:] = list(shape)
    return simplified(array)


def of_count(count: Any) -> torch.Tensor | Sizes:
    """``Size`` of a tensor: rank 0."""
    return simplified(np.array(count, dtype=object))


def serves(node: Node, operands: Sequence[Value]) -> bool:
    """Whether the node computes sizes from sizes and constants."""
    if node.domain or node.op_type not in _FUNCTIONS or int(node.attributes.get("to", TensorProto.INT64)) not in _WHOLE:
        return False
    return all(isinstance(value, np.ndarray) or _is_whole(value) for value in operands)


def _is_whole(value: Value) -> bool:
    """Whether a value is known and holds no floats: their arithmetic is another."""
    return is_constant(value) and not (isinstance(value, torch.Tensor) and value.is_floating_point())


def compute(node: Node, operands: Sequence[Value]) -> Any:
    """The node's outputs; a tuple where it has several."""
    results = _FUNCTIONS[node.op_type](node, [_array(value) for value in operands])
    if isinstance(results, tuple):
        return tuple(simplified(result) for result in results)
    return simplified(np.asarray(results, dtype=object)) if not isinstance(results, torch.Tensor) else results


def _array(value: Value) -> Sizes | None:
    if isinstance(value, torch.Tensor):
        array = np.empty(tuple(value.shape), dtype=object)
        array[...] = np.array(value.tolist(), dtype=object)
        return array
    return value if isinstance(value, np.ndarray) else None


def _numbers(array: Sizes | None) -> list[int] | None:
    return None if array is None else [int(item) for item in array.reshape(-1)]


def _at(arrays: Arrays, position: int) -> Sizes | None:
    return arrays[position] if position < len(arrays) else None


def _given(arrays: Arrays, position: int) -> Sizes:
    found = _at(arrays, position)
    if found is None:
        raise ValueError(f"input {position} is missing")
    return found


def _axes(node: Node, arrays: Arrays) -> list[int] | None:
    given = node.attributes.get("axes")
    return [int(axis) for axis in given] if given is not None else _numbers(_at(arrays, 1))


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[Node, Arrays], Any]:
    return lambda node, arrays: np.frompyfunc(function, 2, 1)(_given(arrays, 0), _given(arrays, 1))


def _divide(dividend: Any, divisor: Any) -> Any:
    """Sizes are not negative: rounding down and rounding towards zero are one."""
    return dividend // divisor


def _gather(node: Node, arrays: Arrays) -> Any:
    indices = np.array(_numbers(_given(arrays, 1)), dtype=np.int64).reshape(_given(arrays, 1).shape)
    return np.take(_given(arrays, 0), indices, axis=int(node.attributes.get("axis", 0)))


def _slice(node: Node, arrays: Arrays) -> Any:
    data = _given(arrays, 0)
    given = node.attributes
    starts = given.get("starts") or _numbers(_at(arrays, 1)) or []
    ends = given.get("ends") or _numbers(_at(arrays, 2)) or []
    axes = given.get("axes") or _numbers(_at(arrays, 3)) or list(range(len(starts)))
    steps = _numbers(_at(arrays, 4)) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = data.shape[axis]
        stop = None if step < 0 and end < -size else end
        data = data[(slice(None),) * (axis % data.ndim) + (slice(start, stop, step),)]
    return data


def _concat(node: Node, arrays: Arrays) -> Any:
    return np.concatenate([_given(arrays, position) for position in range(len(arrays))], axis=int(node.attributes["axis"]))


def _unsqueeze(node: Node, arrays: Arrays) -> Any:
    return np.expand_dims(_given(arrays, 0), tuple(_axes(node, arrays) or ()))


def _squeeze(node: Node, arrays: Arrays) -> Any:
    axes = _axes(node, arrays)
    return np.squeeze(_given(arrays, 0), None if axes is None else tuple(axes))


def _reshape(node: Node, arrays: Arrays) -> Any:
    data = _given(arrays, 0)
    wanted = [data.shape[i] if size == 0 else size for i, size in enumerate(_numbers(_given(arrays, 1)) or [])]
    return data.reshape(wanted)


def _reduction(function: Any) -> Callable[[Node, Arrays], Any]:
    def reduced(node: Node, arrays: Arrays) -> Any:
        axes, keepdims = _axes(node, arrays), bool(node.attributes.get("keepdims", 1))
        return function.reduce(_given(arrays, 0), axis=None if axes is None else tuple(axes), keepdims=keepdims)

    return reduced


def _split(node: Node, arrays: Arrays) -> Any:
    data, axis = _given(arrays, 0), int(node.attributes.get("axis", 0))
    sizes = node.attributes.get("split") or _numbers(_at(arrays, 1))
    if sizes is None:
        each = -(-data.shape[axis] // len(node.outputs))
        return tuple(np.split(data, range(each, data.shape[axis], each), axis))
    return tuple(np.split(data, np.cumsum(sizes)[:-1], axis))


def _expand(node: Node, arrays: Arrays) -> Any:
    data, shape = _given(arrays, 0), _numbers(_given(arrays, 1)) or []
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(shape)))


def _where(node: Node, arrays: Arrays) -> Any:
    return np.frompyfunc(lambda condition, a, b: a if condition else b, 3, 1)(_given(arrays, 0), _given(arrays, 1), _given(arrays, 2))


def _compare(function: Callable[[Any, Any], Any]) -> Callable[[Node, Arrays], Any]:
    """Comparisons of sizes decide for all sizes that the program takes: torch notes it as a condition."""

    def compare(node: Node, arrays: Arrays) -> torch.Tensor:
        result = np.frompyfunc(lambda a, b: bool(function(a, b)), 2, 1)(_given(arrays, 0), _given(arrays, 1))
        with _disable_current_modes():  # a constant, even while the model is traced
            return torch.tensor(np.asarray(result, dtype=bool))

    return compare


def _fold(function: Callable[[Any, Any], Any]) -> Callable[[Node, Arrays], Any]:
    def folded(node: Node, arrays: Arrays) -> Any:
        result = _given(arrays, 0)
        for position in range(1, len(arrays)):
            result = np.frompyfunc(function, 2, 1)(result, _given(arrays, position))
        return result

    return folded


_FUNCTIONS: Mapping[str, Callable[[Node, Arrays], Any]] = {
    "Add": _binary(operator.add),
    "Sub": _binary(operator.sub),
    "Mul": _binary(operator.mul),
    "Div": _binary(_divide),
    "Mod": _binary(operator.mod),
    "Neg": lambda node, arrays: np.frompyfunc(operator.neg, 1, 1)(_given(arrays, 0)),
    "Min": _fold(torch.sym_min),
    "Max": _fold(torch.sym_max),
    "Equal": _compare(operator.eq),
    "Greater": _compare(operator.gt),
    "Less": _compare(operator.lt),
    "GreaterOrEqual": _compare(operator.ge),
    "LessOrEqual": _compare(operator.le),
    "Where": _where,
    "Cast": lambda node, arrays: _given(arrays, 0),
    "Identity": lambda node, arrays: _given(arrays, 0),
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Flatten": lambda node, arrays: _given(arrays, 0).reshape(1, -1),
    "ReduceProd": _reduction(np.multiply),
    "ReduceSum": _reduction(np.add),
    "Split": _split,
    "Expand": _expand,
    "Shape": lambda node, arrays: np.array(_given(arrays, 0).shape, dtype=object),
    "Size": lambda node, arrays: np.array(_given(arrays, 0).size, dtype=object),
}
